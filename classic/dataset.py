"""Datasets of single transitions for fitted Q-iteration: collected with random actions, saved as NPZ files.

Legend: ``s``, ``s_next`` [N, *observation]; ``a`` [N] actions, counted from 0; ``r``, ``terminated``, ``truncated``
[N]. ``s_next`` is the observation that follows, also at the end of an episode, where it is the last observation.
"""

from __future__ import annotations

import itertools
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rl.bounds import as_written, at_least, require
from rl.envs.config import EnvConfig
from rl.envs.make import make_environments, spec_and_actions
from rl.errors import BadSetting
from rl.stepping import SeedSequence, rollout
from rl.types import Array, Bool, Float64, Int64

UNREADABLE = (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error)
MIN_TRANSITIONS = 30  # k-nearest averages over 30 neighbours
MAX_TRANSITIONS = 50_000_000  # a dataset is held in memory
COLUMNS = ("s", "a", "r", "terminated", "truncated", "s_next")


@dataclass(frozen=True)
class DatasetConfig:
    """Source of the transitions: random steps, or a file."""

    steps: int = 50_000
    """Steps with uniformly random actions, collected before learning starts."""
    dataset: str = ""
    """NPZ file of transitions to learn from; empty: collect new ones."""
    save_dataset: str = ""
    """NPZ file to which the collected transitions are saved; empty: they are not saved."""

    def __post_init__(self) -> None:
        at_least(self, MIN_TRANSITIONS, "steps")
        require(self.steps <= MAX_TRANSITIONS, self, "steps", f"at most {as_written(MAX_TRANSITIONS)}")
        if self.dataset and self.save_dataset:
            message = "excludes `save_dataset`: write the first to learn from a file, the second to collect a new one"
            raise BadSetting(type(self), "dataset", message)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Transitions of one environment."""

    env_id: str
    s: Array  # [N, *observation]
    a: Int64  # [N]
    r: Float64  # [N]
    terminated: Bool  # [N]
    truncated: Bool  # [N]
    s_next: Array  # [N, *observation]

    def __len__(self) -> int:
        return len(self.a)


def collect(env: EnvConfig, steps: int, seed: int) -> Dataset:
    """Collect ``steps`` transitions with uniformly random actions. The same seed gives the same transitions.

    Raises BadInput if the environment's spaces do not fit.
    """
    environments = make_environments(env, 1)
    a = np.random.default_rng([seed, 1]).integers(0, environments.actions, steps)
    s, s_next = (np.zeros((steps, *environments.spec.shape), environments.spec.dtype) for _ in range(2))
    r, terminated, truncated = np.zeros(steps), np.zeros(steps, np.bool_), np.zeros(steps, np.bool_)
    actions = iter(a[:, None])
    played = rollout(environments, lambda _: next(actions), SeedSequence(seed, 0).draw)
    for i, (observation, _, step, *_) in enumerate(itertools.islice(played, steps)):
        s[i], s_next[i] = observation[0], step.observation[0]
        r[i], terminated[i], truncated[i] = step.reward[0], step.terminated[0], step.truncated[0]
    environments.close()
    return Dataset(env.id, s, a, r, terminated, truncated, s_next)


def save(dataset: Dataset, file: str) -> None:
    """Write ``dataset`` to a compressed NPZ file. Raises BadInput if the file cannot be written."""
    columns = {name: getattr(dataset, name) for name in COLUMNS}
    try:
        with open(file, "wb") as opened:
            np.savez_compressed(opened, env_id=np.array(dataset.env_id), **columns)
    except OSError as error:
        message = f"{file} cannot be written ({error.strerror}): write a file in a directory that exists"
        raise BadSetting(DatasetConfig, "save_dataset", message) from error


def load(file: str, env: EnvConfig) -> Dataset:
    """Load a dataset that `save` wrote, and check that it fits ``env``. Pickled objects are not loaded.

    Raises BadInput if the file is missing or damaged, or if its arrays do not fit the environment.
    """
    spec, actions = spec_and_actions(env)
    columns = _read_columns(file)
    env_id = str(columns.pop("env_id"))
    if env_id != env.id:
        raise BadSetting(
            EnvConfig,
            "id",
            f"is {env.id!r}, but {file} is a dataset of {env_id}: write `id: {env_id}`, or another file",
        )
    steps = columns["a"].shape[:1]
    if steps in ((), (0,)):
        raise _bad_dataset(f"{file} has no transitions: write another file")
    if steps[0] < MIN_TRANSITIONS:
        raise _bad_dataset(f"{file} has {steps[0]} transitions: write a file with at least {MIN_TRANSITIONS}")
    kinds = {"s": "f", "s_next": "f", "a": "iu", "r": "fiu", "terminated": "b", "truncated": "b"}
    if spec.dtype == "uint8":
        kinds |= {"s": "u", "s_next": "u"}
    for name, column in columns.items():
        shape = steps + (spec.shape if name.startswith("s") else ())
        if column.shape != shape or column.dtype.kind not in kinds[name]:
            raise _bad_dataset(
                f"{file}: {name} is {column.dtype} of shape {column.shape}, but {env.id} needs shape {shape}: "
                "write a file that was saved with `save_dataset` for this environment"
            )
    if columns["a"].min() < 0 or columns["a"].max() >= actions:
        raise _bad_dataset(f"{file}: a has actions outside 0 to {actions - 1}, those of {env.id}: write another file")
    if not all(np.isfinite(columns[name]).all() for name in ("s", "r", "s_next")):
        raise _bad_dataset(f"{file} has NaN or infinite numbers: write another file")
    return Dataset(
        env_id,
        columns["s"].astype(spec.dtype),
        columns["a"].astype(np.int64),
        columns["r"].astype(np.float64),
        columns["terminated"],
        columns["truncated"] & ~columns["terminated"],
        columns["s_next"].astype(spec.dtype),
    )


def _bad_dataset(message: str) -> BadSetting:
    return BadSetting(DatasetConfig, "dataset", message)


def _read_columns(file: str) -> dict[str, Array]:
    if not Path(file).is_file():
        raise _bad_dataset(
            f"{file} does not exist: write an existing file, or `save_dataset: {file}` to collect and save one"
        )
    try:
        with np.load(file, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in ("env_id", *COLUMNS)}
    except UNREADABLE as error:
        message = f"{file} is not a dataset of transitions: write an NPZ file with env_id, {', '.join(COLUMNS)}"
        raise _bad_dataset(message) from error
    return columns


def check_dataset(config: DatasetConfig, env: EnvConfig) -> None:
    """Raise BadInput unless `dataset` can be loaded and fits ``env``, and the directory of `save_dataset` exists."""
    if config.dataset:
        load(config.dataset, env)
    if config.save_dataset and not Path(config.save_dataset).absolute().parent.is_dir():
        message = f"{config.save_dataset} is in a directory that does not exist: create it, or write another file"
        raise BadSetting(DatasetConfig, "save_dataset", message)


def load_or_collect(config: DatasetConfig, env: EnvConfig, seed: int) -> Dataset:
    """Load the file `dataset`, or collect new transitions if it is empty and save them to `save_dataset`.

    Raises BadInput if a file cannot be read or written, or does not fit ``env``.
    """
    if config.dataset:
        return load(config.dataset, env)
    collected = collect(env, config.steps, seed)
    if config.save_dataset:
        save(collected, config.save_dataset)
    return collected
