"""Figures beside the return: FlappyBird's pipes, and shortest paths in the 4x4 grid.

FlappyBird-v0 (flappy-bird-gymnasium, Kubovcik 2023, without its lidar) rewards +0.1 a step, +1 instead where a pipe is
passed, -0.5 where the bird touches the top and -1 where it dies. The first pipe is passed at step 61, each other one 36
to 42 steps after the last, so that an episode of P pipes has fewer than 61 + 42 P steps and

    return <= 0.1 * (60 + 42 P - P) + P = 6 + 5.1 P.

A mean return of at least 6 + 5.1 P thus proves a mean of at least P pipes, however the episodes ended.
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
    """Pipes passed in each of ``episodes`` episodes under ``policy``, by the game's own count, ``info["score"]``.

    Without ``env.max_episode_steps`` an episode of a player without fault does not end.
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


def shortest_paths(policy: Policy, takes: SpaceKind) -> float:
    """Share of the 240 starts (agent, goal) of the 4x4 grid from which ``policy`` takes a shortest path."""
    rows, cols = GridWorld.rows, GridWorld.cols
    starts = [(agent, goal) for agent in range(rows * cols) for goal in range(rows * cols) if agent != goal]
    actions = policy(
        np.array([GridWorld.observation(*start) for start in starts], np.float32 if takes == "network" else np.int8)
    )
    chosen = dict(zip(starts, actions.tolist(), strict=True))

    def away(cell: int, goal: int) -> int:
        return abs(cell // cols - goal // cols) + abs(cell % cols - goal % cols)

    nearer = {
        (agent, goal): away(next_cell(agent, action, rows, cols), goal) < away(agent, goal)
        for (agent, goal), action in chosen.items()
    }
    found = 0
    for agent, goal in starts:
        while agent != goal and nearer[agent, goal]:
            agent = next_cell(agent, chosen[agent, goal], rows, cols)
        found += agent == goal
    return found / len(starts)


def scores(policy: Policy, env: EnvConfig, takes: SpaceKind, seed: int) -> dict[str, Any]:
    """The figures of ``env`` beside the return: pipes and worst_pipes, shortest_paths, or none."""
    if env.id.startswith("FlappyBird"):
        passed = pipes(policy, env, PIPES_EPISODES, seed)
        return {"pipes": float(np.mean(passed)), "worst_pipes": min(passed)}
    if env.id == "qfleet/GridWorld-v0":
        return {"shortest_paths": shortest_paths(policy, takes)}
    return {}
