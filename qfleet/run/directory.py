"""A run's directory: config.yaml, checkpoints/, best/, tensorboard/, metrics.csv, eval.csv, videos/, summary.json."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from learner.checkpoint import Checkpoint, CheckpointStore
from qfleet.config import TrainConfig, from_data, from_yaml, to_yaml
from qfleet.run.remote import Remote, RemoteCheckpoints, is_url, last_part, local_path
from qfleet.run.uploads import LOCK, LeftBehind, Uploads
from rl.errors import BadInput
from rl.files import sync, write_synced
from rl.formats import NewerFormat

log = logging.getLogger("qfleet.run_dir")

CONFIG, SUMMARY, STATUS = "config.yaml", "summary.json", "status.json"
CHECKPOINTS, BEST, METRICS, EVALS = "checkpoints", "best", "metrics.csv", "eval.csv"
HISTORY = "config.history"  # one JSON object per line: what each resume changed
SCALE = "scale.json"  # the last request of `qfleet scale`

# {shards, actors, number}: the numbers that are wanted, or None; a unique id, which distinguishes equal requests
ScaleRequest = dict[str, Any]


class RunDir:
    """The files of one run, and the lock that keeps two processes from training in one directory.

        run = RunDir.create("runs/pong", config)  # or: run = RunDir.open("s3://bucket/pong"), then run.lock()
        checkpoint = run.checkpoints.load_newest()
        run.unlock()

    The directory may be a URL (decisions/0014). Checkpoints are then read and written there, and all other files in a
    local working folder, ``path``: `open` fetches them, and `start` to `finish` copies what changes. ``where`` is the
    path or URL, ``name`` its last part.
    """

    def __init__(self, place: str | Path, keep_checkpoints: int = 3) -> None:
        self._remote = Remote(str(place)) if is_url(place) else None
        self._uploads: Uploads | None = None
        self._lock: IO[str] | None = None
        self.checkpoints: CheckpointStore
        self.best: CheckpointStore
        if self._remote is None:
            self.path = local_path(place)
            self.where = str(self.path)
            self.checkpoints = CheckpointStore(str(self.path / CHECKPOINTS), keep_checkpoints)
            self.best = CheckpointStore(str(self.path / BEST), keep=1)
        else:
            self.where = self._remote.url
            folder = tempfile.mkdtemp(prefix="qfleet-")
            self._cleanup = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self.path = Path(folder) / last_part(self.where)  # its name is the run's, as that of a local directory
            self.path.mkdir()
            self._uploads = Uploads(self._remote, self.path, STATUS)
            self.checkpoints = RemoteCheckpoints(self._remote, CHECKPOINTS, keep_checkpoints)
            self.best = RemoteCheckpoints(self._remote, BEST, keep=1)
        self.name = self.path.name

    @classmethod
    def create(cls, place: str | Path | None, config: TrainConfig) -> RunDir:
        """Create the directory of a new run, lock it and write its config.yaml.

        ``place`` None: runs/ENVIRONMENT-DATE-TIME-seedN. A run that made no step, by its summary, is replaced, so that a
        start that failed can be repeated. Raises BadInput if the directory holds any other run or cannot be written.
        """
        if place is not None and not is_url(place) and local_path(place) == Path():
            raise BadInput("the run's directory is the current one: write a new directory, such as runs/example")
        if place is None:
            game = config.env.id.split("/")[-1].lower().replace(":", "-")  # a colon means a host to scp and rsync
            place = Path("runs") / f"{game}-{time.strftime('%Y%m%d-%H%M%S')}-seed{config.seed}"
        run = cls(place, config.learner.keep_checkpoints)
        try:
            run._check_unused()
            if run.path.exists() and not run.path.is_dir():
                raise BadInput(f"{run.where} is a file: write the name of a new directory")
            if run._remote is None:
                run.path.mkdir(parents=True, exist_ok=True)
            else:
                run._remote.probe()
            run.lock()
            replaced = run._check_unused()  # again: another process may have trained here since
            run.write(CONFIG, to_yaml(config))
            run.send()
            for name in (METRICS, EVALS, STATUS, SUMMARY) if replaced else ():  # last, the one that says it is unused
                run.remove(name)
        except OSError as error:
            run.unlock()
            raise BadInput(f"{run.where} cannot be written ({_reason(error)}): write another directory") from error
        except BaseException:
            run.unlock()
            raise
        return run

    @classmethod
    def open(cls, place: str | Path, keep_checkpoints: int = 3) -> RunDir:
        """Open the directory of an existing run, without locking it; at a URL, fetch its files, but no checkpoints.

        Raises BadInput if it holds no run, or if it cannot be read.
        """
        run = cls(place, keep_checkpoints)
        try:
            run._fetch()
            if not run.path.is_dir():
                raise BadInput(f"{place} is not a directory: write the directory of a run")
            if not (run.path / CONFIG).is_file() and not run.checkpoints.steps():
                raise BadInput(f"{place} holds no run ({CONFIG} is missing): write the directory of a run")
        except OSError as error:
            raise BadInput(f"{place} cannot be read ({_reason(error)}): write the directory of a run") from error
        return run

    def _names(self) -> set[str]:
        """The names of the files and folders in the directory. Raises OSError."""
        if self._remote is not None:
            return self._remote.names()
        return {file.name for file in self.path.iterdir()} if self.path.is_dir() else set()

    def _check_unused(self) -> bool:
        """Raise BadInput if the directory holds a run, except one that made no step; returns whether it holds that.

        Raises OSError; BadInput also if its summary is damaged.
        """
        names = self._names()
        if not names & {CONFIG, CHECKPOINTS, BEST, METRICS}:
            return False
        summary: dict[str, Any] = {}
        if SUMMARY in names and not names & {CHECKPOINTS, BEST}:
            self._fetch()
            summary = self.read_json(SUMMARY) or {}
        if (summary.get("agent_steps"), summary.get("updates")) != (0, 0):
            raise BadInput(
                f"{self.where} already holds a run: write another directory, or continue that run with --resume"
            )
        return True

    def _fetch(self) -> None:
        """Copy the files at the URL, if the directory is one, to the working folder. Raises OSError."""
        if self._remote is None or self._uploads is None:
            return
        for name in self._remote.names() & {CONFIG, HISTORY, METRICS, EVALS, STATUS, SUMMARY}:
            if (data := self._remote.read(name)) is not None:
                (self.path / name).write_bytes(data)
        self._uploads.fetched()

    def lock(self) -> None:
        """Lock the directory until `unlock` or the end of this process. Raises BadInput if another process holds it.

        On a file system without locks it only logs a warning. At a URL the lock is an object that is renewed.
        """
        try:
            if self._uploads is not None:
                self._uploads.lock()
                return
            self._lock = (self.path / LOCK).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(
                f"{self.where} is being trained by another process: wait until it ends, or stop it with Ctrl-C"
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                log.warning(
                    "%s: this file system has no locks; make sure that no other process trains there", self.where
                )
                return
            raise BadInput(f"{self.where} cannot be written ({_reason(error)}): write another directory") from error

    def unlock(self) -> None:
        """Release the lock, if this object holds it."""
        if self._lock is not None:
            self._lock.close()
        if self._uploads is not None:
            self._uploads.unlock()

    def send(self) -> None:
        """Copy changed files to the URL now, if the directory is one. Raises OSError."""
        if self._uploads is not None:
            self._uploads.send_files()

    def start(self, warn: Callable[[str], None]) -> None:
        """At a URL: from now on, copy changed files and write checkpoints in the background.

        ``warn`` gets a line when the URL cannot be written, and when it can be written again.
        """
        if self._uploads is not None:
            self._uploads.start(warn)
            for store in (self.checkpoints, self.best):
                assert isinstance(store, RemoteCheckpoints)
                store.later = self._uploads.save

    def check(self) -> None:
        """Raise RunFault if the URL could not be written for minutes, or if another process has taken the run."""
        if self._uploads is not None:
            self._uploads.check()

    def finish(self) -> None:
        """At a URL: write what is still to be written. Raises RunFault if that fails.

        The working folder stays if something of the run is only there.
        """
        if self._uploads is not None:
            try:
                self._uploads.finish()
            except LeftBehind:
                self._cleanup.detach()
                raise

    def config(self) -> TrainConfig:
        """The run's configuration: from config.yaml, or from the newest checkpoint if that file is missing or empty.

        Raises BadInput if neither can be read.
        """
        file, shown = self.path / CONFIG, self.at(CONFIG)
        text = file.read_bytes().decode(errors="replace") if file.is_file() else ""
        if text.strip():
            try:
                return from_yaml(text, shown)
            except NewerFormat:
                raise
            except BadInput as error:
                copy = " (or delete the file: the newest checkpoint has a copy)" if self.checkpoints.steps() else ""
                raise BadInput(f"{error}{copy}") from error
        checkpoint = self.newest_checkpoint()
        if (found := checkpoint_config(checkpoint)) is None:
            raise BadInput(
                f"{shown} is missing, and an older Qfleet wrote this run's checkpoints, without a copy of it: write another "
                "run"
            )
        return found

    def newest_checkpoint(self) -> Checkpoint:
        """The newest complete checkpoint. Raises BadInput if there is none, or if it cannot be read at present."""
        try:
            checkpoint = self.checkpoints.load_newest()
        except OSError as error:
            raise BadInput(f"{self.where}: a checkpoint cannot be read ({error}): try again later") from error
        if checkpoint is None:
            raise BadInput(
                f"{self.where} holds no complete checkpoint to resume from: delete it, or write another directory"
            )
        return checkpoint

    def write(self, name: str, text: str) -> None:
        """Write the file ``name`` atomically: a reader, also after a power cut, sees the old or the new text.

        At a URL it is copied soon (see `start`). Raises OSError.
        """
        write_synced(self.path / name, text.encode())
        sync(self.path)
        if self._uploads is not None:
            self._uploads.wake()

    def remove(self, name: str) -> None:
        """Remove the file ``name`` if it exists. Raises OSError."""
        (self.path / name).unlink(missing_ok=True)
        if self._remote is not None:
            self._remote.remove(name)

    def at(self, name: str) -> str:
        """The path or URL of the file ``name``, for messages."""
        return f"{self.where}/{name}"

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
            raise BadInput(f"{self.at(name)} is damaged ({error}): delete it") from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def checkpoint_config(checkpoint: Checkpoint) -> TrainConfig | None:
    """The configuration in a checkpoint; None if an older Qfleet wrote it without one. Raises BadInput."""
    data = checkpoint.state.get("config")
    return None if data is None else from_data(data, "the checkpoint's config")
