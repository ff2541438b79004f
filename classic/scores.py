"""Scores other than the return: pipes passed in FlappyBird, and shortest paths in the 4x4 grid world.

FlappyBird-v0 (flappy-bird-gymnasium, Kubovcik 2023, without its lidar) gives a reward of +0.1 for a step, or instead +1
for passing a pipe, -0.5 for touching the top and -1 for dying. The first pipe is passed at step 61, and each further
one 36 to 42 steps after the last. An episode with P pipes therefore has fewer than 61 + 42 P steps, and

    return <= 0.1 * (60 + 42 P - P) + P = 6 + 5.1 P.

So a mean return of at least 6 + 5.1 P implies a mean of at least P pipes, however the episodes end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rl.envs.config import EnvConfig
from rl.envs.grid_worlds import GridWorld, next_cell
from rl.envs.spaces import SpaceKind
from rl.envs.vector import make_env
from rl.evaluation import Policy
from rl.stepping import SeedSequence

PIPES_EPISODES = 20


def pipes(policy: Policy, env: EnvConfig, episodes: int, seed: int) -> list[int]:
    """Play ``episodes`` episodes; return the pipes passed in each, from the game's own count ``info["score"]``.

    Set ``env.max_episode_steps``: without it, an episode of a perfect policy never ends.
    """
    game, passed = make_env(env), []
    for start in SeedSequence(seed, 0).draw(episodes):
        observation, _ = game.reset(seed=int(start))
        over = False
        while not over:
            action = policy(np.asarray(observation, np.float32)[None])[0]
            observation, _, terminated, truncated, info = game.step(int(action))
            over = terminated or truncated
        passed.append(int(info["score"]))
    game.close()
    return passed


def shortest_paths(policy: Policy, space_kind: SpaceKind) -> float:
    """Return the share of the 240 starts (agent, goal) of the 4x4 grid from which ``policy`` takes a shortest path."""
    rows, cols = GridWorld.rows, GridWorld.cols
    starts = [(agent, goal) for agent in range(rows * cols) for goal in range(rows * cols) if agent != goal]
    actions = policy(
        np.array(
            [GridWorld.observation(*start) for start in starts], np.float32 if space_kind == "network" else np.int8
        )
    )
    chosen = dict(zip(starts, actions.tolist(), strict=True))

    def distance(cell: int, goal: int) -> int:
        return abs(cell // cols - goal // cols) + abs(cell % cols - goal % cols)

    is_closer = {
        (agent, goal): distance(next_cell(agent, action, rows, cols), goal) < distance(agent, goal)
        for (agent, goal), action in chosen.items()
    }
    found = 0
    for agent, goal in starts:
        while agent != goal and is_closer[agent, goal]:
            agent = next_cell(agent, chosen[agent, goal], rows, cols)
        found += agent == goal
    return found / len(starts)


def scores(policy: Policy, env: EnvConfig, space_kind: SpaceKind, seed: int) -> dict[str, Any]:
    """Return the scores of an environment, by name: pipes and worst_pipes, shortest_paths, or {}."""
    if env.id.startswith("FlappyBird"):
        passed = pipes(policy, env, PIPES_EPISODES, seed)
        return {"pipes": float(np.mean(passed)), "worst_pipes": min(passed)}
    if env.id == "qfleet/GridWorld-v0":
        return {"shortest_paths": shortest_paths(policy, space_kind)}
    return {}
