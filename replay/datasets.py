"""Minari datasets, read: their episodes as the segments that an actor would have inserted.

A dataset is named by a Minari id (`qfleet/pong-v0`, under MINARI_DATASETS_PATH or ~/.minari/datasets) or by the path of its
directory, which is told from an id by its beginning: /, ./, ../ or ~. Nothing is ever downloaded. `replay/export.py` writes
datasets and says what is in the infos of an episode of ours; those of others need none.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from rl.envs import EnvConfig
from rl.errors import BadInput
from rl.returns import ReturnConfig, SegmentBuilder
from rl.types import Array, ObservationSpec, Segment

ID = re.compile(r"([-\w]+/)*[-\w]+-v\d+")
OURS = "qfleet"  # our key in a dataset's metadata


def import_minari() -> Any:
    """Minari, imported when it is needed. Raises BadInput when it is not installed."""
    try:
        import h5py
        import minari.namespace
    except ImportError as error:
        raise BadInput(
            f'datasets need Minari and h5py ({error}): pip install -c constraints.txt -e ".[datasets]"'
        ) from error
    del h5py
    return minari


def dataset_path(name: str) -> tuple[Path, str]:
    """The directory and the Minari id that a dataset's ``name`` means, whether it is there or not. Raises BadInput."""
    is_path = name.startswith(("/", "./", "../", "~"))
    identity = Path(name).name if is_path else name
    if not ID.fullmatch(identity):
        raise BadInput(
            f"dataset {name!r}: its name must end in its version, as in pong-v0, qfleet/pong-v0 or ./pong-v0"
        )
    if is_path:
        return Path(name).expanduser().absolute(), identity
    root = os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets"
    return Path(root) / name, identity


def _missing(name: str, path: Path) -> BadInput:
    if (Path(name) / "data").is_dir():
        return BadInput(f"there is no dataset {name} at {path}: write ./{name} for the directory here")
    return BadInput(
        f"there is no dataset {name} at {path}: write the id or the path of one that is there "
        f"(minari list local; minari download ID; qfleet replay export RUN --to {name})"
    )


class Dataset:
    """A Minari dataset with Discrete actions and Box observations."""

    def __init__(self, name: str) -> None:
        """Open it, reading no episode. Raises BadInput when it is missing, broken, empty or of other spaces."""
        minari = import_minari()
        path, _ = dataset_path(name)
        if not (path / "data").is_dir():
            raise _missing(name, path)
        try:
            self._data = minari.MinariDataset(path / "data")
        except (ImportError, ValueError, KeyError, TypeError, AssertionError, OSError, gym.error.Error) as error:
            raise BadInput(f"dataset {name} cannot be read: {' '.join(str(error).split())}") from error
        self.name = name
        observation, action = self._data.observation_space, self._data.action_space
        if not isinstance(action, gym.spaces.Discrete):
            raise BadInput(f"dataset {name} has actions {action}: DQN needs a Discrete action space")
        if not isinstance(observation, gym.spaces.Box):
            raise BadInput(f"dataset {name} has observations {_short(observation)}: write one with a Box space")
        if not self._data.total_steps:
            raise BadInput(f"dataset {name} is empty: write one with episodes")
        self.shape = tuple(int(side) for side in observation.shape)
        self.dtype = np.dtype(observation.dtype)
        self.actions, self._first_action = int(action.n), int(action.start)
        self.episodes, self.steps = int(self._data.total_episodes), int(self._data.total_steps)
        self._ours = json.loads((path / "data" / "metadata.json").read_text()).get(OURS, {})

    @property
    def env(self) -> EnvConfig | None:
        """The environment that the dataset names, if it names one. Raises BadInput when its settings are not ours."""
        if self._ours.get("env"):
            try:
                return EnvConfig(**self._ours["env"])
            except TypeError as error:
                raise BadInput(
                    f"dataset {self.name}: its environment has settings of another Qfleet: {error}"
                ) from error
        spec = self._data.env_spec
        return None if spec is None else EnvConfig(id=spec.id)

    def spec(self, wanted: ObservationSpec, where: str) -> ObservationSpec:
        """How this dataset's observations become the ``wanted`` ones: single frames that are stacked, or whole stacks.

        Raises BadInput when they do not fit; ``where`` says who wants them.
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
        """Every transition of every episode, once, in segments of up to ``max_items`` + n - 1 items of priority 1.

        ``spec`` is what `spec` returned. No item begins where a part of its stack is lost. An episode that ends neither
        terminated nor truncated counts as truncated. Raises BadInput at an episode that is damaged.
        """
        builder = SegmentBuilder(returns, spec, max_items)
        try:
            for index, episode in enumerate(self._data.iterate_episodes()):
                infos = episode.infos or {}
                _check(episode, f"dataset {self.name}, episode {index}", self._first_action, self.actions)
                lost = _lost_lives(infos, len(episode))
                if lost is None and returns.life_loss_terminates:
                    raise BadInput(
                        f"dataset {self.name} does not say where lives were lost: write --returns.no-life-loss-terminates"
                    )
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
            closed = builder.add(
                np.zeros(1, np.float32),
                int(actions[t]),
                float(episode.rewards[t]),
                bool(terminated[t]),
                bool(truncated[t]),
                lost is not None and bool(lost[t]),
                int(versions[t + 1]),
                frames[t + 1],
            )
            if closed is not None:
                yield closed.segment


def _lost_lives(infos: dict[str, Any], steps: int) -> Array | None:
    """Whether each step [T] lost a life, from our info or Atari's own ``lives``; None where neither is there."""
    if len(ours := infos.get("lost_life", ())) == steps + 1:
        return np.asarray(ours, np.bool_)[1:]
    if len(lives := infos.get("lives", ())) == steps + 1:
        return np.diff(np.asarray(lives, np.int64)) < 0
    return None


def _check(episode: Any, where: str, first_action: int, actions: int) -> None:
    """Raise BadInput when an episode's arrays contradict each other."""
    steps, own = len(episode), np.asarray(episode.actions)
    lengths = [len(x) for x in (episode.actions, episode.terminations, episode.truncations)]
    if not steps or lengths != [steps] * 3 or len(episode.observations) != steps + 1:
        raise BadInput(f"{where}: {steps} rewards, {len(episode.observations)} observations and {lengths} of the rest")
    if own.shape != (steps,) or ((own < first_action) | (own >= first_action + actions)).any():
        raise BadInput(f"{where}: an action lies outside the {actions} of the dataset's action space")
    done = np.asarray(episode.terminations, np.bool_) | np.asarray(episode.truncations, np.bool_)
    if done[:-1].any():
        raise BadInput(f"{where}: it goes on after its end at step {int(done.argmax())}")
    if not np.isfinite(episode.rewards).all() or not np.isfinite(episode.observations).all():
        raise BadInput(f"{where}: a reward or an observation is not finite")


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "single numbers"


def _short(space: Any) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else text[:77] + "..."
