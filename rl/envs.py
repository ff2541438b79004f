"""Environments in batches, behind one interface: Atari through ale-py's C++ vector environment, the rest through Gymnasium.

The rule that both keep: `step` returns the true observation after the action, also where the episode ends there, and a
new episode begins only through `restart`, which is no step. So nothing that a reset does can become a transition.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import ale_py
import gymnasium as gym
import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl.errors import BadInput
from rl.spaces import AnyEnv, Takes, kwargs_of, make_single
from rl.types import Array, Bool, Float32, Int64, ObservationSpec

gym.register_envs(ale_py)

ATARI_FRAME_SKIP = 4  # frames an agent step
ATARI_STACK = 4  # frames an observation


@dataclass(frozen=True)
class EnvConfig:
    """Which environment, under which protocol."""

    id: str = "PongNoFrameskip-v4"
    """Any Gymnasium id with a Discrete action space and a Box or Discrete observation; Atari ids get the Atari protocol."""
    sticky: float = 0.0
    """Atari: probability that the last action is repeated (0.25 for the ALE/...-v5 protocol)."""
    noop_max: int = 30
    """Atari: up to this many no-ops at the start of an episode."""
    max_frames: int = 108_000
    """Atari: frames until an episode is truncated (4 frames an agent step)."""
    size: int = 84
    """Atari: side of the square grey frame, pixels."""
    kwargs: str = "{}"
    """Not Atari: arguments of the environment's constructor, a JSON object such as '{"is_slippery": false}'."""
    max_episode_steps: int = 0
    """Not Atari: agent steps until an episode is truncated; 0: as registered."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.sticky <= 1.0:
            raise BadInput(f"env.sticky is {self.sticky}: write a probability from 0 to 1")
        if self.noop_max < 0:
            raise BadInput(f"env.noop_max is {self.noop_max}: write 0 or more no-ops")
        if self.max_frames < ATARI_FRAME_SKIP or self.size < 36:
            raise BadInput("env.max_frames must be at least 4 and env.size at least 36")
        if self.max_episode_steps < 0:
            raise BadInput(f"env.max_episode_steps is {self.max_episode_steps}: write agent steps, or 0")
        kwargs_of(self.kwargs)


class Step(NamedTuple):
    """What one batched step returned; ``observation`` is the true successor even where the episode ended."""

    observation: Array  # [N, *observation]
    reward: Float32  # [N], raw
    terminated: Bool  # [N]
    truncated: Bool  # [N]
    lost_life: Bool  # [N]

    @property
    def done(self) -> Bool:
        return self.terminated | self.truncated


class Environments(Protocol):
    """N environments that step together."""

    count: int
    actions: int
    spec: ObservationSpec

    def reset(self, seeds: Int64) -> Array:
        """Begin an episode in every environment from seeds [N]; returns observations [N, *observation]."""

    def step(self, actions: Int64) -> Step:
        """Act [N]. An environment that is done must be restarted before it steps again."""

    def restart(self, mask: Bool, seeds: Int64) -> Array:
        """Begin a new episode where ``mask`` [N], from seeds [sum(mask)]; returns all current observations [N, ...]."""

    def close(self) -> None:
        """Release the emulators."""


def newest_frame(observation: Array, spec: ObservationSpec) -> Array:
    """The one frame that the last step added: [N, stack, *frame] -> [N, *frame] (the observation itself if unstacked)."""
    return observation if spec.stack == 1 else observation[:, -1]


def atari_game(env_id: str) -> str | None:
    """ale-py's name of the game behind a Gymnasium id (``ALE/Pong-v5`` -> ``pong``), or None if it is not Atari."""
    spec = gym.registry.get(env_id)
    if spec is None or not str(spec.entry_point).startswith("ale_py"):
        return None
    return str(spec.kwargs["game"])


class AtariEnvironments:
    """The design's Atari protocol: skip 4, max of 2, 84x84 grey, stack 4, no-op starts, minimal actions, raw rewards."""

    def __init__(self, config: EnvConfig, count: int, threads: int = 1) -> None:
        game = atari_game(config.id)
        if game is None or roms.get_rom_path(game) is None:
            raise BadInput(f"env.id {config.id!r} has no Atari ROM")
        self._env = AtariVectorEnv(
            game,
            count,
            num_threads=threads,
            autoreset_mode=AutoresetMode.NEXT_STEP,
            repeat_action_probability=config.sticky,
            max_num_frames_per_episode=config.max_frames,
            noop_max=config.noop_max,
            img_height=config.size,
            img_width=config.size,
            frameskip=ATARI_FRAME_SKIP,
            stack_num=ATARI_STACK,
            reward_clipping=False,
            use_fire_reset=False,
            episodic_life=False,
        )
        self.count = count
        self.actions = int(self._env.single_action_space.n)  # type: ignore[attr-defined]
        self.spec = ObservationSpec((config.size, config.size), "uint8", ATARI_STACK)
        self._lives = np.zeros(count, dtype=np.int32)

    def reset(self, seeds: Int64) -> Array:
        observation, info = self._env.reset(seed=np.asarray(seeds, dtype=np.int32))
        self._lives = info["lives"].copy()
        return np.asarray(observation)

    def step(self, actions: Int64) -> Step:
        observation, reward, terminated, truncated, info = self._env.step(actions)
        lost = info["lives"] < self._lives
        self._lives = info["lives"].copy()
        return Step(observation, np.asarray(reward, np.float32), terminated, truncated, lost)

    def restart(self, mask: Bool, seeds: Int64) -> Array:
        observation, info = self._env.reset(seed=np.asarray(seeds, dtype=np.int32), options={"reset_mask": mask})
        self._lives = info["lives"].copy()
        return np.asarray(observation)

    def close(self) -> None:
        self._env.close()


class GymnasiumEnvironments:
    """Any Gymnasium environment, its spaces made to fit what the method takes (`rl.spaces.make_single`)."""

    def __init__(self, config: EnvConfig, count: int, takes: Takes = "network") -> None:
        self._env = SyncVectorEnv(
            [lambda: single(config, takes) for _ in range(count)],
            autoreset_mode=AutoresetMode.DISABLED,
            observation_mode="same",
        )
        self.count = count
        self.spec = observed(self._env.single_observation_space, takes)
        action = self._env.single_action_space
        self.actions = int(action.n) if isinstance(action, gym.spaces.Discrete) else int(np.prod(action.shape or ()))
        self._first_action = int(action.start) if isinstance(action, gym.spaces.Discrete) else 0

    def reset(self, seeds: Int64) -> Array:
        observation, _ = self._env.reset(seed=[int(s) for s in seeds])
        return np.array(observation, dtype=self.spec.dtype)

    def step(self, actions: Int64) -> Step:
        observation, reward, terminated, truncated, _ = self._env.step(actions + self._first_action)
        no_lives = np.zeros(self.count, dtype=np.bool_)
        return Step(
            np.array(observation, dtype=self.spec.dtype),
            np.asarray(reward, np.float32),
            terminated.copy(),
            truncated & ~terminated,
            no_lives,
        )

    def restart(self, mask: Bool, seeds: Int64) -> Array:
        where: list[int | None] = [None] * self.count
        for env, seed in zip(np.flatnonzero(mask), seeds, strict=True):
            where[env] = int(seed)
        observation, _ = self._env.reset(seed=where, options={"reset_mask": mask})
        return np.array(observation, dtype=self.spec.dtype)

    def close(self) -> None:
        self._env.close()


def observed(space: gym.Space[Any], takes: Takes) -> ObservationSpec:
    """What a method is given: a network's observations are pixels (uint8) or float32, a table's keep their own type."""
    kept = takes == "table" or space.dtype == np.uint8
    return ObservationSpec(tuple(space.shape or ()), str(space.dtype) if kept else "float32")


def single(config: EnvConfig, takes: Takes = "network", **more: Any) -> AnyEnv:
    """One Gymnasium environment as configured, its spaces as ``takes`` wants them; raises BadInput."""
    return make_single(config.id, takes, config.kwargs, config.max_episode_steps, **more)


def check_env(config: EnvConfig, takes: Takes = "network") -> None:
    """Raise BadInput unless `make_environments` could make this environment."""
    if takes == "network" and atari_game(config.id) is not None and (config.kwargs != "{}" or config.max_episode_steps):
        raise BadInput(
            "env.kwargs and env.max_episode_steps are not for Atari: write --env.max-frames, or leave them out"
        )
    if takes != "network" or atari_game(config.id) is None:
        single(config, takes).close()


def make_environments(config: EnvConfig, count: int, threads: int = 1, takes: Takes = "network") -> Environments:
    """``count`` environments behind one interface; ``threads`` emulator threads (Atari)."""
    if takes == "network" and atari_game(config.id) is not None:
        return AtariEnvironments(config, count, threads)
    return GymnasiumEnvironments(config, count, takes)


def describe(config: EnvConfig) -> tuple[ObservationSpec, int]:
    """Observation and number of actions of an environment."""
    env = make_environments(config, 1)
    env.close()
    return env.spec, env.actions


def frames_per_step(config: EnvConfig) -> int:
    """Frames an agent step: 4 on Atari, 1 elsewhere."""
    return ATARI_FRAME_SKIP if atari_game(config.id) is not None else 1


def make_rendered(config: EnvConfig, takes: Takes = "network") -> AnyEnv:
    """One environment under the same protocol through Gymnasium's wrappers, with ``rgb_array`` rendering for videos."""
    if not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame complains where there is no screen
    game = atari_game(config.id)
    if game is None:
        return single(config, takes, render_mode="rgb_array")
    env = gym.make(
        config.id,
        frameskip=1,
        repeat_action_probability=config.sticky,
        max_num_frames_per_episode=config.max_frames,
        render_mode="rgb_array",
    )
    env = gym.wrappers.AtariPreprocessing(env, noop_max=config.noop_max, screen_size=config.size)
    return gym.wrappers.FrameStackObservation(env, ATARI_STACK, padding_type="zero")


class SeedSequence:
    """A stream of episode seeds of one environment batch, so that any episode can be replayed from its seed."""

    def __init__(self, seed: int, stream: int, start: int = 0) -> None:
        self._rng = np.random.default_rng([seed, stream, start])

    def draw(self, count: int) -> Int64:
        """``[count]`` seeds in [0, 2^31 - 1)."""
        return self._rng.integers(0, 2**31 - 1, size=count, dtype=np.int64)

    def get_state(self) -> Mapping[str, Any]:
        return dict(self._rng.bit_generator.state)

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._rng.bit_generator.state = state
