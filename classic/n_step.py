"""Multi-step Q-learning off policy, three ways: behaviour, not the greedy policy, took the steps between.

    G = r_1 + gamma r_2 + ... + gamma^(m-1) r_m + gamma^m max_a q(s_m, a),   q(s_0, a_0) += alpha rho (G - q(s_0, a_0))

- ignored: m = n, rho = 1. What DQN does with n > 1; its fixed point is the value of n - 1 more steps of behaviour, not
  q* (Hernandez-Garcia & Sutton 2019 find that it pays all the same while behaviour is nearly greedy).
- cut: m ends before the first action a_1, a_2, ... that is not greedy, rho = 1 (Watkins 1989; Sutton & Barto 2018,
  12.10).
- weighted: m = n, rho = prod_{k=1}^{n-1} pi(a_k | s_k) / mu(a_k | s_k), pi greedy, mu behaviour (Sutton & Barto 2018,
  7.3): 0 where any of them is not greedy, else above 1.

Legend: ``q`` [S, A]; ``window`` the steps from s_0 on, at most n, fewer at an episode's end; ``mu`` the probability
with which behaviour took its action. A truncated episode bootstraps. All three learn side by side, each from its own
behaviour, and are compared with the true values, which the environment's model gives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from classic.interface import Learned, Method, Monitor, Setting, from_values
from classic.q_learning import n_step_target
from classic.steps import Step, episode, result, steps
from classic.value_iteration import check_model, exact_values, q_iteration, reachable, true_model
from rl.bounds import at_least, between
from rl.envs.config import EnvConfig
from rl.envs.spaces import AnyEnv
from rl.envs.vector import make_env
from rl.policies import epsilon_greedy, greedy
from rl.types import Array, EpisodeResult, Float64


@dataclass(frozen=True)
class NStepConfig:
    """Three corrections of multi-step returns, compared."""

    episodes: int = 1_500
    """Episodes of training, of each of the three."""
    gamma: float = 0.99
    """Discount a step, below 1."""
    alpha: float = 0.1
    """Step size; alpha rho is held to at most 1."""
    epsilon: float = 0.4
    """Probability that behaviour acts at random, at all times."""
    n: int = 4
    """Steps of reward before bootstrapping."""
    keep: Literal["ignored", "cut", "weighted"] = "cut"
    """Whose table becomes the policy."""
    measure_every: int = 5
    """Episodes between comparisons with the true values."""

    def __post_init__(self) -> None:
        at_least(self, 1, "episodes", "n", "measure_every")
        between(self, 0, 1, "alpha", "epsilon", above=True)
        between(self, 0, 1, "gamma", below=True)


class Taken(NamedTuple):
    """A step, and the probability ``mu`` with which behaviour took its action."""

    step: Step
    mu: float


Way = Callable[[Sequence[Taken], Float64], tuple[int, float]]  # (window, q) -> (m, rho)


def ignored(window: Sequence[Taken], q: Float64) -> tuple[int, float]:
    """(m, rho) of all the steps, as if they were greedy: q [S, A] is not used."""
    del q
    return len(window), 1.0


def cut(window: Sequence[Taken], q: Float64) -> tuple[int, float]:
    """(m, 1): the first step, and those after it up to the first that is not greedy by q [S, A] (Watkins 1989)."""
    m = 1
    while m < len(window) and _is_greedy(window[m], q):
        m += 1
    return m, 1.0


def weighted(window: Sequence[Taken], q: Float64) -> tuple[int, float]:
    """(n, rho): all steps, weighted by how much likelier the greedy policy of q [S, A] takes them than behaviour."""
    return len(window), float(np.prod([_is_greedy(taken, q) / taken.mu for taken in window[1:]]))


def _is_greedy(taken: Taken, q: Float64) -> bool:
    return bool(taken.step.a == q[taken.step.s].argmax())


WAYS: dict[str, Way] = {"ignored": ignored, "cut": cut, "weighted": weighted}


def update(q: Float64, window: Sequence[Taken], way: Way, gamma: float, alpha: float) -> None:
    """Move q(s_0, a_0), of q [S, A] in place, by min(1, alpha rho) of the way to G, so that no update overshoots."""
    m, rho = way(window, q)
    first, last = window[0].step, window[m - 1].step
    bootstrap = 0.0 if last.terminated else float(q[last.s_next].max())
    target = n_step_target([taken.step.reward for taken in window[:m]], gamma, bootstrap)
    q[first.s, first.a] += min(1.0, alpha * rho) * (target - q[first.s, first.a])


class _Learner:
    """One table, and the behaviour that it learns from."""

    def __init__(self, config: NStepConfig, env: EnvConfig, seed: int, way: Way, shape: tuple[int, int]) -> None:
        self.c, self.way, self.q = config, way, np.zeros(shape)
        self._rng = np.random.default_rng([seed, 0])
        self.env = make_env(env, "table")
        self._stream = steps(self.env, self._act, seed)

    def _act(self, s: int) -> int:
        return int(epsilon_greedy(self.q[s][None], self.c.epsilon, self._rng)[0])

    def _taken(self, step: Step) -> Taken:
        random = self.c.epsilon / self.q.shape[1]
        return Taken(step, random + (1.0 - self.c.epsilon) * (step.a == self.q[step.s].argmax()))

    def episode(self) -> EpisodeResult:
        """Play one episode and learn from each of its steps."""
        window: deque[Taken] = deque()
        played = []
        for step in episode(self._stream):
            played.append(step)
            window.append(self._taken(step))
            done = step.terminated or step.truncated
            while len(window) == self.c.n or (done and window):
                update(self.q, list(window), self.way, self.c.gamma, self.c.alpha)
                window.popleft()
        return result(played, self.c.epsilon)


class Truth:
    """The true values, and a table's error and regret, over the states that can be reached from the start."""

    def __init__(self, env: AnyEnv, env_id: str, gamma: float) -> None:
        self.model, self._gamma = true_model(env, env_id), gamma
        self.v = q_iteration(self.model, gamma, 1e-9).max(axis=1)
        self.counted = reachable(self.model, np.ones_like(self.model.rewards), int(env.reset(seed=0)[0]))

    def error(self, q: Float64) -> float:
        """sqrt mean_s (max_a q(s, a) - v*(s))^2 of a table q [S, A], in units of return."""
        return float(np.sqrt(np.mean((q.max(axis=1) - self.v)[self.counted] ** 2)))

    def regret(self, q: Float64) -> float:
        """mean_s (v*(s) - v_greedy(s)): what acting greedily by q [S, A] costs, in units of discounted return."""
        policy = np.eye(q.shape[1])[greedy(q)]
        return float(np.mean((self.v - exact_values(self.model, policy, self._gamma))[self.counted]))


def n_step(config: NStepConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Off-policy n-step Q-learning, the steps between ignored, cut or weighted (Sutton & Barto 2018, 7.3 and 12.10).

    Returns the table of the way that `keep` names, and the errors of all three. Raises BadInput without a true model.
    """
    made = make_env(env, "table")
    truth = Truth(made, env.id, config.gamma)
    made.close()
    learners = {name: _Learner(config, env, seed, way, truth.model.rewards.shape) for name, way in WAYS.items()}
    rows: list[dict[str, float]] = []
    for number in range(1, config.episodes + 1):
        results = {name: learner.episode() for name, learner in learners.items()}
        monitor.episode(results[config.keep])
        if number % config.measure_every == 0:
            rows.append({f"{name}_error": truth.error(learner.q) for name, learner in learners.items()})
            rows[-1] |= {f"{name}_regret": truth.regret(learner.q) for name, learner in learners.items()}
            monitor.report(number, rows[-1])
    q = learners[config.keep].q
    for learner in learners.values():
        learner.env.close()
    curves = {key: np.array([row[key] for row in rows]) for key in (rows[0] if rows else ())}
    measured = np.arange(1, len(rows) + 1) * config.measure_every
    means = {f"mean_{key}": float(curve.mean()) for key, curve in curves.items()}
    last = {f"last_{key}": float(curve[-1]) for key, curve in curves.items()}

    def values(observations: Array) -> Array:
        return q[observations.astype(np.int64)]

    return from_values(values, {"q": q, "measured_at": measured, **curves}, **means, **last)


METHODS = {
    "n-step": Method(
        "multi-step returns off policy: ignored, cut, or weighted",
        n_step,
        "table",
        (Setting(EnvConfig(id="CliffWalking-v1", max_episode_steps=200), NStepConfig(), episodes=10),),
        check_model,
    ),
}
