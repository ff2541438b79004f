"""The adder: its TD errors are those that the learner would compute with the actor's weights."""

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
def test_the_td_errors_of_segments_are_those_of_the_learner(double, env_id):
    """The errors of all items, including those at the end of an episode, are recomputed from the frames."""
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
    """q(s) = factors * s for observations of one number. ``calls`` records the observations of each forward pass."""

    def __init__(self, *factors):
        super().__init__()
        self.factors, self.calls = torch.tensor(factors), []

    def forward(self, x):
        self.calls.append(x.ravel().tolist())
        return x * self.factors


def steps(frames, last_is_terminal):
    """The steps of one environment with the observations ``frames`` and a reward of 1 per step."""
    for k, (before, after) in enumerate(itertools.pairwise(frames)):
        end, no = np.array([k == len(frames) - 2]), np.zeros(1, np.bool_)
        terminated, truncated = (end, no) if last_is_terminal else (no, end)
        step = Step(np.array([[after]], np.float32), np.ones(1, np.float32), terminated, truncated, no)
        seen = np.array([[before]], np.float32)
        yield ActorStep(seen, np.zeros(1, np.int64), step, np.array([k == 0]), end, np.ones(1), np.ones(1, np.int64))


def build_segments(last_is_terminal, double):
    """(segments of an episode with frames 1 to 5, online network, target network)."""
    online, target = Times(1.0, 2.0), Times(10.0, -5.0)
    spec, returns = ObservationSpec((1,), "float32"), ReturnConfig(n_step=2, gamma=0.5)
    adder, segments = Adder(returns, spec, 2, [0], (online, target), double), []
    for acted in steps([1.0, 2.0, 3.0, 4.0, 5.0], last_is_terminal):
        q = acted.observation * online.factors.numpy()
        segments += adder.add(acted, q, version=3)
    return segments, online, target


def test_td_errors_of_double_dqn():
    """n = 2, gamma 0.5, action 0 in every step; q(s) = [s, 2s], q_target(s) = [10s, -5s]: Double DQN selects 1."""
    (first, second), online, target = build_segments(last_is_terminal=False, double=True)
    assert first.td_abs.tolist() == [abs(1 + 0.5 + 0.25 * -5 * 3 - 1), abs(1 + 0.5 + 0.25 * -5 * 4 - 2)]
    assert second.td_abs.tolist() == [abs(1 + 0.5 + 0.25 * -5 * 5 - 3), abs(1 + 0.5 * -5 * 5 - 4)]
    # the online network computes only the last frame, once for each item; the actor has computed the others
    assert online.calls == [[4.0], [5.0, 5.0]]
    assert target.calls == [[3.0, 4.0], [5.0, 5.0]]
    assert first.versions.tolist() == [3, 3, 3]


def test_without_double_the_target_network_selects_and_the_online_network_is_not_called():
    (first, second), online, _ = build_segments(last_is_terminal=False, double=False)
    assert first.td_abs.tolist() == [abs(1 + 0.5 + 0.25 * 10 * 3 - 1), abs(1 + 0.5 + 0.25 * 10 * 4 - 2)]
    assert second.td_abs.tolist() == [abs(1 + 0.5 + 0.25 * 10 * 5 - 3), abs(1 + 0.5 * 10 * 5 - 4)]
    assert online.calls == []


def test_a_termination_does_not_bootstrap():
    (_, second), _, _ = build_segments(last_is_terminal=True, double=True)
    assert second.td_abs.tolist() == [abs(1 + 0.5 - 3), abs(1 - 4)]


def test_action_values_of_one_episode_are_not_used_for_the_next():
    """An episode of two steps is followed by an episode of one step."""
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
