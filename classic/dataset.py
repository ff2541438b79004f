"""Datasets of single transitions: collected once by random actions, learned from in batch, kept as NPZ.

Legend: ``s``, ``s_next`` [N, *observation], ``a`` [N] actions from 0, ``r`` [N], ``terminated``, ``truncated`` [N].
``s_next`` is the true successor, also where the episode ended.
"""

from __future__ import annotations

import itertools
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rl.bounds import at_least, require
from rl.envs.config import EnvConfig
from rl.envs.make import describe, make_environments
from rl.errors import BadSetting
from rl.stepping import SeedSequence, rollout
from rl.types import Array, Bool, Float64, Int64

UNREADABLE = (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error)
LEAST = 30  # transitions to learn from: k-nearest has as many neighbours
MOST = 50_000_000  # transitions of a dataset, which is held in memory
COLUMNS = ("s", "a", "r", "terminated", "truncated", "s_next")


@dataclass(frozen=True)
class DatasetConfig:
    """Where the transitions come from."""

    steps: int = 50_000
    """Uniformly random steps collected before learning begins."""
    dataset: str = ""
    """NPZ file of transitions to learn from, instead of collecting them."""
    save_dataset: str = ""
    """NPZ file to keep the collected transitions in."""

    def __post_init__(self) -> None:
        at_least(self, LEAST, "steps")
        require(self.steps <= MOST, self, "steps", f"at most {MOST:,}")
        if self.dataset and self.save_dataset:
            said = "and `save_dataset`: write the first to learn from a file, or the second to collect one"
            raise BadSetting(type(self), "dataset", said)


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
    """N = ``steps`` transitions of uniformly random actions, the same for the same seed. Raises BadInput."""
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
    """Write ``dataset`` as compressed NPZ. Raises BadInput where the file cannot be written."""
    columns = {name: getattr(dataset, name) for name in COLUMNS}
    try:
        with open(file, "wb") as opened:
            np.savez_compressed(opened, env_id=np.array(dataset.env_id), **columns)
    except OSError as error:
        said = f"{file}: {error.strerror}: write a file in a directory that exists"
        raise BadSetting(DatasetConfig, "save_dataset", said) from error


def load(file: str, env: EnvConfig) -> Dataset:
    """The dataset that `save` wrote, for learning on ``env``. Raises BadInput where the two do not fit. No pickles."""
    spec, actions = describe(env)
    columns = _read(file)
    env_id = str(columns.pop("env_id"))
    if env_id != env.id:
        raise BadSetting(EnvConfig, "id", f"{env.id!r} is not what {file} is of: write `id: {env_id}`, or another file")
    steps = columns["a"].shape[:1]
    if steps in ((), (0,)):
        raise _unfit(f"{file} holds no transitions: write another file")
    if steps[0] < LEAST:
        raise _unfit(f"{file} holds {steps[0]} transitions: write one of at least {LEAST}")
    kinds = {"s": "f", "s_next": "f", "a": "iu", "r": "fiu", "terminated": "b", "truncated": "b"}
    if spec.dtype == "uint8":
        kinds |= {"s": "u", "s_next": "u"}
    for name, column in columns.items():
        shape = steps + (spec.shape if name.startswith("s") else ())
        if column.shape != shape or column.dtype.kind not in kinds[name]:
            raise _unfit(
                f"{file}: {name} is {column.dtype} {column.shape}, {env.id} has {shape}: "
                "write a file that `save_dataset` wrote for this environment"
            )
    if columns["a"].min() < 0 or columns["a"].max() >= actions:
        raise _unfit(f"{file}: a is not from 0 to {actions - 1}, the actions of {env.id}: write another file")
    if not all(np.isfinite(columns[name]).all() for name in ("s", "r", "s_next")):
        raise _unfit(f"{file} holds numbers that are not finite: write another file")
    return Dataset(
        env_id,
        columns["s"].astype(spec.dtype),
        columns["a"].astype(np.int64),
        columns["r"].astype(np.float64),
        columns["terminated"],
        columns["truncated"] & ~columns["terminated"],
        columns["s_next"].astype(spec.dtype),
    )


def _unfit(said: str) -> BadSetting:
    return BadSetting(DatasetConfig, "dataset", said)


def _read(file: str) -> dict[str, Array]:
    if not Path(file).is_file():
        raise _unfit(f"{file} is not there: write `save_dataset: {file}` to collect and keep one")
    try:
        with np.load(file, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in ("env_id", *COLUMNS)}
    except UNREADABLE as error:
        said = f"{file} is no dataset of transitions: write an NPZ file with env_id, {', '.join(COLUMNS)}"
        raise _unfit(said) from error
    return columns


def check(config: DatasetConfig, env: EnvConfig) -> None:
    """Raise BadInput unless the dataset that is named exists and fits, and the one to save can be written."""
    if config.dataset:
        load(config.dataset, env)
    if config.save_dataset and not Path(config.save_dataset).absolute().parent.is_dir():
        said = f"{config.save_dataset}: its directory is not there: write one that exists"
        raise BadSetting(DatasetConfig, "save_dataset", said)


def transitions(config: DatasetConfig, env: EnvConfig, seed: int) -> Dataset:
    """The dataset to learn from: the file that is named, or new random steps, saved where `save_dataset` names a file.

    Raises BadInput.
    """
    if config.dataset:
        return load(config.dataset, env)
    collected = collect(env, config.steps, seed)
    if config.save_dataset:
        save(collected, config.save_dataset)
    return collected
