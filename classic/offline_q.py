"""Offline tabular Q-learning: learns from a Minari dataset only, without stepping the environment.

A sweep moves each q(s, a) towards the mean of its targets over all transitions with (s, a) (batch updating, Sutton &
Barto 2018, section 6.3):

    q(s, a) += alpha (mean[r + gamma max_a' q(s', a')] - q(s, a))

For every alpha, the fixed point is q* of the maximum-likelihood model of the dataset. The maximum and the greedy policy
are restricted to actions that occur in the dataset in that state (batch-constrained Q-learning, Fujimoto et al. 2019,
section 4.1). Otherwise, with negative rewards, an action that was never tried would look best with its initial value 0.

A state in which the dataset has no action has the value 0. In a state that does not occur, the policy takes the first
action. A terminal state does not bootstrap; a truncated episode does.

Legend: ``q`` [S, A]; ``counts`` [S, A] how often each (s, a) occurs; T transitions (s_tm1, a_tm1, r_t, s_t), as in
`rl.types`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from classic.interface import Learned, Method, Monitor, Setting, from_values
from classic.offline_data import TabularDataset, open_tabular, read_tabular
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
NOTE_PERIOD = 100  # episodes between progress notes


@dataclass(frozen=True)
class OfflineQConfig:
    """Tabular Q-learning from a Minari dataset, without stepping the environment."""

    dataset: str = "qfleet/babyai-pickup-fullobs-v0"
    """Minari id, or a directory such as ./pickup-v0; qfleet classic make-dataset writes one."""
    gamma: float = 0.99
    """Discount factor."""
    alpha: float = 1.0
    """Step size towards the mean target."""
    sweeps: int = 2_000
    """Maximum number of sweeps over the dataset."""
    tolerance: float = 1e-8
    """Learning stops when no value changes by more than this in a sweep, in units of return."""
    epsilon: float = 0.1
    """Epsilon of the epsilon-greedy policy that is saved as `policy` in values.safetensors, before its decay."""
    epsilon_end: float = 0.01
    """Lower bound of epsilon."""
    epsilon_decay: float = 1.0
    """Factor by which epsilon is multiplied for each episode of the dataset; 1: constant."""
    training_seeds: int = 1_000
    """Maximum number of the dataset's seeds on which the greedy policy is evaluated; 0: none."""
    extremes: int = 4
    """Number of states with the highest values, and with the lowest, to draw."""

    def __post_init__(self) -> None:
        between(self, 0, 1, "gamma", "epsilon", "epsilon_end", "epsilon_decay")
        between(self, 0, 1, "alpha", above=True)
        at_least(self, 1, "sweeps")
        at_least(self, 0, "tolerance", "training_seeds", "extremes")

    def epsilon_at(self, episode: int) -> float:
        """Return epsilon after ``episode`` episodes."""
        return decayed(self.epsilon, self.epsilon_end, self.epsilon_decay, episode)


def mask_untried(q: Float64, counts: Int64) -> Float64:
    """Return q [S, A] with -inf for actions with a count of 0; q is 0 in states where no action was tried."""
    return np.where(counts > 0, q, np.where(counts.any(axis=1, keepdims=True), -np.inf, 0.0))


def sweep(q: Float64, counts: Int64, data: TabularDataset, gamma: float, alpha: float) -> float:
    """Update q [S, A] in place by the equation above, once for each (s, a); returns the largest change."""
    value = mask_untried(q, counts).max(axis=1)
    target = data.r_t + gamma * np.where(data.terminated, 0.0, value[data.s_t])
    total = np.bincount(data.s_tm1 * data.actions + data.a_tm1, target, q.size).reshape(q.shape)
    change = np.where(counts > 0, alpha * (total / np.maximum(counts, 1) - q), 0.0)
    q += change
    return float(np.abs(change).max())


def check_dataset(config: OfflineQConfig, env: EnvConfig) -> None:
    """Raise BadInput unless the dataset exists and suits a table and ``env``."""
    open_tabular(config.dataset, env)


def offline_q(config: OfflineQConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Learn a table from the dataset, and evaluate its greedy policy on the dataset's seeds.

    ``seed`` is not used: nothing is random. Arrays of the result: q, counts and policy [S, A]; first_seen [S, 2]
    (episode, step); for MiniGrid, highest and lowest, uint8 [K, H, W, 3], pictures of the states with the highest and
    lowest values. Rows are states, as in `StateIndex`. Raises BadInput if the dataset does not fit.
    """
    del seed
    data = read_tabular(config.dataset, env)
    counts, episodes = data.counts, len(data.lengths)
    monitor.note(f"{episodes:,} episodes, {len(data.r_t):,} steps, {data.states.count:,} states")
    q = np.zeros(counts.shape)
    sweeps, change = 0, np.inf
    while sweeps < config.sweeps and change > config.tolerance:
        change, sweeps = sweep(q, counts, data, config.gamma, config.alpha), sweeps + 1
        monitor.report(sweeps, {"max_change": change, "mean_value": float(q[counts > 0].mean())})
    if change > config.tolerance:
        monitor.note(f"not converged after {sweeps:,} sweeps (values still change by {change:.2g}): raise `sweeps`")
    known, epsilon = mask_untried(q, counts), config.epsilon_at(episodes)

    def values(observations: Array) -> Array:
        rows = data.states.lookup(observations)
        return np.where((rows == UNKNOWN)[:, None], 0.0, known[rows])

    pictures, where = extreme_states(data, known, config.extremes)
    arrays = {
        "q": q,
        "counts": counts,
        "first_seen": data.first_seen,
        "policy": epsilon_greedy_probabilities(known, epsilon),
        **pictures,
    }
    metrics = {"sweeps": sweeps, "max_change": change, "epsilon": epsilon, **dataset_statistics(data, known), **where}
    played = play_training_seeds(lambda o: greedy(values(o)), data, env, config.training_seeds, monitor)
    return from_values(values, arrays, **metrics, **played)


def extreme_states(
    data: TabularDataset, q: Float64, count: int
) -> tuple[dict[str, Array], dict[str, list[dict[str, Any]]]]:
    """Find the ``count`` states with the highest max_a q(s, a), q [S, A], and the ``count`` with the lowest.

    Only states with an action in the dataset count. Returns two dicts with the keys "highest" and "lowest": pictures,
    uint8 [K, H, W, 3] (only for MiniGrid), and for each state its value, its greedy action, and where it first occurs.
    """
    has_action, first_seen = np.flatnonzero(data.counts.any(axis=1)), data.first_seen
    order = has_action[np.argsort(-q[has_action].max(axis=1), kind="stable")]
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
        if data.is_minigrid and len(rows):
            states = [unpack_grid(observation) for observation in data.states.observations(rows.tolist())]
            pictures[name] = np.stack([draw_grid(state) for state in states])
            where[name] = [{**at, "mission": state.mission} for at, state in zip(where[name], states, strict=True)]
    return pictures, where


def dataset_statistics(data: TabularDataset, q: Float64) -> dict[str, Any]:
    """Return statistics of the dataset and of max_a q(s, a) over the states with an action; q [S, A] is masked."""
    counts = data.counts
    has_action = counts.any(axis=1)
    value = q[has_action].max(axis=1)
    visits = np.bincount(data.observed, minlength=data.states.count)
    return {
        "episodes": len(data.lengths),
        "steps": len(data.r_t),
        "states": int((visits > 0).sum()),
        "states_seen_again": int((visits > 1).sum()),
        "actions_per_state": float((counts[has_action] > 0).sum(axis=1).mean()),
        "action_share": [float(share) for share in counts.sum(axis=0) / counts.sum()],
        "value_min": float(value.min()),
        "value_mean": float(value.mean()),
        "value_max": float(value.max()),
        "value_quantiles": {f"{p:g}": float(v) for p, v in zip(QUANTILES, np.quantile(value, QUANTILES), strict=True)},
        "data_return": float(data.returns.mean()),
    }


def play_training_seeds(
    policy: Policy, data: TabularDataset, env: EnvConfig, most: int, monitor: Monitor
) -> dict[str, Any]:
    """Play one episode with ``policy`` for each seed of the dataset, at most ``most`` of them; return the metrics.

    - training_episodes: number of episodes played
    - training_return: their mean undiscounted return
    - training_data_return: mean undiscounted return of the dataset's episodes with the same seeds
    - training_unknown: share of the steps in states without an action in the dataset
    - training_other_starts: number of seeds that start in another state than in the dataset, because the environment
      has another version

    Returns {} if no episode has a seed.
    """
    chosen = [k for k, seed in enumerate(data.seeds) if seed is not None][:most]
    if not chosen:
        monitor.note("not evaluated on the dataset's seeds: " + ("it has none" if most else "`training_seeds` is 0"))
        return {}
    has_action = set(data.s_tm1.tolist())
    returns, visited, other_starts = [], [], 0
    environment = make_env(env, "table")
    for k in chosen:
        total, rows = play_episode(policy, environment, int(data.seeds[k] or 0), data.states.lookup)
        returns.append(total)
        visited += rows
        other_starts += rows[0] != data.starts[k]
        if len(returns) % NOTE_PERIOD == 0:
            monitor.note(f"evaluated on {len(returns):,} of the dataset's {len(chosen):,} seeds")
    environment.close()
    if other_starts:
        monitor.note(
            f"{other_starts:,} of {len(chosen):,} seeds start in another state than in the dataset: {env.id} has "
            "another version now, or the dataset is of another environment"
        )
    return {
        "training_episodes": len(chosen),
        "training_return": float(np.mean(returns)),
        "training_data_return": float(data.returns[chosen].mean()),
        "training_unknown": float(np.mean([s not in has_action for s in visited])),
        "training_other_starts": int(other_starts),
    }


def play_episode(policy: Policy, env: Any, seed: int, rows_of: Callable[[Array], Array]) -> tuple[float, list[int]]:
    """Play an episode of T steps from ``seed``; return its undiscounted return and the rows [T] of its states.

    ``rows_of`` maps observations [N, ...] to rows [N].
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
        "offline tabular Q-learning from a Minari dataset",
        offline_q,
        "table",
        (Setting(EnvConfig(id="BabyAI-Pickup-v0"), OfflineQConfig(), episodes=30),),
        check_dataset,
        headline="training_return",
    )
}
