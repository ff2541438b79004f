"""Reads Minari datasets: converts their episodes to the segments that an actor would have inserted.

See `rl/envs/minari_files.py` for the names of datasets. `export.py` writes datasets and documents the infos that it
adds to episodes; all of them are optional here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from rl.envs.config import EnvConfig
from rl.envs.minari_files import check_episode, env_config_of, open_dataset
from rl.errors import BadInput, BadSetting
from rl.returns import ReturnConfig
from rl.segments import SegmentBuilder
from rl.types import Array, ObservationSpec, Segment


class Dataset:
    """A Minari dataset with Discrete actions and Box observations.

    ``shape`` and ``dtype`` are those of one stored observation. ``actions`` is the number of actions; ``episodes`` and
    ``steps`` are the numbers of all episodes and steps.
    """

    def __init__(self, name: str) -> None:
        """Open the dataset without reading episodes.

        Raises BadInput if it is missing, damaged or empty, or has other spaces.
        """
        self.name, self._data = name, open_dataset(name)
        observation, action = self._data.observation_space, self._data.action_space
        if not isinstance(observation, gym.spaces.Box):
            raise BadInput(
                f"dataset {name} has the observation space {_shorten(observation)}: write a dataset with a Box space"
            )
        self.shape = tuple(int(side) for side in observation.shape)
        self.dtype = np.dtype(observation.dtype)
        self.actions, self._first_action = int(action.n), int(action.start)
        self.episodes, self.steps = int(self._data.total_episodes), int(self._data.total_steps)

    @property
    def env(self) -> EnvConfig | None:
        """The environment that the dataset was recorded on, or None if it names none.

        Raises BadInput if this version of Qfleet cannot read the environment's settings.
        """
        return env_config_of(self._data, self.name)

    def spec(self, wanted: ObservationSpec, where: str) -> ObservationSpec:
        """Return the spec under which this dataset's observations can be used for ``wanted``.

        That is ``wanted`` itself if the dataset has single frames, which will be stacked. If the dataset has whole
        stacks, it is a spec with the stack as one frame. Raises BadInput if the observations do not fit; the message
        names ``where`` they are needed.
        """
        right_type = np.can_cast(self.dtype, wanted.dtype, "same_kind")
        if right_type and self.shape == wanted.frame_shape:
            return wanted
        if right_type and self.shape == wanted.shape:
            return ObservationSpec(wanted.shape, wanted.dtype)
        stacked = f" (or {_shape_text(wanted.shape)})" if wanted.stack > 1 else ""
        raise BadInput(
            f"dataset {self.name} has observations of {self.dtype} {_shape_text(self.shape)}, {where} has "
            f"{wanted.dtype} {_shape_text(wanted.frame_shape)}{stacked}: write a dataset with the same observations"
        )

    def segments(self, spec: ObservationSpec, returns: ReturnConfig, max_items: int) -> Iterator[Segment]:
        """Yield every transition of every episode once, in segments of up to ``max_items`` + n - 1 items, |TD error| 1.

        ``spec`` is the result of the method `spec`. No item starts at a step whose stack is incomplete. An episode
        that is neither terminated nor truncated counts as truncated. Raises BadInput if an episode is damaged.
        """
        builder = SegmentBuilder(returns, spec, max_items)
        try:
            for index, episode in enumerate(self._data.iterate_episodes()):
                infos = episode.infos or {}
                check_episode(episode, f"dataset {self.name}, episode {index}", self._first_action, self.actions)
                lost = _lost_lives(infos, len(episode))
                if lost is None and returns.life_loss_terminates:
                    message = f"is on, but dataset {self.name} has no record of lost lives: write"
                    raise BadSetting(ReturnConfig, "life_loss_terminates", f"{message} `life_loss_terminates: false`")
                yield from self._episode_segments(builder, episode, infos, lost, spec)
        except (OSError, KeyError) as error:
            raise BadInput(f"dataset {self.name} cannot be read: {' '.join(str(error).split())}") from error

    def _episode_segments(
        self, builder: SegmentBuilder, episode: Any, infos: dict[str, Any], lost: Array | None, spec: ObservationSpec
    ) -> Iterator[Segment]:
        steps = len(episode)
        frames = np.asarray(episode.observations, spec.dtype)
        terminated = np.asarray(episode.terminations, np.bool_)
        truncated = np.asarray(episode.truncations, np.bool_) & ~terminated
        truncated[-1] |= not terminated[-1]
        versions = np.asarray(infos.get("weights_version", np.zeros(steps + 1)), np.uint32)
        actions = np.asarray(episode.actions, np.int64) - self._first_action
        builder.begin(frames[0], int(np.asarray(infos.get("step", [0]))[0]))
        for t in range(steps):
            segment = builder.add(
                action=int(actions[t]),
                reward=float(episode.rewards[t]),
                terminated=bool(terminated[t]),
                truncated=bool(truncated[t]),
                lost_life=lost is not None and bool(lost[t]),
                version=int(versions[t + 1]),
                frame=frames[t + 1],
            )
            if segment is not None:
                yield segment.with_td_errors(np.ones(segment.items, np.float32))


def _lost_lives(infos: dict[str, Any], steps: int) -> Array | None:
    """Return whether each step lost a life, bool [T]: from Qfleet's info or Atari's ``lives``; None without either."""
    if len(ours := infos.get("lost_life", ())) == steps + 1:
        return np.asarray(ours, np.bool_)[1:]
    if len(lives := infos.get("lives", ())) == steps + 1:
        return np.diff(np.asarray(lives, np.int64)) < 0
    return None


def _shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "single numbers"


def _shorten(space: Any) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else text[:77] + "..."
