"""TD errors and losses: expected values, written out."""

from __future__ import annotations

import pytest
import torch

from rl import td

Q_TM1 = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
A_TM1 = torch.tensor([0, 1, 0])
R_T = torch.tensor([0.5, -1.0, 2.0])
DISCOUNT_T = torch.tensor([0.9, 0.9**3, 0.0])
Q_T_VALUE = torch.tensor([[10.0, 20.0], [30.0, -5.0], [7.0, 8.0]])
Q_T_SELECTOR = torch.tensor([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]])


def test_q_learning_error_takes_the_maximum():
    error = td.q_learning_error(Q_TM1, A_TM1, R_T, DISCOUNT_T, Q_T_VALUE)
    expected = [0.5 + 0.9 * 20 - 1.0, -1.0 + 0.9**3 * 30 - 4.0, 2.0 - 5.0]
    torch.testing.assert_close(error, torch.tensor(expected))


def test_double_q_error_selects_with_the_online_and_evaluates_with_the_target_network():
    error = td.double_q_error(Q_TM1, A_TM1, R_T, DISCOUNT_T, Q_T_VALUE, Q_T_SELECTOR)
    expected = [0.5 + 0.9 * 10 - 1.0, -1.0 + 0.9**3 * -5 - 4.0, 2.0 - 5.0]
    torch.testing.assert_close(error, torch.tensor(expected))


def test_the_target_carries_no_gradient():
    q, value = Q_TM1.clone().requires_grad_(), Q_T_VALUE.clone().requires_grad_()
    td.double_q_error(q, A_TM1, R_T, DISCOUNT_T, value, value).sum().backward()
    assert value.grad is None
    torch.testing.assert_close(q.grad, torch.tensor([[-1.0, 0.0], [0.0, -1.0], [-1.0, 0.0]]))


def test_huber_is_quadratic_inside_and_linear_outside():
    got = td.huber(torch.tensor([0.5, -0.5, 1.0, 3.0, -3.0]))
    torch.testing.assert_close(got, torch.tensor([0.125, 0.125, 0.5, 2.5, 2.5]))


def test_squared():
    torch.testing.assert_close(td.squared(torch.tensor([3.0, -2.0])), torch.tensor([4.5, 2.0]))


@pytest.mark.parametrize("loss", [td.huber, td.squared])
def test_importance_weights_multiply_the_gradients_of_both_losses(loss):
    for size in (0.3, 5.0):  # inside and outside the quadratic part of huber
        error = torch.tensor([size, size], requires_grad=True)
        td.weighted_loss(loss(error), torch.tensor([1.0, 0.25])).backward()
        torch.testing.assert_close(error.grad[1], 0.25 * error.grad[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a_tm1", A_TM1[:2]),
        ("a_tm1", A_TM1.to(torch.int32)),
        ("r_t", R_T[:, None]),
        ("discount_t", DISCOUNT_T.to(torch.int64)),
        ("q_t_value", Q_T_VALUE[:, :1]),
        ("q_tm1", Q_TM1[:, :1]),
        ("r_t", R_T.to(torch.int64)),
    ],
)
def test_wrong_shapes_and_dtypes_are_rejected(name, value):
    arguments = dict(
        q_tm1=Q_TM1, a_tm1=A_TM1, r_t=R_T, discount_t=DISCOUNT_T, q_t_value=Q_T_VALUE, q_t_selector=Q_T_VALUE
    )
    with pytest.raises(ValueError, match=r"\[B|int64|floating"):
        td.double_q_error(**{**arguments, name: value})
