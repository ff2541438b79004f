"""Minari datasets as files: their names, opening one, and writing a new one.

A dataset is named by a Minari id (`qfleet/pong-v0`, under MINARI_DATASETS_PATH or ~/.minari/datasets) or by the path of
its directory. A path is recognised by its beginning: /, ./, ../ or ~. Nothing is ever downloaded.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import gymnasium as gym
import numpy as np

from rl.envs.config import EnvConfig
from rl.errors import BadInput
from rl.types import Array

ID = re.compile(r"([-\w]+/)*[-\w]+-v\d+")
OURS = "qfleet"  # Qfleet's key in a dataset's metadata
# Modules of environments that were moved: an older dataset names the old module.
MOVED = {"rl.grid_worlds": "rl.envs.grid_worlds", "rl.bias_example": "rl.envs.bias_example"}
COMPRESS_FROM = 256  # bytes an observation; smaller ones keep Minari's own layout
CHUNK = 16  # observations that are compressed together


def import_minari() -> Any:
    """The `minari` module, imported only when it is needed. Raises BadInput when it or h5py is not installed."""
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
    """The directory and the Minari id of the dataset ``name``, whether it exists or not.

    Raises BadInput when the name does not end in a version.
    """
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
        f"there is no dataset {name} at {path}: write the id or the path of one that is there (minari list local), "
        "download one (minari download ID), export a run's replay, or make one (docs/datasets.md)"
    )


def open_dataset(name: str) -> Any:
    """The MinariDataset of that name, with no episode read yet.

    Raises BadInput when it is missing, broken or empty, or when its actions are not Discrete.
    """
    minari = import_minari()
    path, _ = dataset_path(name)
    if not (path / "data").is_dir():
        raise _missing(name, path)
    try:
        data = minari.MinariDataset(path / "data")
    except (ImportError, ValueError, KeyError, TypeError, AssertionError, OSError, gym.error.Error) as error:
        raise BadInput(f"dataset {name} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(data.action_space, gym.spaces.Discrete):
        raise BadInput(
            f"dataset {name} has actions {data.action_space}: Q-learning and DQN need a Discrete action space"
        )
    if not data.total_steps:
        raise BadInput(f"dataset {name} is empty: write one with episodes")
    if data.env_spec is not None and isinstance(data.env_spec.entry_point, str):
        module, colon, attribute = data.env_spec.entry_point.partition(":")
        data.env_spec.entry_point = MOVED.get(module, module) + colon + attribute  # for Minari's recover_environment
    return data


def played_on(data: Any, name: str) -> EnvConfig | None:
    """The environment that a dataset names, or None if it names none.

    Raises BadInput when its settings are not those of this Qfleet.
    """
    ours = data.storage.metadata.get(OURS, {})
    if ours.get("env"):
        try:
            return EnvConfig(**ours["env"])
        except (TypeError, BadInput) as error:
            raise BadInput(f"dataset {name}: its environment has settings of another Qfleet: {error}") from error
    return None if data.env_spec is None else EnvConfig(id=data.env_spec.id)


def check_episode(episode: Any, where: str, first_action: int, actions: int) -> None:
    """Raise BadInput when the arrays of an episode of T steps contradict each other; ``where`` names it in the message.

    Actions are integers [T] from ``first_action`` to before ``first_action + actions``; observations are [T + 1, ...],
    and all other arrays [T].
    """
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


class NewDataset:
    """A new dataset, written an episode at a time.

        with NewDataset(name, observation_space, action_space, env_spec, ours) as dataset:
            dataset.add(observations, rewards, actions=..., terminations=..., truncations=..., infos=...)

    It appears under its name when the `with` block ends without an error. Observations are kept without loss, large
    ones compressed. ``ours`` goes into the metadata under the key OURS.
    """

    def __init__(
        self,
        name: str,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        env_spec: Any,
        ours: Mapping[str, Any],
        **about: str,
    ) -> None:
        """``about``: Minari's algorithm_name and description.

        Raises BadInput where a dataset of that name exists, or nothing can be written.
        """
        minari = import_minari()
        self.path, self._id = dataset_path(name)
        if self.path.exists():
            raise BadInput(f"dataset {name} is already there ({self.path}): write another name or version")
        self._aside = self.path.parent / f".{self.path.name}.{os.getpid()}"  # Minari lists no hidden ones
        self.episodes = self.steps = 0
        try:
            self._aside.mkdir(parents=True)
        except OSError as error:
            raise BadInput(f"dataset {name} cannot be written to {self.path}: {error.strerror}") from error
        self._storage = minari.dataset.minari_storage.MinariStorage.new(
            self._aside / "data",
            observation_space=observation_space,
            action_space=action_space,
            env_spec=env_spec,
            jpeg_encoding=False,  # JPEG is lossy
        )
        self._storage.update_metadata(
            {"dataset_id": self._id, "minari_version": minari.__version__, OURS: dict(ours), **about}
        )

    def add(self, observations: Any, rewards: Array, **columns: Any) -> None:
        """Write an episode of T steps: ``observations`` [T + 1, ...] or a dict of such arrays, ``rewards`` [T].

        Other ``columns`` as Minari's EpisodeBuffer takes them.
        """
        self._make_room(observations)
        buffer = import_minari().data_collector.episode_buffer.EpisodeBuffer
        self._storage.update_episodes([buffer(id=self.episodes, observations=observations, rewards=rewards, **columns)])
        self.episodes += 1
        self.steps += len(rewards)

    def _make_room(self, observations: Any) -> None:
        """Create the compressed arrays of large observations, which Minari then fills (its own are not compressed)."""
        import h5py

        with h5py.File(self._storage.data_path / "main_data.hdf5", "a", track_order=True) as file:
            for place, array in _large_arrays(f"episode_{self.episodes}/observations", observations):
                file.create_dataset(
                    place,
                    shape=(0, *array.shape[1:]),
                    maxshape=(None, *array.shape[1:]),
                    dtype=array.dtype,
                    chunks=(CHUNK, *array.shape[1:]),
                    compression="gzip",
                    compression_opts=1,
                )

    def __enter__(self) -> Self:
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
        """Bytes of the finished dataset's files."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def _large_arrays(place: str, observations: Any) -> Iterator[tuple[str, Array]]:
    """The arrays worth compressing, each with its place in the file."""
    if isinstance(observations, dict):
        for key, value in observations.items():
            yield from _large_arrays(f"{place}/{key}", value)
    elif isinstance(observations, np.ndarray) and observations[0].nbytes >= COMPRESS_FROM:
        yield place, observations
