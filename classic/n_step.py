"""Off-policy n-step Q-learning, with three off-policy corrections compared.

    G = r_1 + gamma r_2 + ... + gamma^(m-1) r_m + gamma^m max_a q(s_m, a),   q(s_0, a_0) += alpha rho (G - q(s_0, a_0))

The target policy pi is greedy. The behaviour policy b is epsilon-greedy and chooses the actions a_1, a_2, ... whose
rewards enter G. The corrections differ in how they treat actions that pi would not choose:

- ignored: no correction; m = n, rho = 1, as in n-step DQN. Its fixed point is not q*, because the n - 1 actions after
  a_0 come from b. Hernandez-Garcia & Sutton 2019 find that it still helps while b is nearly greedy.
- cut: m ends before the first action a_1, a_2, ... that is not greedy; rho = 1. Watkins's Q(lambda) cuts its traces
  there, too (Watkins 1989; Sutton & Barto 2018, section 12.10).
- weighted: importance sampling; m = n, rho = prod_{k=1}^{n-1} pi(a_k | s_k) / b(a_k | s_k) (Sutton & Barto 2018,
  section 7.3). It is 0 if any of these actions is not greedy, otherwise at least 1.

Legend: ``q`` [S, A]; ``window`` the steps from s_0 on: n, or fewer at the end of an episode. A truncated episode
bootstraps. Each correction learns its own table from its own episodes. The true values, for the comparison, come from
the model of the environment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from classic.interface import Learned, Method, Monitor, Setting, from_values
from classic.q_learning import n_step_target
from classic.steps import Step, episode_result, next_episode, play_steps
from classic.value_iteration import check_model, exact_values, q_iteration, reachable_states, true_model
from rl.bounds import at_least, between
from rl.envs.config import EnvConfig
from rl.envs.spaces import AnyEnv
from rl.envs.vector import make_env
from rl.policies import epsilon_greedy, greedy
from rl.types import Array, EpisodeResult, Float64


@dataclass(frozen=True)
class NStepConfig:
    """Compare three off-policy corrections of n-step returns: ignored (none), cut, weighted (importance sampling)."""

    episodes: int = 1_500
    """Episodes of training with each correction."""
    gamma: float = 0.99
    """Discount factor, below 1."""
    alpha: float = 0.1
    """Step size; alpha times the importance weight is limited to 1."""
    epsilon: float = 0.4
    """Probability of a random action of the behaviour policy, constant."""
    n: int = 4
    """Steps of reward before bootstrapping."""
    keep: Literal["ignored", "cut", "weighted"] = "cut"
    """Correction whose table is returned and evaluated."""
    measure_every: int = 5
    """Episodes between measurements of the error and the regret."""

    def __post_init__(self) -> None:
        at_least(self, 1, "episodes", "n", "measure_every")
        between(self, 0, 1, "alpha", "epsilon", above=True)
        between(self, 0, 1, "gamma", below=True)


class OffPolicyStep(NamedTuple):
    """A step, and the probability b(a | s) with which the behaviour policy chose its action."""

    step: Step
    behaviour_probability: float


Correction = Callable[[Sequence[OffPolicyStep], Float64], tuple[int, float]]  # (window, q) -> (m, rho)


def uncorrected(window: Sequence[OffPolicyStep], q: Float64) -> tuple[int, float]:
    """Return (n, 1): use all steps as if their actions were greedy; q [S, A] is not used."""
    del q
    return len(window), 1.0


def cut_at_nongreedy(window: Sequence[OffPolicyStep], q: Float64) -> tuple[int, float]:
    """Return (m, 1): use the first step and the greedy ones directly after it; greedy with respect to q [S, A]."""
    m = 1
    while m < len(window) and _is_greedy(window[m], q):
        m += 1
    return m, 1.0


def importance_weighted(window: Sequence[OffPolicyStep], q: Float64) -> tuple[int, float]:
    """Return (n, rho): use all steps, with the importance sampling ratio rho of the greedy policy of q [S, A]."""
    return len(window), float(np.prod([_is_greedy(each, q) / each.behaviour_probability for each in window[1:]]))


def _is_greedy(each: OffPolicyStep, q: Float64) -> bool:
    return bool(each.step.a == q[each.step.s].argmax())


CORRECTIONS: dict[str, Correction] = {"ignored": uncorrected, "cut": cut_at_nongreedy, "weighted": importance_weighted}


def update(q: Float64, window: Sequence[OffPolicyStep], correction: Correction, gamma: float, alpha: float) -> None:
    """Update q(s_0, a_0) of q [S, A] in place: += min(1, alpha rho) (G - q(s_0, a_0)), which never overshoots G."""
    m, rho = correction(window, q)
    first, last = window[0].step, window[m - 1].step
    bootstrap = 0.0 if last.terminated else float(q[last.s_next].max())
    target = n_step_target([each.step.reward for each in window[:m]], gamma, bootstrap)
    q[first.s, first.a] += min(1.0, alpha * rho) * (target - q[first.s, first.a])


class _Learner:
    """A table that learns with one correction, from epsilon-greedy episodes of its own."""

    def __init__(
        self, config: NStepConfig, env: EnvConfig, seed: int, correction: Correction, shape: tuple[int, int]
    ) -> None:
        self.c, self.correction, self.q = config, correction, np.zeros(shape)
        self._rng = np.random.default_rng([seed, 0])
        self.env = make_env(env, "table")
        self._stream = play_steps(self.env, self._act, seed)

    def _act(self, s: int) -> int:
        return int(epsilon_greedy(self.q[s][None], self.c.epsilon, self._rng)[0])

    def _with_probability(self, step: Step) -> OffPolicyStep:
        uniform = self.c.epsilon / self.q.shape[1]
        return OffPolicyStep(step, uniform + (1.0 - self.c.epsilon) * (step.a == self.q[step.s].argmax()))

    def episode(self) -> EpisodeResult:
        """Play one episode and update q once for each step; returns the episode's result."""
        window: deque[OffPolicyStep] = deque()
        played = []
        for step in next_episode(self._stream):
            played.append(step)
            window.append(self._with_probability(step))
            done = step.terminated or step.truncated
            while len(window) == self.c.n or (done and window):
                update(self.q, list(window), self.correction, self.c.gamma, self.c.alpha)
                window.popleft()
        return episode_result(played, self.c.epsilon)


class TrueValues:
    """The optimal values v* of an environment, and the error and regret of a table over the reachable states."""

    def __init__(self, env: AnyEnv, env_id: str, gamma: float) -> None:
        self.model, self._gamma = true_model(env, env_id), gamma
        self.v = q_iteration(self.model, gamma, 1e-9).max(axis=1)
        self.reachable = reachable_states(self.model, np.ones_like(self.model.rewards), int(env.reset(seed=0)[0]))

    def error(self, q: Float64) -> float:
        """Return sqrt(mean_s (max_a q(s, a) - v*(s))^2) of a table q [S, A], in units of return."""
        return float(np.sqrt(np.mean((q.max(axis=1) - self.v)[self.reachable] ** 2)))

    def regret(self, q: Float64) -> float:
        """Return mean_s (v*(s) - v_pi(s)), pi the greedy policy of q [S, A], in units of return."""
        policy = np.eye(q.shape[1])[greedy(q)]
        return float(np.mean((self.v - exact_values(self.model, policy, self._gamma))[self.reachable]))


def n_step(config: NStepConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Off-policy n-step Q-learning with each of the three corrections (Sutton & Barto 2018, sections 7.3 and 12.10).

    Returns the table q [S, A] of the correction `keep`. Arrays and metrics have the error and the regret of all three.
    Raises BadInput without a true model.
    """
    environment = make_env(env, "table")
    true_values = TrueValues(environment, env.id, config.gamma)
    environment.close()
    learners = {
        name: _Learner(config, env, seed, correction, true_values.model.rewards.shape)
        for name, correction in CORRECTIONS.items()
    }
    rows: list[dict[str, float]] = []
    for number in range(1, config.episodes + 1):
        results = {name: learner.episode() for name, learner in learners.items()}
        monitor.episode(results[config.keep])
        if number % config.measure_every == 0:
            rows.append({f"{name}_error": true_values.error(learner.q) for name, learner in learners.items()})
            rows[-1] |= {f"{name}_regret": true_values.regret(learner.q) for name, learner in learners.items()}
            monitor.report(number, rows[-1])
    q = learners[config.keep].q
    for learner in learners.values():
        learner.env.close()
    curves = {key: np.array([row[key] for row in rows]) for key in (rows[0] if rows else ())}
    measured_at = np.arange(1, len(rows) + 1) * config.measure_every
    means = {f"mean_{key}": float(curve.mean()) for key, curve in curves.items()}
    last = {f"last_{key}": float(curve[-1]) for key, curve in curves.items()}

    def values(observations: Array) -> Array:
        return q[observations.astype(np.int64)]

    return from_values(values, {"q": q, "measured_at": measured_at, **curves}, **means, **last)


METHODS = {
    "n-step": Method(
        "off-policy n-step Q-learning: no correction, Watkins's cut, and importance sampling, compared",
        n_step,
        "table",
        (Setting(EnvConfig(id="CliffWalking-v1", max_episode_steps=200), NStepConfig(), episodes=10),),
        check_model,
    ),
}
