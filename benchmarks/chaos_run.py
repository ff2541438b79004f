"""The run of `qfleet bench chaos` in a child process, and all that is seen of it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos_recovery import Sample
from benchmarks.chaos_schedule import CLASSES, Kind
from qfleet.cluster.acknowledged import DIRECTORY, Acknowledged
from qfleet.run.directory import STATUS
from rl.errors import RunFault

MARK = "QFLEET_CHAOS"  # environment variable that all processes of the run inherit
JOINABLE = {"RAY_AUTH_MODE": "token"}  # Ray 2.60 wants a token by default, which a second process sends only with this
LOOK_PERIOD = 0.2  # seconds between two looks at the run
START_TIMEOUT = 180.0  # seconds until it trains
END_TIMEOUT = 180.0  # seconds from SIGINT to its end
LEFTOVER_TIMEOUT = 20.0  # seconds in which its last processes must end
ADDRESS = r"[\w.:\[\]-]+:\d+"
STARTED = re.compile(rf"replay shard\(s\) at ((?:{ADDRESS}, )+)learner .*?; Ray at ({ADDRESS})")
RESTARTED = re.compile(rf"replay shard-(\d+) restarted at ({ADDRESS}):")


class Tail:
    """The whole lines that were added to a file since the last call of `lines`; the file need not exist yet."""

    def __init__(self, file: Path) -> None:
        self._file, self._at = file, 0

    def lines(self) -> list[str]:
        """The new lines, without newlines."""
        try:
            with self._file.open("rb") as file:
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return []
        data = data[: data.rfind(b"\n") + 1]
        self._at += len(data)
        return data.decode(errors="replace").splitlines()


class ChaosRun:
    """`qfleet train FLAGS` in a child process, with its directory and logs in ``folder``.

        run = ChaosRun(folder, flags)
        run.await_training()
        run.look()  # repeatedly; then samples, lines, acknowledged, evaluations and board_at are as of now
        run.parts("actor")  # processes, by id
        run.end()
        run.close()  # kills what is left

    ``folder``/output.txt has its output, status.jsonl all that was read of its status.
    """

    def __init__(self, folder: Path, flags: Sequence[str]) -> None:
        self.folder, self.directory, self.log = folder, folder / "run", folder / "acknowledged"
        self.log.mkdir(parents=True)
        mark = {MARK: f"{os.getpid()}-{time.time_ns()}", DIRECTORY: str(self.log)}
        self._environment = {**JOINABLE, **os.environ, **mark}
        self.output = folder / "output.txt"
        command = [sys.executable, "-m", "benchmarks.processes.train", *flags, "--run-dir", str(self.directory)]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self._environment
            )
        self._board: subprocess.Popen[bytes] | None = None
        self.samples: list[Sample] = []
        self.status: dict[str, Any] = {}
        self.lines: list[str] = []  # of the output
        self.addresses: dict[int, str] = {}  # of the shards
        self.acknowledged: dict[tuple[int, int], Acknowledged] = {}  # last line by actor and process id
        self.answers: dict[str, float] = {}  # time of the last acknowledgement, by shard's address
        self.newest_version = 0  # of the weights in any acknowledged segment
        self.evaluations = 0  # finished
        self.board_at = 0.0  # Unix time of the last status that the board has shown
        self._output, self._evaluations = Tail(self.output), Tail(self.directory / "eval.csv")
        self._board_output, self._logs = Tail(folder / "board.txt"), dict[Path, Tail]()

    def look(self) -> None:
        """Read what is new. Raises RunFault if the run has ended."""
        self._read_status()
        self.lines += (new := self._output.lines())
        for line in new:
            if found := RESTARTED.search(line):
                self.addresses[int(found[1])] = found[2]
        self.evaluations += len(self._evaluations.lines())
        for line in self._board_output.lines():
            self.board_at = max(self.board_at, float(line))
        for file in self.log.glob("actor-*.log"):
            self._read_log(file, self._logs.setdefault(file, Tail(file)))
        if self.process.poll() is not None:
            self.lines += self._output.lines()
            raise RunFault(f"the run has ended with status {self.process.returncode}: {' | '.join(self.lines[-8:])}")

    def _read_status(self) -> None:
        try:
            self.status = json.loads((self.directory / STATUS).read_bytes())
        except FileNotFoundError:
            return
        counts = (int(self.status.get(name, 0)) for name in ("updates", "agent_steps", "weights_version"))
        if not self.samples or self.status["time"] > self.samples[-1].time:
            self.samples.append(Sample(self.status["time"], *counts))
            with (self.folder / "status.jsonl").open("a") as file:
                file.write(f"{json.dumps(self.status)}\n")

    def _read_log(self, file: Path, tail: Tail) -> None:
        _, index, pid = file.stem.split("-")
        for line in tail.lines():
            with contextlib.suppress(ValueError):
                a = self.acknowledged[int(index), int(pid)] = Acknowledged.read(line)
                self.answers[a.address] = max(a.time, self.answers.get(a.address, 0.0))
                self.newest_version = max(self.newest_version, a.version)

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Look at the run for ``seconds``, or until ``until()``; returns whether it was. Raises RunFault as `look`."""
        deadline = time.monotonic() + seconds
        while not (found := until()) and time.monotonic() < deadline:
            time.sleep(LOOK_PERIOD)
            self.look()
        return found

    def await_training(self) -> None:
        """Wait until the run makes updates, and start to read its board. Raises RunFault after START_TIMEOUT."""
        if not self.wait(START_TIMEOUT, lambda: bool(self.samples) and self.samples[-1].updates > 0):
            raise RunFault(f"the run makes no updates after {START_TIMEOUT:g} s: {' | '.join(self.lines[-8:])}")
        found = next(filter(None, map(STARTED.search, self.lines)), None)
        if found is None:
            raise RunFault(f"the run does not say where its shards are: {' | '.join(self.lines[-8:])}")
        self.addresses |= dict(enumerate(found[1].removesuffix(", ").split(", ")))
        command = [sys.executable, "-m", "benchmarks.processes.board", self.directory.name, found[2]]
        with (self.folder / "board.txt").open("wb") as output, (self.folder / "board-errors.txt").open("wb") as errors:
            environment = {**JOINABLE, **os.environ}
            self._board = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)

    def parts(self, kind: Kind) -> list[int]:
        """The ids of the processes of this kind, in order."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    title = " ".join(process.cmdline()[:1])
                    if re.match(rf"ray::{CLASSES[kind]}\b", title) and process.status() != psutil.STATUS_ZOMBIE:
                        found.append(process.pid)
        return sorted(found)

    def name(self, kind: Kind, pid: int) -> str:
        """What the run calls this process: "actor-1", "shard-0", "learner"."""
        index: int | None = None
        if kind == "actor":
            index = next((i for i, p in self.acknowledged if p == pid), None)
        elif kind == "shard":
            ports = {c.laddr.port for c in psutil.Process(pid).net_connections() if c.status == psutil.CONN_LISTEN}
            index = next((i for i, a in self.addresses.items() if int(a.rpartition(":")[2]) in ports), None)
        return kind.replace("_", " ") + ("" if index is None else f"-{index}")

    def end(self) -> list[str]:
        """End the run by Ctrl-C; returns the command lines of its processes that live too long after it.

        Raises RunFault if it does not end within END_TIMEOUT, or not as it should.
        """
        if self._board is not None:
            self._board.kill()
        self.process.send_signal(signal.SIGINT)
        try:
            status = self.process.wait(timeout=END_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise RunFault(f"the run has not ended {END_TIMEOUT:g} s after Ctrl-C") from None
        self.lines += self._output.lines()
        if status != 130:
            raise RunFault(f"the run has ended with status {status}, not 130: {' | '.join(self.lines[-8:])}")
        deadline = time.monotonic() + LEFTOVER_TIMEOUT
        while (left := self._marked()) and time.monotonic() < deadline:
            time.sleep(LOOK_PERIOD)
        return list(left.values())

    def _marked(self) -> dict[int, str]:
        """Ids and command lines of all processes that have inherited the run's environment."""
        mark, found = f"{MARK}={self._environment[MARK]}".encode(), {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return {pid: line for pid, line in found.items() if line}

    def close(self) -> None:
        """Kill all that is left of the run."""
        for pid in self._marked():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=END_TIMEOUT)
        if self._board is not None:
            self._board.kill()
            self._board.wait(timeout=END_TIMEOUT)
