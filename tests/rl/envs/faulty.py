"""An environment that raises errors on request: ``tests.rl.envs.faulty:Faulty-v0``.

world.reset(length=4, faults={("step", 3): ValueError("bad")})  # the third step of all environments raises
"""

from __future__ import annotations

import collections
import time

import gymnasium as gym
import numpy as np

FAULTY = "tests.rl.envs.faulty:Faulty-v0"


class World:
    """What all environments of this process do and have done. Calls count from 1 over all environments."""

    def __init__(self):
        self.reset()

    def reset(self, length=3, faults=None):
        """``faults``: (call, its number or "all") -> the error that it raises; calls are make, reset, step, and close."""
        self.length, self.faults = length, faults or {}
        self.calls = collections.Counter()
        self.seeds, self.open = [], set()  # of all episodes; numbers of the environments that are not closed

    def call(self, name):
        self.calls[name] += 1
        error = self.faults.get((name, self.calls[name]), self.faults.get((name, "all")))
        if error is not None:
            raise error


world = World()


class Faulty(gym.Env):
    """Observation [number of the episode in the world, t], reward t; an episode terminates after ``world.length`` steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self):
        world.call("make")
        self.number = world.calls["make"]
        world.open.add(self.number)

    def reset(self, *, seed=None, options=None):
        world.call("reset")
        world.seeds.append(seed)
        self.episode, self.t = len(world.seeds), 0
        return np.array([self.episode, 0], np.float32), {}

    def step(self, action):
        world.call("step")
        self.t += 1
        return np.array([self.episode, self.t], np.float32), float(self.t), self.t == world.length, False, {}

    def close(self):
        world.open.discard(self.number)
        world.call("close")


class Tiring(Faulty):
    """Raises an error in every 150th step of all environments of a process, and after 900 in every step."""

    def step(self, action):
        time.sleep(0.003)
        if world.calls["step"] >= 900 or world.calls["step"] % 150 == 149:
            world.faults[("step", world.calls["step"] + 1)] = RuntimeError("tired")
        return super().step(action)


gym.register("Faulty-v0", Faulty, disable_env_checker=True)
gym.register("Tiring-v0", Tiring, disable_env_checker=True)

RAISED_AT = World.call.__code__.co_firstlineno + 4  # the line of `raise error`
