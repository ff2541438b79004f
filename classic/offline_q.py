"""Q-learning from a dataset alone, in a table.

Legend: ``q`` [S, A]; ``counts`` [S, A] how often the data took an action in a state; T transitions (s_tm1, a_tm1, r_t,
s_t).

One sweep moves q(s, a) towards the mean of its targets over all transitions that took a in s (batch updating, Sutton &
Barto 2018, 6.3): q(s, a) += alpha (mean[r + gamma max_a' q(s', a')] - q(s, a)). Whatever alpha, it ends at the optimal
values of the model that the data themselves are. The maximum, and the greedy policy, are over the actions that the data
took in that state (batch-constrained Q-learning, Fujimoto et al. 2019, 4.1): where rewards are negative, the initial 0
of an action that was never tried would exceed every true value. A state that the data never leave is worth 0; in a
state that they never saw the policy takes the first action. A terminal state does not bootstrap; a truncated episode
does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from classic.interface import Learned, Method, Monitor, Setting, from_values
from classic.offline_data import TableData, opened, read
from classic.tables import UNKNOWN
from rl.bounds import at_least, between
from rl.envs.config import EnvConfig
from rl.envs.grid_states import draw_grid, unpack_grid
from rl.envs.vector import make_env
from rl.evaluation import Policy
from rl.policies import epsilon_greedy_probabilities, greedy
from rl.schedules import decayed
from rl.types import Array, Float64, Int64

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SAY_EVERY = 100  # episodes


@dataclass(frozen=True)
class OfflineQConfig:
    """Tabular Q-learning over a Minari dataset."""

    dataset: str = "qfleet/babyai-pickup-fullobs-v0"
    """Minari id, or a directory such as ./pickup-v0 (qfleet classic make-dataset writes one)."""
    gamma: float = 0.99
    """Discount a step."""
    alpha: float = 1.0
    """Step size; 1: the whole way to the mean target."""
    sweeps: int = 2_000
    """Most sweeps over the data."""
    tolerance: float = 1e-8
    """Largest change of a value in a sweep at which learning ends, in units of reward."""
    epsilon: float = 0.1
    """Probability of a random action in the policy table, before its decay."""
    epsilon_end: float = 0.01
    """Probability of a random action that the decay never falls below."""
    epsilon_decay: float = 1.0
    """Factor on epsilon for each episode of the dataset; 1: epsilon is fixed."""
    training_seeds: int = 1_000
    """Most seeds of the dataset on which the greedy policy plays afterwards; 0: none."""
    extremes: int = 4
    """States of the highest and of the lowest value that are drawn."""

    def __post_init__(self) -> None:
        between(self, 0, 1, "gamma", "epsilon", "epsilon_end", "epsilon_decay")
        between(self, 0, 1, "alpha", above=True)
        at_least(self, 1, "sweeps")
        at_least(self, 0, "tolerance", "training_seeds", "extremes")

    def epsilon_at(self, episode: int) -> float:
        """Probability of a random action after ``episode`` episodes."""
        return decayed(self.epsilon, self.epsilon_end, self.epsilon_decay, episode)


def taken_values(q: Float64, counts: Int64) -> Float64:
    """q [S, A] with -inf for actions that the data never took in a state; zeros where they took none."""
    return np.where(counts > 0, q, np.where(counts.any(axis=1, keepdims=True), -np.inf, 0.0))


def sweep(q: Float64, counts: Int64, data: TableData, gamma: float, alpha: float) -> float:
    """One sweep (the equation above) of q [S, A], changed in place, by counts [S, A]; returns the largest change."""
    value = taken_values(q, counts).max(axis=1)
    target = data.r_t + gamma * np.where(data.terminated, 0.0, value[data.s_t])
    total = np.bincount(data.s_tm1 * data.actions + data.a_tm1, target, q.size).reshape(q.shape)
    change = np.where(counts > 0, alpha * (total / np.maximum(counts, 1) - q), 0.0)
    q += change
    return float(np.abs(change).max())


def check(config: OfflineQConfig, env: EnvConfig) -> None:
    """Raise BadInput unless the dataset exists and suits a table and the environment."""
    opened(config.dataset, env)


def offline_q(config: OfflineQConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Learn the table from the data, and play its greedy policy on their seeds; ``seed`` is not used.

    Arrays: q, counts and policy [S, A], first_seen [S, 2] (episode, step), and of MiniGrid's worlds highest and lowest
    uint8 [K, H, W, 3], pictures of the states with these values. Rows are the states in order of appearance. Raises
    BadInput.
    """
    del seed
    data = read(config.dataset, env)
    counts, episodes = data.counts, len(data.lengths)
    monitor.note(f"{episodes:,} episodes, {len(data.r_t):,} steps, {data.states.count:,} states")
    q = np.zeros(counts.shape)
    done, change = 0, np.inf
    while done < config.sweeps and change > config.tolerance:
        change, done = sweep(q, counts, data, config.gamma, config.alpha), done + 1
        monitor.report(done, {"max_change": change, "mean_value": float(q[counts > 0].mean())})
    if change > config.tolerance:
        monitor.note(f"values still change by {change:.2g} after {done:,} sweeps: raise `sweeps`")
    known, epsilon = taken_values(q, counts), config.epsilon_at(episodes)

    def values(observations: Array) -> Array:
        rows = data.states.rows(observations)
        return np.where((rows == UNKNOWN)[:, None], 0.0, known[rows])

    pictures, where = extremes(data, known, config.extremes)
    arrays = {
        "q": q,
        "counts": counts,
        "first_seen": data.first_seen,
        "policy": epsilon_greedy_probabilities(known, epsilon),
        **pictures,
    }
    figures = {"sweeps": done, "max_change": change, "epsilon": epsilon, **statistics(data, known), **where}
    played = on_training_seeds(lambda o: greedy(values(o)), data, env, config.training_seeds, monitor)
    return from_values(values, arrays, **figures, **played)


def extremes(data: TableData, q: Float64, count: int) -> tuple[dict[str, Array], dict[str, list[dict[str, Any]]]]:
    """The ``count`` states of highest and of lowest max_a q(s, a), q [S, A], in which the data act.

    Returns their pictures, uint8 [K, H, W, 3] (MiniGrid's worlds alone), and where each was first seen, both by
    `highest` and `lowest`.
    """
    acted, first_seen = np.flatnonzero(data.counts.any(axis=1)), data.first_seen
    order = acted[np.argsort(-q[acted].max(axis=1), kind="stable")]
    pictures: dict[str, Array] = {}
    where: dict[str, list[dict[str, Any]]] = {}
    for name, rows in (("highest", order[:count]), ("lowest", order[::-1][:count])):
        where[name] = [
            {
                "value": float(q[s].max()),
                "action": int(q[s].argmax()),
                "episode": int(first_seen[s, 0]),
                "step": int(first_seen[s, 1]),
            }
            for s in rows
        ]
        if data.grid and len(rows):
            seen = [unpack_grid(observation) for observation in data.states.observations(rows.tolist())]
            pictures[name] = np.stack([draw_grid(state) for state in seen])
            where[name] = [{**at, "mission": state.mission} for at, state in zip(where[name], seen, strict=True)]
    return pictures, where


def statistics(data: TableData, q: Float64) -> dict[str, Any]:
    """Figures of the data, and of max_a q(s, a) over the states in which they act; q [S, A] as of `taken_values`."""
    counts = data.counts
    acted = counts.any(axis=1)
    value = q[acted].max(axis=1)
    visits = np.bincount(data.observed, minlength=data.states.count)
    return {
        "episodes": len(data.lengths),
        "steps": len(data.r_t),
        "states": int((visits > 0).sum()),
        "states_seen_again": int((visits > 1).sum()),
        "actions_per_state": float((counts[acted] > 0).sum(axis=1).mean()),
        "action_share": [float(share) for share in counts.sum(axis=0) / counts.sum()],
        "value_min": float(value.min()),
        "value_mean": float(value.mean()),
        "value_max": float(value.max()),
        "value_quantiles": {f"{p:g}": float(v) for p, v in zip(QUANTILES, np.quantile(value, QUANTILES), strict=True)},
        "data_return": float(data.returns.mean()),
    }


def on_training_seeds(policy: Policy, data: TableData, env: EnvConfig, most: int, monitor: Monitor) -> dict[str, Any]:
    """Play ``policy`` once from the seed of each of the first ``most`` episodes that have one.

    Returns training_episodes; training_return, undiscounted; training_data_return, of the data's own episodes;
    training_unknown, the share of its steps in states in which the data never act; training_other_starts, how many
    seeds begin in another state here than in the data (an environment of another version). {} where no episode has a
    seed.
    """
    chosen = [k for k, seed in enumerate(data.seeds) if seed is not None][:most]
    if not chosen:
        monitor.note("no seeds to play on" if most else "not played on the training seeds")
        return {}
    acted_in = set(data.s_tm1.tolist())
    returns, visited, elsewhere = [], [], 0
    environment = make_env(env, "table")
    for k in chosen:
        total, rows = play(policy, environment, int(data.seeds[k] or 0), data.states.rows)
        returns.append(total)
        visited += rows
        elsewhere += rows[0] != data.starts[k]
        if len(returns) % SAY_EVERY == 0:
            monitor.note(f"greedy policy played on {len(returns):,} of {len(chosen):,} training seeds")
    environment.close()
    if elsewhere:
        monitor.note(
            f"{elsewhere} of {len(chosen)} seeds begin elsewhere than in the dataset: {env.id} is another version"
        )
    return {
        "training_episodes": len(chosen),
        "training_return": float(np.mean(returns)),
        "training_data_return": float(data.returns[chosen].mean()),
        "training_unknown": float(np.mean([s not in acted_in for s in visited])),
        "training_other_starts": int(elsewhere),
    }


def play(policy: Policy, env: Any, seed: int, rows_of: Callable[[Array], Array]) -> tuple[float, list[int]]:
    """One episode of T steps from ``seed``: its undiscounted return, and the rows [T] of the states acted in.

    ``rows_of``: observations [N, ...] -> rows [N].
    """
    assert isinstance(env.action_space, gym.spaces.Discrete)
    observation, _ = env.reset(seed=seed)
    total, rows, done = 0.0, [], False
    while not done:
        batch = np.asarray(observation)[None]
        rows.append(int(rows_of(batch)[0]))
        observation, reward, terminated, truncated, _ = env.step(int(policy(batch)[0]) + int(env.action_space.start))
        total, done = total + float(reward), terminated or truncated
    return total, rows


METHODS: Mapping[str, Method] = {
    "offline-q": Method(
        "tabular Q-learning over a Minari dataset",
        offline_q,
        "table",
        (Setting(EnvConfig(id="BabyAI-Pickup-v0"), OfflineQConfig(), episodes=30),),
        check,
        headline="training_return",
    )
}
