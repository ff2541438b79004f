"""The adder: initial priorities are the learner's own TD errors, with the weights that the actor holds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from actors.adder import Adder
from rl import td
from rl.returns import ReturnConfig
from rl.segments import stack_frames
from rl.stepping import ActorStep
from rl.types import ObservationSpec, Step
from tests.actors.players import make_actor


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "PongNoFrameskip-v4"])
def test_initial_priorities_are_the_learners_td_error(double, env_id):
    """Recomputed item by item from the frames, ends of episodes included."""
    pong = env_id.startswith("Pong")
    actor, sink, _ = make_actor(double, env_id=env_id)
    for _ in range(40 if pong else 150):
        actor.step()
    actor.close()
    assert pong or any(s.terminated.any() for s in sink.segments)
    assert sink.segments
    stack = actor.environments.spec.stack
    for s in sink.segments:
        start = s.item_step.astype(int)
        s_tm1 = torch.from_numpy(stack_frames(s.frames, start, stack))
        s_t = torch.from_numpy(stack_frames(s.frames, start + s.item_length, stack))
        with torch.no_grad():
            q_t = actor.target(s_t)
            error = td.double_q_error(
                actor.online(s_tm1),
                torch.from_numpy(s.actions[start].astype(np.int64)),
                torch.from_numpy(s.r_t),
                torch.from_numpy(s.discount_t),
                q_t,
                actor.online(s_t) if double else q_t,
            )
        np.testing.assert_allclose(s.td_abs, error.abs(), rtol=1e-4, atol=1e-5)


class Times(torch.nn.Module):
    """q(s) = factors * s for observations of one number, and a record of the observations."""

    def __init__(self, *factors):
        super().__init__()
        self.factors, self.asked = torch.tensor(factors), []

    def forward(self, x):
        self.asked.append(x.ravel().tolist())
        return x * self.factors


def steps(frames, last_is_terminal):
    """One environment that shows ``frames`` one after another and pays 1 a step."""
    for k, (before, after) in enumerate(itertools.pairwise(frames)):
        end, no = np.array([k == len(frames) - 2]), np.zeros(1, np.bool_)
        terminated, truncated = (end, no) if last_is_terminal else (no, end)
        step = Step(np.array([[after]], np.float32), np.ones(1, np.float32), terminated, truncated, no)
        seen = np.array([[before]], np.float32)
        yield ActorStep(seen, np.zeros(1, np.int64), step, np.array([k == 0]), end, np.ones(1), np.ones(1, np.int64))


def rated(last_is_terminal, double):
    online, target = Times(1.0, 2.0), Times(10.0, -5.0)
    spec, returns = ObservationSpec((1,), "float32"), ReturnConfig(n_step=2, gamma=0.5)
    adder, segments = Adder(returns, spec, 2, [0], (online, target), double), []
    for acted in steps([1.0, 2.0, 3.0, 4.0, 5.0], last_is_terminal):
        q = acted.observation * online.factors.numpy()
        segments += adder.add(acted, q, version=3)
    return segments, online, target


def test_errors_written_out():
    """Frames 1..5, n = 2, gamma 0.5, action 0 always; q(s) = [s, 2s], q_target(s) = [10s, -5s]: double takes action 1."""
    (first, second), online, target = rated(last_is_terminal=False, double=True)
    assert first.td_abs.tolist() == [abs(1 + 0.5 + 0.25 * -5 * 3 - 1), abs(1 + 0.5 + 0.25 * -5 * 4 - 2)]
    assert second.td_abs.tolist() == [abs(1 + 0.5 + 0.25 * -5 * 5 - 3), abs(1 + 0.5 * -5 * 5 - 4)]
    assert online.asked == [[4.0], [5.0, 5.0]]  # the last frame alone, once for each item: the rest were acted on
    assert target.asked == [[3.0, 4.0], [5.0, 5.0]]
    assert first.versions.tolist() == [3, 3, 3]


def test_without_double_the_target_chooses_and_the_online_network_is_not_asked():
    (first, second), online, _ = rated(last_is_terminal=False, double=False)
    assert first.td_abs.tolist() == [abs(1 + 0.5 + 0.25 * 10 * 3 - 1), abs(1 + 0.5 + 0.25 * 10 * 4 - 2)]
    assert second.td_abs.tolist() == [abs(1 + 0.5 + 0.25 * 10 * 5 - 3), abs(1 + 0.5 * 10 * 5 - 4)]
    assert online.asked == []


def test_a_termination_does_not_bootstrap():
    (_, second), _, _ = rated(last_is_terminal=True, double=True)
    assert second.td_abs.tolist() == [abs(1 + 0.5 - 3), abs(1 - 4)]


def test_values_belong_to_the_frames_of_their_own_episode():
    """An episode of one step behind another: its values are its own."""
    online, target = Times(1.0, 2.0), Times(0.0, 0.0)
    adder = Adder(
        ReturnConfig(n_step=1, gamma=0.5), ObservationSpec((1,), "float32"), 5, [0], (online, target), double=True
    )
    segments = []
    for frames in ([1.0, 2.0, 3.0], [7.0, 8.0]):
        for acted in steps(frames, last_is_terminal=True):
            segments += adder.add(acted, acted.observation * online.factors.numpy(), version=0)
    assert [s.td_abs.tolist() for s in segments] == [[abs(1 - 1), abs(1 - 2)], [abs(1 - 7)]]
    assert [s.episode_id for s in segments] == [0, 1]
