"""Copies the files of a run from its working folder to its URL, and writes its checkpoints there, in the background."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from learner.checkpoint import Checkpoint, CheckpointStore
from qfleet.run.remote import TIMEOUT, Remote, RemoteCheckpoints, last_part
from rl.errors import BadInput, RunFault

log = logging.getLogger("qfleet.run_dir")

LOCK = ".lock"  # at a URL: {owner, where, time}, rewritten every PERIOD seconds, removed at the end of the run
LOCK_MAX_AGE = 30.0  # seconds: an older lock was left by a killed process
PERIOD = 10.0  # seconds between renewals of the lock, and between copies of changed files
BOARD_PERIOD = 60.0  # seconds between copies of TensorBoard's files, which grow fastest
RETRY = 5.0  # seconds to the next try after a failure
GIVE_UP = 600.0  # seconds of failures after which the run ends
FINISH = 120.0  # seconds for what is still to be written when the run ends


class LeftBehind(RunFault):
    """At its end a run could not write everything to its URL; the rest is in the working folder."""


class Uploads:
    """The files of one run on their way from ``folder`` to ``remote``.

        uploads = Uploads(remote, folder)
        uploads.lock()
        uploads.send_files()  # now; raises OSError
        uploads.start(progress.note)
        uploads.save(store, step, checkpoint)  # and any change of a file; check() from time to time
        uploads.finish()
        uploads.unlock()

    While the server fails, only the newest checkpoint of each store is kept, in memory. From `lock` to `unlock` a second
    thread renews the lock, which must not grow old during a long save, and copies ``status``, the name of a file.
    """

    def __init__(self, remote: Remote, folder: Path, status: str) -> None:
        self._remote, self._folder, self._status = remote, folder, status
        self._owner = uuid.uuid4().hex
        self._is_locked = False
        self._sent: dict[str, tuple[int, int]] = {}  # file -> (time of change, size) when it was copied
        self._board_sent = 0.0  # time
        self._saves: dict[str, tuple[RemoteCheckpoints, int, Checkpoint]] = {}  # waiting, by the store's path
        self._mutex = threading.Lock()  # of _saves
        self._wake, self._unlocking = threading.Event(), threading.Event()
        self._deadline = math.inf  # time.monotonic() at which the worker gives up; finite once the run ends
        self._is_complete = False  # whether the worker has written everything after the run has ended
        self._worker = threading.Thread(target=self._work, daemon=True, name="uploads")
        self._keeper = threading.Thread(target=self._keep_lock, daemon=True, name="lock at a URL")
        self._warn: Callable[[str], None] = log.warning
        self._failing_since: float | None = None
        self._last_error = ""
        self._lost_to = ""  # the process that has taken the run from this one

    def lock(self) -> None:
        """Write the lock, an object that is renewed until `unlock`. Raises BadInput if another process has it.

        Stores have no atomic lock. Two processes that start within a second can both pass; the second to write wins, and
        the other ends when it renews its lock. Raises Unreachable.
        """
        if (other := self._other_owner()) is not None:
            age = time.time() - other["time"]
            if age < LOCK_MAX_AGE:
                raise BadInput(
                    f"{self._remote.url} is being trained by another process ({other['where']}): wait until it ends, or, "
                    f"if it was killed, for {LOCK_MAX_AGE - age:.0f} s"
                )
        self._write_lock()
        self._is_locked = True
        self._keeper.start()

    def unlock(self) -> None:
        """Stop the threads, if they run, and remove the lock. Never raises: a lock that is left grows old."""
        self._deadline = min(self._deadline, time.monotonic())
        self._unlocking.set()
        self._wake.set()
        if self._is_locked and not self._lost_to and self._failing_since is None:
            self._is_locked = False
            self._keeper.join(TIMEOUT)  # or it might write the lock again
            try:
                self._remote.remove(LOCK)
            except OSError as error:
                log.warning("%s: the lock could not be removed (%s)", self._remote.url, error)

    def _keep_lock(self) -> None:
        while not self._unlocking.wait(PERIOD):
            try:
                if self._is_taken():
                    return
                self._write_lock()
                if (self._folder / self._status).is_file():
                    self._send_file(self._status)
            except OSError:
                pass  # the worker reports failures

    def _is_taken(self) -> bool:
        """Whether another process has written its own lock. Raises Unreachable."""
        if (other := self._other_owner()) is not None:
            self._lost_to = other["where"]
        return bool(self._lost_to)

    def _other_owner(self) -> dict[str, Any] | None:
        """The content of the lock of another process, or None."""
        try:
            found = json.loads(self._remote.read(LOCK) or b"null")
            if found is None or found["owner"] == self._owner or found["time"] < 0:
                return None
            return {"where": str(found["where"]), "time": found["time"]}
        except (ValueError, TypeError, KeyError):
            return None  # damaged: written by no Qfleet

    def _write_lock(self) -> None:
        where = f"process {os.getpid()} on {platform.node()}"
        lock = {"owner": self._owner, "where": where, "time": time.time()}
        self._remote.write(LOCK, json.dumps(lock).encode())

    def fetched(self) -> None:
        """Regard all files in the folder as copied: they have just been fetched."""
        self._sent = {name: self._state(name) for name in self._files()}

    def _files(self) -> list[str]:
        """The relative paths of all files in the folder but temporary ones."""
        found = (Path(folder) / name for folder, _, names in os.walk(self._folder) for name in names)
        return [str(f.relative_to(self._folder)) for f in found if not f.name.startswith(".") and f.is_file()]

    def _state(self, name: str) -> tuple[int, int]:
        """(time of change, size) of a file in the folder."""
        stat = (self._folder / name).stat()
        return stat.st_mtime_ns, stat.st_size

    def send_files(self, all_of_them: bool = True) -> None:
        """Copy the files that have changed; TensorBoard's only if due or if ``all_of_them``. Raises OSError."""
        with_board = all_of_them or time.monotonic() - self._board_sent >= BOARD_PERIOD
        for name in self._files():
            if with_board or not name.startswith("tensorboard"):
                self._send_file(name)
        if with_board:
            self._board_sent = time.monotonic()

    def _send_file(self, name: str) -> None:
        """Copy a file of the folder if it has changed. Raises OSError."""
        state = self._state(name)
        if self._sent.get(name) != state:
            self._remote.write(name, (self._folder / name).read_bytes())
            self._sent[name] = state

    def start(self, warn: Callable[[str], None]) -> None:
        """Copy in the background from now on; ``warn`` gets one line when copying begins to fail, and when it works."""
        self._warn = warn
        self._worker.start()

    def save(self, store: RemoteCheckpoints, step: int, checkpoint: Checkpoint) -> None:
        """Write ``checkpoint`` in the background, instead of an earlier one of ``store`` that is still waiting."""
        with self._mutex:
            self._saves[store.path] = (store, step, checkpoint)
        self._wake.set()

    def wake(self) -> None:
        """Copy what has changed now rather than at the next period."""
        self._wake.set()

    def check(self) -> None:
        """Raise RunFault if copying has failed for GIVE_UP seconds, or if another process trains in this run."""
        if self._lost_to:
            raise RunFault(
                f"{self._remote.url} is now being trained by {self._lost_to}: this process has stopped writing"
            )
        if self._failing_since is not None and time.monotonic() - self._failing_since > GIVE_UP:
            raise RunFault(f"{self._remote.url} could not be written for {GIVE_UP:g} s: {self._last_error}")

    def _work(self) -> None:
        """Copy every PERIOD seconds; after the run has ended, until everything is written or the deadline has passed."""
        pause = PERIOD
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            is_last = self._deadline < math.inf
            if self._lost_to or time.monotonic() >= self._deadline:
                return
            is_sent = self._try_to_send(all_of_them=is_last)
            if is_sent and is_last:
                self._is_complete = True
                return
            pause = PERIOD if is_sent else RETRY

    def _try_to_send(self, all_of_them: bool) -> bool:
        """Unless the run is taken, write the checkpoints that wait and copy changed files; returns whether all succeeded."""
        try:
            if self._is_taken():
                return False
            self._write_saves()
            self.send_files(all_of_them)
        except Exception as error:
            self._last_error = " ".join(str(error).split())
            if self._failing_since is None:
                self._failing_since = time.monotonic()
                self._warn(f"warning: {self._remote.url} cannot be written ({self._last_error}); trying again")
            return False
        if self._failing_since is not None:
            seconds, self._failing_since, self._last_error = time.monotonic() - self._failing_since, None, ""
            if time.monotonic() < self._deadline:  # else the run has said that not everything was written
                self._warn(f"{self._remote.url} is written again, after {seconds:.0f} s")
        return True

    def _write_saves(self) -> None:
        with self._mutex:
            # best/ before checkpoints/: a checkpoint's state must not name a best return whose weights are not there
            waiting = sorted(self._saves.items(), key=lambda item: item[0])
        for key, save in waiting:
            store, step, checkpoint = save
            store.save_now(step, checkpoint)
            with self._mutex:
                if self._saves[key] is save:  # else a newer one came meanwhile
                    del self._saves[key]

    def finish(self) -> None:
        """Let the worker write what is still to be written, for at most FINISH seconds. Call it after `start`.

        Raises RunFault if another process has taken the run; LeftBehind if not everything was written. The checkpoints
        that wait are then written to the working folder.
        """
        given_up = self._failing_since is not None and time.monotonic() - self._failing_since > GIVE_UP
        seconds = 0.0 if given_up else FINISH
        self._deadline = time.monotonic() + seconds
        self._wake.set()
        self._worker.join(seconds)
        if self._is_complete:
            return
        if self._lost_to:
            self.check()
        self._failing_since = self._failing_since or time.monotonic()  # the worker may still wait for an answer
        with self._mutex:
            waiting = list(self._saves.values())
        lost = ""
        for store, step, checkpoint in waiting:
            try:
                CheckpointStore(str(self._folder / last_part(store.path)), keep=1).save(step, checkpoint)
            except OSError as error:
                lost = f" (its last checkpoint could not be written there, either: {error.strerror})"
        raise LeftBehind(
            f"{self._remote.url} could not be written at the end of the run: {self._last_error or 'no answer'}; "
            f"copy the files in {self._folder} there{lost}, and continue with --resume"
        )
