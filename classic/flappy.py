"""FlappyBird's score: pipes, as the game itself counts them.

FlappyBird-v0 (flappy-bird-gymnasium, Kubovcik 2023, without its lidar) rewards +0.1 a step, +1 instead where a pipe is
passed, -0.5 where the bird touches the top and -1 where it dies. The first pipe is passed at step 61, each other one 36 to
42 steps after the last, so that an episode of P pipes has fewer than 61 + 42 P steps and

    return <= 0.1 * (60 + 42 P - P) + P = 6 + 5.1 P.

A mean return of at least 6 + 5.1 P thus proves a mean of at least P pipes, however the episodes ended.
"""

from __future__ import annotations

import numpy as np

from rl.envs import EnvConfig, SeedSequence, single
from rl.evaluation import Policy


def pipes(policy: Policy, env: EnvConfig, episodes: int, seed: int) -> list[int]:
    """Pipes passed in each of ``episodes`` episodes under ``policy``, by the game's own count, ``info["score"]``.

    Without ``env.max_episode_steps`` an episode of a player without fault does not end.
    """
    game, passed = single(env), []
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
