"""Minari datasets on disk: finding, opening and writing them.

The name of a dataset is a Minari id (`qfleet/pong-v0`, below MINARI_DATASETS_PATH or ~/.minari/datasets) or the path of
its directory. A path starts with /, ./, ../ or ~. Qfleet never downloads a dataset.
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
METADATA_KEY = "qfleet"  # Qfleet's entry in the metadata of a dataset
# {old module: new module} of environments; older datasets contain the old module.
MOVED = {"rl.grid_worlds": "rl.envs.grid_worlds", "rl.bias_example": "rl.envs.bias_example"}
COMPRESS_FROM = 256  # bytes of an observation; smaller ones are stored as Minari stores them
CHUNK = 16  # observations that are compressed together


def import_minari() -> Any:
    """Import and return `minari`. Raises BadInput if Minari or h5py is not installed."""
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
    """(directory, Minari id) of the dataset ``name``, which need not exist.

    Raises BadInput if the name does not end in a version.
    """
    is_path = name.startswith(("/", "./", "../", "~"))
    dataset_id = Path(name).name if is_path else name
    if not ID.fullmatch(dataset_id):
        raise BadInput(f"dataset {name!r}: its name must end in a version, as in pong-v0, qfleet/pong-v0 or ./pong-v0")
    if is_path:
        return Path(name).expanduser().absolute(), dataset_id
    root = os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets"
    return Path(root) / name, dataset_id


def _not_found(name: str, path: Path) -> BadInput:
    if (Path(name) / "data").is_dir():
        return BadInput(f"there is no dataset {name} at {path}: to use the directory {name}, write ./{name}")
    return BadInput(
        f"there is no dataset {name} at {path}: write the id or the path of an existing one (minari list local), "
        "download one (minari download ID), export a run's replay, or make one (docs/datasets.md)"
    )


def open_dataset(name: str) -> Any:
    """Open the dataset ``name`` as a MinariDataset, without reading an episode.

    Raises BadInput if it is missing, damaged or empty, or if its actions are not Discrete.
    """
    minari = import_minari()
    path, _ = dataset_path(name)
    if not (path / "data").is_dir():
        raise _not_found(name, path)
    try:
        data = minari.MinariDataset(path / "data")
    except (ImportError, ValueError, KeyError, TypeError, AssertionError, OSError, gym.error.Error) as error:
        raise BadInput(f"dataset {name} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(data.action_space, gym.spaces.Discrete):
        raise BadInput(
            f"dataset {name} has actions {data.action_space}: write a dataset with a Discrete action space, which "
            "Q-learning and DQN need"
        )
    if not data.total_steps:
        raise BadInput(f"dataset {name} has no episodes: write another dataset")
    if data.env_spec is not None and isinstance(data.env_spec.entry_point, str):
        module, colon, attribute = data.env_spec.entry_point.partition(":")
        data.env_spec.entry_point = (
            MOVED.get(module, module) + colon + attribute
        )  # Minari's recover_environment uses it
    return data


def env_config_of(data: Any, name: str) -> EnvConfig | None:
    """The environment in which the dataset was recorded, from its metadata. None if the metadata do not contain it.

    Raises BadInput if this version of Qfleet does not know its settings.
    """
    metadata = data.storage.metadata.get(METADATA_KEY, {})
    if metadata.get("env"):
        try:
            return EnvConfig(**metadata["env"])
        except (TypeError, BadInput) as error:
            raise BadInput(
                f"dataset {name}: this Qfleet does not know the settings of its environment ({error}): use the Qfleet "
                "that wrote it"
            ) from error
    return None if data.env_spec is None else EnvConfig(id=data.env_spec.id)


def check_episode(episode: Any, where: str, first_action: int, actions: int) -> None:
    """Raise BadInput if the arrays of a Minari episode of T steps are inconsistent. ``where`` begins the message.

    Observations must be [T + 1, ...] and all other arrays [T]. Actions must be integers from ``first_action`` to
    ``first_action + actions - 1``.
    """
    steps, taken = len(episode), np.asarray(episode.actions)
    lengths = [len(x) for x in (episode.actions, episode.terminations, episode.truncations)]
    if not steps or lengths != [steps] * 3 or len(episode.observations) != steps + 1:
        raise BadInput(
            f"{where}: the lengths of its arrays do not fit: {steps} rewards, "
            f"{len(episode.observations)} observations, {lengths[0]} actions, {lengths[1]} terminations, "
            f"{lengths[2]} truncations"
        )
    if taken.shape != (steps,) or ((taken < first_action) | (taken >= first_action + actions)).any():
        last = first_action + actions - 1
        raise BadInput(f"{where}: an action is outside the dataset's action space, {first_action} to {last}")
    done = np.asarray(episode.terminations, np.bool_) | np.asarray(episode.truncations, np.bool_)
    if done[:-1].any():
        raise BadInput(f"{where}: step {int(done.argmax())} ends the episode, but more steps follow")
    if not np.isfinite(episode.rewards).all() or not np.isfinite(episode.observations).all():
        raise BadInput(f"{where}: a reward or an observation is not finite")


class NewDataset:
    """Writes a new dataset, one episode at a time.

        with NewDataset(name, observation_space, action_space, env_spec, metadata) as dataset:
            dataset.add(observations, rewards, actions=..., terminations=..., truncations=..., infos=...)

    The dataset appears under its name when the `with` block ends without an error. Large observations are compressed,
    without loss. ``metadata`` is stored under METADATA_KEY.
    """

    def __init__(
        self,
        name: str,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        env_spec: Any,
        metadata: Mapping[str, Any],
        **minari_metadata: str,
    ) -> None:
        """``minari_metadata`` are Minari's own entries, such as algorithm_name and description.

        Raises BadInput if a dataset of that name exists or cannot be written.
        """
        minari = import_minari()
        self.path, self._id = dataset_path(name)
        if self.path.exists():
            raise BadInput(f"dataset {name} already exists at {self.path}: write another name or version")
        # Minari does not list hidden directories
        self._temporary = self.path.parent / f".{self.path.name}.{os.getpid()}"
        self.episodes = self.steps = 0
        try:
            self._temporary.mkdir(parents=True)
        except OSError as error:
            raise BadInput(f"dataset {name} cannot be written to {self.path}: {error.strerror}") from error
        self._storage = minari.dataset.minari_storage.MinariStorage.new(
            self._temporary / "data",
            observation_space=observation_space,
            action_space=action_space,
            env_spec=env_spec,
            jpeg_encoding=False,  # JPEG is lossy
        )
        self._storage.update_metadata(
            {
                "dataset_id": self._id,
                "minari_version": minari.__version__,
                METADATA_KEY: dict(metadata),
                **minari_metadata,
            }
        )

    def add(self, observations: Any, rewards: Array, **columns: Any) -> None:
        """Write an episode of T steps: ``observations`` [T + 1, ...], or a dict of such arrays, and ``rewards`` [T].

        ``columns`` are further arguments of Minari's EpisodeBuffer: actions, terminations, truncations, infos.
        """
        self._create_compressed_arrays(observations)
        buffer = import_minari().data_collector.episode_buffer.EpisodeBuffer
        self._storage.update_episodes([buffer(id=self.episodes, observations=observations, rewards=rewards, **columns)])
        self.episodes += 1
        self.steps += len(rewards)

    def _create_compressed_arrays(self, observations: Any) -> None:
        """Create compressed arrays for large observations. Minari then fills them; its own are not compressed."""
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
            shutil.rmtree(self._temporary, ignore_errors=True)
            return
        self._temporary.rename(self.path)
        namespace, namespaces = self._id.rpartition("/")[0], import_minari().namespace
        if namespace and namespace not in namespaces.list_local_namespaces():
            namespaces.create_namespace(namespace)

    @property
    def bytes(self) -> int:
        """Size of the finished dataset on disk, in bytes."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def _large_arrays(place: str, observations: Any) -> Iterator[tuple[str, Array]]:
    """Yield (path in the HDF5 file, array) for each array of observations that is large enough to compress."""
    if isinstance(observations, dict):
        for key, value in observations.items():
            yield from _large_arrays(f"{place}/{key}", value)
    elif isinstance(observations, np.ndarray) and observations[0].nbytes >= COMPRESS_FROM:
        yield place, observations
