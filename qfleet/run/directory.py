"""A run's directory: config.yaml, checkpoints/, best/, tensorboard/, metrics.csv, eval.csv, videos/, summary.json."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from learner.checkpoint import Checkpoint, CheckpointStore
from qfleet.config import TrainConfig, from_data, from_yaml, to_yaml
from rl.errors import BadInput
from rl.files import sync, write_synced
from rl.formats import NewerFormat

log = logging.getLogger("qfleet.run_dir")

CONFIG, SUMMARY, STATUS, LOCK = "config.yaml", "summary.json", "status.json", ".lock"
CHECKPOINTS, BEST, METRICS = "checkpoints", "best", "metrics.csv"
HISTORY = "config.history"  # one JSON object per line: what each resume changed
SCALE = "scale.json"  # the last request of `qfleet scale`

# {shards, actors, number}: the numbers that are wanted, or None; a unique id, which distinguishes equal requests
ScaleRequest = dict[str, Any]


class RunDir:
    """The files of one run, and the lock that keeps two processes from training in one directory.

    run = RunDir.create(Path("runs/pong"), config)  # or: run = RunDir.open(Path("runs/pong")), then run.lock()
    checkpoint = run.checkpoints.load_newest()
    run.unlock()
    """

    def __init__(self, path: Path, keep_checkpoints: int = 3) -> None:
        self.path = path
        self.checkpoints = CheckpointStore(str(path / CHECKPOINTS), keep_checkpoints)
        self.best = CheckpointStore(str(path / BEST), keep=1)
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, path: Path | None, config: TrainConfig) -> RunDir:
        """Create the directory of a new run, lock it and write its config.yaml.

        ``path`` None: runs/ENVIRONMENT-DATE-TIME-seedN. Raises BadInput if the directory already holds a run or cannot
        be written.
        """
        if path is not None and str(path) == ".":
            raise BadInput("the run's directory is the current one: write a new directory, such as runs/example")
        if path is None:
            game = config.env.id.split("/")[-1].lower().replace(":", "-")  # a colon means a host to scp and rsync
            path = Path("runs") / f"{game}-{time.strftime('%Y%m%d-%H%M%S')}-seed{config.seed}"
        if any((path / name).exists() for name in (CONFIG, CHECKPOINTS, BEST, METRICS)):
            raise BadInput(f"{path} already holds a run: write another directory, or continue that run with --resume")
        if path.exists() and not path.is_dir():
            raise BadInput(f"{path} is a file: write the name of a new directory")
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path, config.learner.keep_checkpoints)
            run.lock()
            run.write(CONFIG, to_yaml(config))
        except OSError as error:
            raise BadInput(f"{path} cannot be written ({error.strerror}): write another directory") from error
        return run

    @classmethod
    def open(cls, path: Path, keep_checkpoints: int = 3) -> RunDir:
        """Open the directory of an existing run, without locking it. Raises BadInput if it holds no run."""
        if not path.is_dir():
            raise BadInput(f"{path} is not a directory: write the directory of a run")
        run = cls(path, keep_checkpoints)
        if not (path / CONFIG).is_file() and not run.checkpoints.steps():
            raise BadInput(f"{path} holds no run ({CONFIG} is missing): write the directory of a run")
        return run

    def lock(self) -> None:
        """Lock the directory until `unlock` or the end of this process. Raises BadInput if another process holds it.

        On a file system without locks it only logs a warning.
        """
        try:
            self._lock = (self.path / LOCK).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(
                f"{self.path} is being trained by another process: wait until it ends, or stop it with Ctrl-C"
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                log.warning(
                    "%s: this file system has no locks; make sure that no other process trains there", self.path
                )
                return
            raise BadInput(f"{self.path} cannot be written ({error.strerror}): write another directory") from error

    def unlock(self) -> None:
        """Release the lock, if this object holds it."""
        if self._lock is not None:
            self._lock.close()

    def config(self) -> TrainConfig:
        """The run's configuration: from config.yaml, or from the newest checkpoint if that file is missing or empty.

        Raises BadInput if neither can be read.
        """
        file = self.path / CONFIG
        text = file.read_bytes().decode(errors="replace") if file.is_file() else ""
        if text.strip():
            try:
                return from_yaml(text, str(file))
            except NewerFormat:
                raise
            except BadInput as error:
                copy = " (or delete the file: the newest checkpoint has a copy)" if self.checkpoints.steps() else ""
                raise BadInput(f"{error}{copy}") from error
        checkpoint = self.newest_checkpoint()
        if (found := checkpoint_config(checkpoint)) is None:
            raise BadInput(
                f"{file} is missing, and an older Qfleet wrote this run's checkpoints, without a copy of it: write another "
                "run"
            )
        return found

    def newest_checkpoint(self) -> Checkpoint:
        """The newest complete checkpoint. Raises BadInput if there is none, or if it cannot be read at present."""
        try:
            checkpoint = self.checkpoints.load_newest()
        except OSError as error:
            raise BadInput(f"{self.path}: a checkpoint cannot be read ({error}): try again later") from error
        if checkpoint is None:
            raise BadInput(f"{self.path} holds no complete checkpoint to resume from: start a new run")
        return checkpoint

    def write(self, name: str, text: str) -> None:
        """Write the file ``name`` atomically: a reader, also after a power cut, sees the old or the new text.

        Raises OSError.
        """
        write_synced(self.path / name, text.encode())
        sync(self.path)

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Write ``data`` as JSON to the file ``name``, as `write` does. Raises OSError."""
        self.write(name, json.dumps(data, indent=1) + "\n")

    def write_status(self, data: Mapping[str, Any]) -> None:
        """Replace the run's status. A power cut may damage it. Raises OSError."""
        temporary = self.path / f".{STATUS}"
        temporary.write_text(json.dumps(data, indent=1) + "\n")
        temporary.replace(self.path / STATUS)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in the file ``name``; None if there is no such file. Raises BadInput if it is damaged."""
        file = self.path / name
        try:
            return dict(json.loads(file.read_bytes())) if file.is_file() else None
        except (ValueError, TypeError) as error:
            raise BadInput(f"{file} is damaged ({error}): delete it") from error


def checkpoint_config(checkpoint: Checkpoint) -> TrainConfig | None:
    """The configuration in a checkpoint; None if an older Qfleet wrote it without one. Raises BadInput."""
    data = checkpoint.state.get("config")
    return None if data is None else from_data(data, "the checkpoint's config")


def package_versions() -> dict[str, str]:
    """The installed versions of the packages that a result depends on, by package."""
    names = ("qfleet", "torch", "numpy", "ray", "gymnasium", "ale-py", "grpcio", "protobuf", "lz4")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
