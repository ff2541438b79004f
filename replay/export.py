"""Minari datasets, written: one episode for each run of consecutive steps.

Infos of an episode of T steps, T + 1 of each, [0] of the first observation and [k] of step k - 1:

    step             the episode's step number of each observation (it begins above 0 where the beginning is lost)
    lost_life        whether the step lost a life
    weights_version  version of the weights acted on
    cut              true at the last step where the episode went on, but not the dataset; such a run counts as truncated
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from types import TracebackType
from typing import Any

import gymnasium as gym
import numpy as np

from replay.datasets import OURS, dataset_path, import_minari
from replay.episodes import EpisodeRun
from rl.envs import ATARI_FRAME_SKIP, EnvConfig, atari_game, describe
from rl.errors import BadInput
from rl.types import Array, ObservationSpec

COMPRESS_FROM = 256  # bytes a frame; smaller ones are left to Minari's own layout
CHUNK = 16  # frames that are compressed together


class DatasetWriter:
    """A new dataset, an episode at a time; it is there under its name when the `with` block ends without an error.

    An observation is one frame, kept without loss and compressed. ``env`` is what was played, if it is known.
    """

    def __init__(self, name: str, spec: ObservationSpec, actions: int, env: EnvConfig | None) -> None:
        """Raises BadInput where something is already there, or nothing can be written."""
        minari = import_minari()
        self.path, self._id = dataset_path(name)
        if self.path.exists():
            raise BadInput(f"dataset {name} is already there ({self.path}): write another name or version")
        self._aside = self.path.parent / f".{self.path.name}.{os.getpid()}"  # Minari lists no hidden ones
        self._frame_bytes, self._frame_shape, self._dtype = spec.frame_bytes, spec.frame_shape, spec.dtype
        self.episodes = self.steps = 0
        space = gym.spaces.Discrete(actions) if env is None else _action_space(env)
        self._first_action = int(space.start)
        try:
            self._aside.mkdir(parents=True)
        except OSError as error:
            raise BadInput(f"dataset {name} cannot be written to {self.path}: {error.strerror}") from error
        self._storage = minari.dataset.minari_storage.MinariStorage.new(
            self._aside / "data",
            observation_space=_frame_space(spec),
            action_space=space,
            env_spec=None if env is None else _env_spec(env),
            jpeg_encoding=False,  # it would lose
        )
        self._storage.update_metadata(
            {
                "dataset_id": self._id,
                "minari_version": minari.__version__,
                "algorithm_name": "DQN, epsilon-greedy",
                "description": "Out of a Qfleet replay. An observation is one frame.",
                OURS: {"stack": spec.stack, "env": None if env is None else asdict(env)},
            }
        )

    def append(self, run: EpisodeRun) -> None:
        """Write one run as the next episode."""
        truncated, cut = run.truncated.copy(), np.zeros(run.steps, np.bool_)
        truncated[-1] |= run.cut
        cut[-1] = run.cut
        if self._frame_bytes >= COMPRESS_FROM:
            self._make_room(self.episodes)
        episode = import_minari().data_collector.episode_buffer.EpisodeBuffer(
            id=self.episodes,
            observations=run.frames,
            actions=run.actions.astype(np.int64) + self._first_action,
            rewards=run.rewards,
            terminations=run.terminated,
            truncations=truncated,
            infos={
                "step": run.first_step + np.arange(run.steps + 1, dtype=np.int64),
                "lost_life": _after_first(run.lost_life),
                "weights_version": _after_first(run.versions),
                "cut": _after_first(cut),
            },
        )
        self._storage.update_episodes([episode])
        self.episodes += 1
        self.steps += run.steps

    def _make_room(self, episode: int) -> None:
        """The place of an episode's frames, compressed, which Minari then fills (its own would not be compressed)."""
        import h5py

        with h5py.File(self._storage.data_path / "main_data.hdf5", "a", track_order=True) as file:
            file.create_dataset(
                f"episode_{episode}/observations",
                shape=(0, *self._frame_shape),
                maxshape=(None, *self._frame_shape),
                dtype=self._dtype,
                chunks=(CHUNK, *self._frame_shape),
                compression="gzip",
                compression_opts=1,
            )

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            shutil.rmtree(self._aside, ignore_errors=True)
            return
        self._aside.rename(self.path)
        namespace, own = self._id.rpartition("/")[0], import_minari().namespace
        if namespace and namespace not in own.list_local_namespaces():
            own.create_namespace(namespace)

    @property
    def bytes(self) -> int:
        """What the finished dataset takes on the disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def _after_first(column: Array) -> Array:
    """[T] -> [T + 1]: nothing came before the first observation."""
    return np.concatenate([np.zeros(1, column.dtype), column])


def _frame_space(spec: ObservationSpec) -> gym.spaces.Box:
    dtype = np.dtype(spec.dtype)
    low, high = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return gym.spaces.Box(low, high, spec.frame_shape, dtype.type)


def _action_space(config: EnvConfig) -> gym.spaces.Discrete:
    """The environment's own; ours count from 0."""
    if atari_game(config.id) is not None:
        return gym.spaces.Discrete(describe(config)[1])
    env = gym.make(config.id)
    env.close()
    assert isinstance(env.action_space, gym.spaces.Discrete)
    return env.action_space


def _env_spec(config: EnvConfig) -> Any:
    """What Minari's `recover_environment` makes: an environment that gives the dataset's frames."""
    if atari_game(config.id) is None:
        return gym.spec(config.id)
    env = gym.make(
        config.id,
        frameskip=1,
        repeat_action_probability=config.sticky,
        max_num_frames_per_episode=config.max_frames,
    )
    env = gym.wrappers.AtariPreprocessing(
        env, noop_max=config.noop_max, frame_skip=ATARI_FRAME_SKIP, screen_size=config.size
    )
    env.close()
    return env.spec
