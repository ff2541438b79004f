"""Continuous actions: each maximizer against a brute-force search, the arithmetic of the loop, and bad input."""

from __future__ import annotations

import itertools
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from classic.continuous import ContinuousConfig, _Learner, learn_continuous, make_maximizer, td_target
from classic.interface import RecordingMonitor
from classic.maximizers import Ddpg, Naf, cross_entropy_search
from classic.methods import METHODS
from classic.replay_buffer import Batch, ReplayBuffer
from qfleet.cli.flags import parse
from rl.envs.config import EnvConfig
from rl.envs.make import make_environments
from rl.errors import BadInput, RunFault
from rl.evaluation import evaluate
from rl.parameters import load_weights

MAXIMIZERS = ("cem", "naf", "ddpg")
SMALL = ContinuousConfig(steps=400, warm_up=100, environments=4, updates=1, batch=16, hidden=(8,), samples=8, elites=3)


class Aim(gym.Env):
    """A contextual bandit: reward 1 - (a - s)^2, s uniform in [-1, 1]. The best action is a = s, with reward 1."""

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Box(-3.0, 3.0, (1,))  # scaled to [-1, 1], so the best action is s / 3

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.s = self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32)
        return self.s, {}

    def step(self, action):
        reward = float(1.0 - (action[0] - self.s[0]) ** 2)
        return self.reset()[0], reward, False, False, {}


class Still(gym.Env):
    """One state, reward 1 for every action, no termination; a time limit truncates the episode."""

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {}


gym.register("Still-v0", Still, max_episode_steps=1)
gym.register("Aim-v0", Aim, max_episode_steps=10)
AIM = EnvConfig(id="Aim-v0")


def grid(points, dimensions):
    """Return the actions of a regular grid over the box, [points ** dimensions, dimensions]."""
    axis = np.linspace(-1.0, 1.0, points, dtype=np.float32)
    return torch.from_numpy(np.array(list(itertools.product(axis, repeat=dimensions))))


@pytest.mark.parametrize(("dimensions", "points"), [(1, 1001), (2, 101)])
def test_naf_maximum_equals_that_of_a_grid_search(dimensions, points):
    naf = make_maximizer(ContinuousConfig(maximizer="naf", hidden=(16,)), 3, dimensions, seed=1)
    with torch.no_grad():
        for entry in naf.parameters():
            entry.mul_(3.0)  # far from the flat start: mu near the bounds too
        s, actions = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), grid(points, dimensions)
        q = naf.q(s.unsqueeze(1).expand(-1, len(actions), -1), actions.expand(20, -1, -1))
        found, where = q.max(dim=1)
        best = naf.best_action(s)
        assert best.abs().max() <= 1.0
        torch.testing.assert_close(naf.q(s, best), naf.max_q(s))
        assert (naf.max_q(s) - found).min() >= -1e-5  # nothing in the box beats it
        _, _, lower = naf.heads(s)
        steepest = torch.linalg.eigvalsh(lower @ lower.mT)[:, -1]
        half = dimensions**0.5 / (points - 1)  # from anywhere to the lattice, at most
        assert ((naf.max_q(s) - found) <= 0.5 * steepest * half**2 + 1e-5).all()
        if dimensions == 1:
            torch.testing.assert_close(best, actions[where], atol=half, rtol=0.0)


def test_naf_quadratic_by_hand():
    naf = Naf(1, 2, (4,))
    with torch.no_grad():
        naf.network[-1].weight.zero_()
        naf.network[-1].bias.copy_(torch.tensor([5.0, 0.1, -0.2, np.log(2.0), 3.0, np.log(4.0)]))
        q = naf.q(torch.zeros(1, 1), torch.tensor([[0.5, 0.5]]))
    x, y = 0.5 - np.tanh(0.1), 0.5 - np.tanh(-0.2)
    # L = [[2, 0], [3, 4]], so P = L L^T = [[4, 6], [6, 9 + 16]]
    assert q.item() == pytest.approx(5.0 - 0.5 * (4 * x * x + 2 * 6 * x * y + 25 * y * y), abs=1e-5)


@given(seed=st.integers(0, 10_000), dimensions=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_naf_p_is_positive_definite(seed, dimensions):
    naf = make_maximizer(ContinuousConfig(maximizer="naf", hidden=(8,)), 2, dimensions, seed)
    with torch.no_grad():
        _, _, lower = naf.heads(3.0 * torch.randn(10, 2, generator=torch.Generator().manual_seed(seed)))
    lower = lower.double()  # or rounding takes a small eigenvalue below 0
    assert torch.linalg.eigvalsh(lower @ lower.mT).min() > 0.0


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_cross_entropy_search_finds_the_maximum_of_a_concave_function(dimensions):
    tops = torch.rand(50, dimensions, generator=torch.Generator().manual_seed(0)) * 3.0 - 1.5  # some beyond the box
    made = torch.Generator().manual_seed(1)
    uniform = 2.0 * torch.rand(128, dimensions, generator=made) - 1.0
    normal = torch.randn(6, 128, dimensions, generator=made)

    def q(s, a):
        return -(a - s).square().sum(-1)  # the state is where its top lies

    found = cross_entropy_search(q, tops, uniform, normal, elites=16)
    torch.testing.assert_close(found, tops.clamp(-1.0, 1.0), atol=0.03, rtol=0.0)
    plain = cross_entropy_search(q, tops, uniform, normal[:0], elites=16)
    every = torch.cdist(tops, uniform).argmin(dim=1)
    torch.testing.assert_close(plain, uniform[every])  # no refinement: the best of the first draws
    assert (q(tops, found) >= q(tops, plain)).all()


def test_the_actor_loss_increases_q_and_does_not_change_the_critic():
    ddpg = make_maximizer(ContinuousConfig(hidden=(16,)), 1, 1, seed=0)
    assert isinstance(ddpg, Ddpg)
    s = torch.linspace(-1.0, 1.0, 32).unsqueeze(1)
    ddpg.actor_loss(s).backward()
    assert all(p.grad is None for p in ddpg.critic.parameters())
    by_hand = torch.autograd.grad(-ddpg.q(s, ddpg.best_action(s)).mean(), list(ddpg.actor.parameters()))
    for parameter, gradient in zip(ddpg.actor.parameters(), by_hand, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_only_a_termination_stops_the_bootstrap():
    target = td_target(torch.tensor([1.0, 1.0]), torch.tensor([False, True]), torch.tensor([10.0, torch.inf]), 0.9)
    assert target.tolist() == pytest.approx([1.0 + 0.9 * 10.0, 1.0])


def test_a_truncated_step_bootstraps_in_the_loop_too():
    config = replace(
        SMALL, maximizer="naf", steps=2_000, updates=2, gamma=0.5, learning_rate=1e-2, tau=0.1, reward_scale=1.0
    )
    learned = learn_continuous(config, EnvConfig(id="Still-v0"), 1, monitor := RecordingMonitor())
    assert learned is not None
    assert monitor.rows[-1][1]["q"] == pytest.approx(
        2.0, abs=0.1
    )  # 1 / (1 - 0.5); it would be 1 if truncation stopped the bootstrap


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_a_terminated_step_does_not_bootstrap_and_a_truncated_one_does(ends):
    """With reward 1 per step, q is 1 / (1 - 0.5) = 2 if the step is truncated and 1 if it is terminated."""
    learner = _Learner(replace(SMALL, gamma=0.5, learning_rate=1e-2, tau=0.1, reward_scale=1.0), 1, 1, seed=0)
    zeros, ones = np.zeros((16, 1), np.float32), np.ones(16, np.float32)
    a = np.linspace(-1.0, 1.0, 16, dtype=np.float32)[:, None]  # all actions, because q of others would be extrapolated
    for _ in range(400):
        _, q = learner.update(Batch(zeros, a, ones, np.full(16, ends == "terminated"), zeros))
    assert q == pytest.approx(1.0 if ends == "terminated" else 2.0, abs=0.05)


@given(capacity=st.integers(1, 7), count=st.integers(1, 20), seed=st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_the_replay_buffer_holds_the_last_transitions(capacity, count, seed):
    rng, ring = np.random.default_rng(seed), ReplayBuffer(capacity, (2,), (1,), np.float32, np.float32)
    naive, s = [], np.zeros(2, np.float32)
    for k in range(count):
        s += rng.normal(size=2).astype(np.float32)  # in place: the ring keeps copies
        step = (s, np.array([k], np.float32), float(k), bool(rng.random() < 0.3), s + 1.0)
        ring.append(*step)
        naive = [*naive, (s.copy(), *step[1:])][-capacity:]
        assert ring.size == len(naive)
    drawn = ring.sample(rng, 30)
    for row in zip(*drawn, strict=True):
        kept = naive[int(row[2]) - count]  # the reward is the step's number; the newest is last
        assert all(np.array_equal(x, y) for x, y in zip(row, kept, strict=True))
    again = [ring.sample(np.random.default_rng(1), 5) for _ in range(2)]
    assert all((x == y).all() for x, y in zip(*again, strict=True))


def test_the_replay_buffer_samples_uniformly():
    ring = ReplayBuffer(4, (), (), np.int64, np.int64)
    for k in range(6):
        ring.append(np.array(k), np.array(k), k, False, np.array(k))
    drawn = ring.sample(np.random.default_rng(0), 8_000).s
    counts = np.bincount(drawn, minlength=6)
    assert counts[:2].tolist() == [0, 0]
    assert np.abs(counts[2:] - 2_000).max() < 200  # 5 standard deviations
    with pytest.raises(ValueError, match="high"):
        ReplayBuffer(4, (), (), np.int64, np.int64).sample(np.random.default_rng(0), 1)


@pytest.mark.parametrize("maximizer", MAXIMIZERS)
def test_learning_is_reproducible(maximizer):
    config = replace(SMALL, maximizer=maximizer)
    first, second, other = (learn_continuous(config, AIM, seed, RecordingMonitor()) for seed in (3, 3, 4))
    assert all((first.arrays[name] == second.arrays[name]).all() for name in first.arrays)
    assert any((first.arrays[name] != other.arrays[name]).any() for name in first.arrays)
    s = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    a = first.policy(s)
    assert a.shape == (5, 1)
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a, first.policy(s))
    np.testing.assert_allclose(a[:1], first.policy(s[:1]), atol=1e-5)  # independent of the rest of the batch


@pytest.mark.parametrize("maximizer", MAXIMIZERS)
def test_a_small_task_is_learned(maximizer):
    """A random policy gets 10 * (1 - (3 + 1 / 3)) = -23 an episode, standing still 10 * (1 - 1 / 3) = 6.7, the best 10."""
    config = ContinuousConfig(
        maximizer=maximizer, steps=2_000, warm_up=500, updates=2, batch=32, hidden=(32,), gamma=0.5, learning_rate=3e-3
    )
    monitor = RecordingMonitor()
    learned = learn_continuous(config, AIM, 1, monitor)
    assert len(monitor.episodes) == 200
    assert [at for at, _ in monitor.rows] == [
        500 + 10 * 150
    ]  # the end; a report each 500 gradient steps would be later
    assert evaluate(learned.policy, make_environments(AIM, 10, space_kind="continuous"), 50, 0.0, 1).mean_return > 9.3


def test_the_pendulum_picture_has_the_values_of_its_observations():
    learned = learn_continuous(replace(SMALL, maximizer="naf"), EnvConfig(id="Pendulum-v1"), 1, RecordingMonitor())
    x = learned.arrays
    row, column = 60, 30
    angle, velocity = x["surface_angle"][column], x["surface_velocity"][row]
    assert x["surface_value"].shape == x["surface_action"].shape == (81, 81)
    assert (angle, velocity) == (pytest.approx(-np.pi / 4), pytest.approx(4.0))
    s = np.array([[np.cos(angle), np.sin(angle), velocity]], np.float32)
    assert x["surface_action"][row, column] == pytest.approx(learned.policy(s)[0, 0], abs=1e-5)
    naf = make_maximizer(replace(SMALL, maximizer="naf"), 3, 1, seed=1)
    load_weights(naf, {name: array for name, array in x.items() if not name.startswith("surface_")})
    with torch.no_grad():
        v = naf.max_q(torch.from_numpy(s)).item()
    assert x["surface_value"][row, column] == pytest.approx(
        v / SMALL.reward_scale, rel=1e-4
    )  # in the rewards' own unit


def test_bad_input_is_one_line():
    with pytest.raises(BadInput, match=r"CartPole-v1.*needs a bounded Box, such as Pendulum-v1's"):
        learn_continuous(SMALL, EnvConfig(id="CartPole-v1"), 1, RecordingMonitor())
    with pytest.raises(BadInput, match="--maximizer is sarsa: write one of cem, naf, ddpg"):
        parse(ContinuousConfig, ["--maximizer", "sarsa"])
    for field, value, says in (
        ("gamma", 1.1, "gamma is 1.1: write a number from 0 to 1"),
        ("steps", 100, "steps is 100: write more than warm_up, which is 100"),
        ("warm_up", 0, "warm_up is 0: write at least 1"),
        ("tau", 0.0, "tau is 0: write a number above 0 to 1"),
        ("elites", 99, "elites is 99: write at most samples, which is 8"),
        ("hidden", (), "hidden is empty: write at least one layer of at least 1 unit"),
    ):
        with pytest.raises(BadInput) as error:
            replace(SMALL, **{field: value})
        assert str(error.value) == f"ContinuousConfig.{says}"


def test_divergence_raises_run_fault():
    with pytest.raises(
        RunFault, match=r"the action values diverged within 400 agent steps: lower `learning_rate` or `tau`"
    ):
        learn_continuous(replace(SMALL, learning_rate=1e30), AIM, 1, RecordingMonitor())


def test_the_method_is_registered():
    method = METHODS["continuous"]
    assert method.space_kind == "continuous"
    assert method.setting(None).env.id == "Pendulum-v1"
