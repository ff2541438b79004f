"""A run's directory: config.yaml, checkpoints/, best/, tensorboard/, metrics.csv, eval.csv, videos/, summary.json."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from learner.checkpoint import Checkpoint, CheckpointStore
from qfleet.config import TrainConfig, from_yaml, to_yaml
from rl.errors import BadInput

log = logging.getLogger("qfleet.run_dir")

CONFIG, SUMMARY, STATUS, LOCK = "config.yaml", "summary.json", "status.json", ".lock"
SCALE = "scale.json"  # what `qfleet scale` asks for

ScaleRequest = dict[str, Any]  # {shards, number}: two requests for the same are two


class RunDir:
    """Names and files of one run."""

    def __init__(self, path: Path, keep_checkpoints: int = 3) -> None:
        self.path = path
        self.checkpoints = CheckpointStore(str(path / "checkpoints"), keep_checkpoints)
        self.best = CheckpointStore(str(path / "best"), keep=1)
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, path: Path | None, config: TrainConfig) -> RunDir:
        """A fresh run's directory (a dated one by default), locked. Raises BadInput where a run already is."""
        if path is not None and str(path) == ".":
            raise BadInput(
                "the run's directory has an empty name, or is this very directory: write one of the run's own"
            )
        if path is None:
            game = config.env.id.split("/")[-1].lower()
            path = Path("runs") / f"{game}-{time.strftime('%Y%m%d-%H%M%S')}-seed{config.seed}"
        if (path / CONFIG).exists():
            raise BadInput(f"{path} already holds a run: write another directory, or resume it")
        if path.exists() and not path.is_dir():
            raise BadInput(f"{path} is a file: write a directory")
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path, config.learner.keep_checkpoints)
            run.lock()
            run.write(CONFIG, to_yaml(config))
        except OSError as error:
            raise BadInput(f"{path} cannot be written: {error.strerror}: write another directory") from error
        return run

    @classmethod
    def open(cls, path: Path, keep_checkpoints: int = 3) -> RunDir:
        """An existing run's directory; raises BadInput."""
        if not path.is_dir():
            raise BadInput(f"{path} is no run's directory: write the directory of a run")
        if not (path / CONFIG).is_file():
            raise BadInput(f"{path} holds no run ({CONFIG} is missing): write the directory of a run")
        return cls(path, keep_checkpoints)

    def lock(self) -> None:
        """Keep other processes from training in this directory while this one lives. Raises BadInput when one does."""
        try:
            self._lock = (self.path / LOCK).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(
                f"{self.path} is being trained by another process: let it end, or stop it with Ctrl-C there"
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                log.warning("%s: this file system has no locks; see that no other process trains there", self.path)
                return
            raise BadInput(f"{self.path} cannot be written: {error.strerror}") from error

    def unlock(self) -> None:
        """Inverse of `lock`."""
        if self._lock is not None:
            self._lock.close()

    def config(self) -> TrainConfig:
        """The configuration that the run was started with."""
        return from_yaml((self.path / CONFIG).read_text(), str(self.path / CONFIG))

    def newest_checkpoint(self) -> Checkpoint:
        """The newest whole checkpoint; raises BadInput when there is none."""
        checkpoint = self.checkpoints.load_newest()
        if checkpoint is None:
            raise BadInput(f"{self.path} holds no whole checkpoint to resume from: start it anew")
        return checkpoint

    def write(self, name: str, text: str) -> None:
        """Write a file aside and rename it into place, so that a reader never sees half of it."""
        aside = self.path / f".{name}.{os.getpid()}"
        aside.write_text(text)
        aside.replace(self.path / name)

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """`write` of a JSON object."""
        self.write(name, json.dumps(data, indent=1) + "\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON object of the run, or None when it is not there."""
        file = self.path / name
        return json.loads(file.read_text()) if file.is_file() else None


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("qfleet", "torch", "numpy", "ray", "gymnasium", "ale-py", "grpcio", "protobuf", "lz4")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
