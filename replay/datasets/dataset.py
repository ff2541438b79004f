"""Reading Minari datasets: their episodes as the segments that an actor would have inserted.

`rl/envs/minari_files.py` says how a dataset is named. `export.py` writes datasets and says which infos an episode then
has; datasets from elsewhere need none of them.
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
    """A Minari dataset with Discrete actions and Box observations."""

    def __init__(self, name: str) -> None:
        """Open it without reading an episode. Raises BadInput when it is missing, broken, empty or has other spaces."""
        self.name, self._data = name, open_dataset(name)
        observation, action = self._data.observation_space, self._data.action_space
        if not isinstance(observation, gym.spaces.Box):
            raise BadInput(f"dataset {name} has observations {_short(observation)}: write one with a Box space")
        self.shape = tuple(int(side) for side in observation.shape)
        self.dtype = np.dtype(observation.dtype)
        self.actions, self._first_action = int(action.n), int(action.start)
        self.episodes, self.steps = int(self._data.total_episodes), int(self._data.total_steps)

    @property
    def env(self) -> EnvConfig | None:
        """The environment that the dataset names, or None.

        Raises BadInput when its settings are not those of this Qfleet.
        """
        return env_config_of(self._data, self.name)

    def spec(self, wanted: ObservationSpec, where: str) -> ObservationSpec:
        """The spec with which this dataset's observations fit ``wanted``: single frames to be stacked, or whole stacks.

        Raises BadInput, naming ``where`` they are wanted, when they do not fit.
        """
        right_type = np.can_cast(self.dtype, wanted.dtype, "same_kind")
        if right_type and self.shape == wanted.frame_shape:
            return wanted
        if right_type and self.shape == wanted.shape:
            return ObservationSpec(wanted.shape, wanted.dtype)
        stacked = f" (or {_sides(wanted.shape)})" if wanted.stack > 1 else ""
        raise BadInput(
            f"dataset {self.name} has observations of {self.dtype} {_sides(self.shape)}, {where} has {wanted.dtype} "
            f"{_sides(wanted.frame_shape)}{stacked}: write one that fits"
        )

    def segments(self, spec: ObservationSpec, returns: ReturnConfig, max_items: int) -> Iterator[Segment]:
        """Every transition of every episode, once, in segments of up to ``max_items`` + n - 1 items with |TD error| 1.

        ``spec`` is what the method `spec` returned. No item begins where a part of its stack is missing. An episode
        that ends neither terminated nor truncated counts as truncated. Raises BadInput at an episode that is damaged.
        """
        builder = SegmentBuilder(returns, spec, max_items)
        try:
            for index, episode in enumerate(self._data.iterate_episodes()):
                infos = episode.infos or {}
                check_episode(episode, f"dataset {self.name}, episode {index}", self._first_action, self.actions)
                lost = _lost_lives(infos, len(episode))
                if lost is None and returns.life_loss_terminates:
                    said = f"is on, and dataset {self.name} does not say where lives were lost: write"
                    raise BadSetting(ReturnConfig, "life_loss_terminates", f"{said} `life_loss_terminates: false`")
                yield from self._cut(builder, episode, infos, lost, spec)
        except (OSError, KeyError) as error:
            raise BadInput(f"dataset {self.name} cannot be read: {' '.join(str(error).split())}") from error

    def _cut(
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
    """Whether each step lost a life, bool [T], from Qfleet's info or Atari's ``lives``; None where there is neither."""
    if len(ours := infos.get("lost_life", ())) == steps + 1:
        return np.asarray(ours, np.bool_)[1:]
    if len(lives := infos.get("lives", ())) == steps + 1:
        return np.diff(np.asarray(lives, np.int64)) < 0
    return None


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "single numbers"


def _short(space: Any) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else text[:77] + "..."
