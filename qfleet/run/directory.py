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
from qfleet.config import TrainConfig, from_data, from_yaml, to_yaml
from rl.errors import BadInput

log = logging.getLogger("qfleet.run_dir")

CONFIG, SUMMARY, STATUS, LOCK = "config.yaml", "summary.json", "status.json", ".lock"
HISTORY = "config.history"  # what each resume changed, a JSON object a line
SCALE = "scale.json"  # what `qfleet scale` asks for

ScaleRequest = dict[str, Any]  # {shards, number}; the number tells two requests for as many shards apart


class RunDir:
    """Names and files of one run.

    Use:

        run = RunDir.create(Path("runs/pong"), config)  # or: run = RunDir.open(Path("runs/pong")), then run.lock()
        checkpoint = run.checkpoints.load_newest()
        run.unlock()
    """

    def __init__(self, path: Path, keep_checkpoints: int = 3) -> None:
        self.path = path
        self.checkpoints = CheckpointStore(str(path / "checkpoints"), keep_checkpoints)
        self.best = CheckpointStore(str(path / "best"), keep=1)
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, path: Path | None, config: TrainConfig) -> RunDir:
        """A new run's directory with its config.yaml, locked; ``path`` None: a dated one under runs/.

        Raises BadInput where it holds a run already or cannot be written.
        """
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
        """The directory of an existing run, not locked. Raises BadInput where it holds none."""
        if not path.is_dir():
            raise BadInput(f"{path} is no run's directory: write the directory of a run")
        run = cls(path, keep_checkpoints)
        if not (path / CONFIG).is_file() and not run.checkpoints.steps():
            raise BadInput(f"{path} holds no run ({CONFIG} is missing): write the directory of a run")
        return run

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
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()

    def config(self) -> TrainConfig:
        """The configuration that the run goes on with: config.yaml's, or where that is lost the newest checkpoint's.

        Raises BadInput where neither can be read.
        """
        file = self.path / CONFIG
        if file.is_file():
            return from_yaml(file.read_text(), str(file))
        checkpoint = self.newest_checkpoint()
        if (found := config_of(checkpoint)) is None:
            raise BadInput(f"{file} is missing, and an older Qfleet's checkpoints do not hold it: write another run")
        return found

    def newest_checkpoint(self) -> Checkpoint:
        """The newest whole checkpoint. Raises BadInput where there is none."""
        checkpoint = self.checkpoints.load_newest()
        if checkpoint is None:
            raise BadInput(f"{self.path} holds no whole checkpoint to resume from: start it anew")
        return checkpoint

    def write(self, name: str, text: str) -> None:
        """Write a file beside its place and rename it, so that a reader never sees half of it. Raises OSError."""
        aside = self.path / f".{name}.{os.getpid()}"
        aside.write_text(text)
        aside.replace(self.path / name)

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """`write` of a JSON object. Raises OSError."""
        self.write(name, json.dumps(data, indent=1) + "\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON object of the run, None where the file is not there. Raises ValueError where it is damaged."""
        file = self.path / name
        return json.loads(file.read_text()) if file.is_file() else None


def config_of(checkpoint: Checkpoint) -> TrainConfig | None:
    """The configuration that a checkpoint was made with; None where an older Qfleet kept none. Raises BadInput."""
    data = checkpoint.state.get("config")
    return None if data is None else from_data(data, "the checkpoint's config")


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on, by package."""
    names = ("qfleet", "torch", "numpy", "ray", "gymnasium", "ale-py", "grpcio", "protobuf", "lz4")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
