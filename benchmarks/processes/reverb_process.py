"""Reverb 0.14 for `qfleet bench replay --vs reverb`: its virtual environment, and a server and a client process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.measure import PONG_SPEC
from rl.errors import BadInput, RunFault
from rl.types import Array, Segment

# The last release of Reverb, and the versions it was built for:
REQUIREMENTS = ("dm-reverb==0.14.0", "tensorflow-cpu==2.14.0", "numpy<2")
SIDE_SCRIPT = Path(__file__).with_name("reverb_side.py")
ANSWER_TIMEOUT = 120.0  # seconds beyond the length of the window
N_STEP = 3


def find_reverb_python(log: Callable[[str], None]) -> str:
    """Return the path of a Python with Reverb; creates its virtual environment if it is missing.

    Raises BadInput if no suitable Python is installed, RunFault if the installation fails.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qfleet" / "reverb-0.14"
    python, ready = home / "bin" / "python", home / "ready"
    if ready.exists():
        return str(python)
    base = next(filter(None, map(shutil.which, ("python3.11", "python3.10", "python3.9"))), None)
    if base is None:
        raise BadInput(
            "Reverb 0.14 needs Python 3.9 to 3.11, but none is on the PATH: install one, or leave out --vs reverb"
        )
    log(f"creating a virtual environment with Reverb and TensorFlow (1.3 GB) in {home} ...")
    shutil.rmtree(home, ignore_errors=True)
    for command in ([base, "-m", "venv", str(home)], [str(python), "-m", "pip", "install", "-q", *REQUIREMENTS]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no error output"])[-1]
            raise RunFault(f"`{' '.join(command)}` failed: {last}")
    ready.touch()
    return str(python)


def merge_overlaps(segments: list[Segment]) -> dict[str, Array]:
    """Join the segments of each episode, which overlap, to consecutive frames; returns what `reverb_side` reads.

    The arrays are frames [T, 84, 84], lengths [episodes], and action, r_t and discount_t [T]. Only items of the full
    N_STEP are kept.
    """
    episodes: dict[int, list[Segment]] = defaultdict(list)
    for segment in segments:
        episodes[segment.episode_id].append(segment)
    columns_by_name: dict[str, list[Array]] = defaultdict(list)
    for parts in episodes.values():
        length = max(s.first_step + len(s.frames) for s in parts)
        frames = np.zeros((length, *PONG_SPEC.frame_shape), np.uint8)
        columns = {"action": np.zeros(length, np.int32), "r_t": np.zeros(length, np.float32)}
        columns["discount_t"] = np.zeros(length, np.float32)
        for s in parts:
            frames[s.first_step : s.first_step + len(s.frames)] = s.frames
            full = s.item_length == N_STEP
            newest = s.first_step + s.item_step[full].astype(np.int64) + N_STEP
            columns["action"][newest] = s.actions[s.item_step[full]]
            columns["r_t"][newest], columns["discount_t"][newest] = s.r_t[full], s.discount_t[full]
        for name, column in {"frames": frames, "lengths": np.array([length]), **columns}.items():
            columns_by_name[name].append(column)
    return {name: np.concatenate(columns) for name, columns in columns_by_name.items()}


class Reverb:
    """A Reverb server filled with ``items`` items and a client process that measures it; a context manager.

        with Reverb(segments, items, log) as reverb:
            figures = reverb.ask(f"insert {seconds}", seconds)

    Raises BadInput or RunFault, as `find_reverb_python` does, and RunFault if a process does not answer.
    """

    def __init__(self, segments: list[Segment], items: int, log: Callable[[str], None]) -> None:
        python = find_reverb_python(log)
        self._folder = tempfile.TemporaryDirectory()
        self._processes: list[subprocess.Popen[str]] = []
        try:
            self._fill(python, segments, items)
        except BaseException:
            self.__exit__()
            raise

    def _fill(self, python: str, segments: list[Segment], items: int) -> None:
        path = Path(self._folder.name) / "items.npz"
        np.savez(path, **merge_overlaps(segments))  # type: ignore[arg-type]
        server = self._start(python, "serve", str(items))
        port = self._read_line(server, ANSWER_TIMEOUT).strip()
        self._client = self._start(python, "client", port, str(path))
        self._read_answer(ANSWER_TIMEOUT)
        self.ask(f"fill {items}", items / 500)

    @property
    def pids(self) -> list[int]:
        """Process ids of the server and the client."""
        return [p.pid for p in self._processes]

    def _start(self, python: str, *arguments: str) -> subprocess.Popen[str]:
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""}
        command = [python, str(SIDE_SCRIPT), *arguments]
        errors = (Path(self._folder.name) / f"{arguments[0]}.log").open("w")
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=env
        )
        errors.close()
        self._processes.append(process)
        return process

    def _read_line(self, process: subprocess.Popen[str], timeout: float) -> str:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], timeout)
        line = process.stdout.readline() if ready else ""
        if not line:
            logs = " | ".join(p.read_text()[-500:] for p in Path(self._folder.name).glob("*.log"))
            happened = "ended unexpectedly" if ready else f"printed nothing for {timeout:g} s"
            raise RunFault(" ".join(f"a Reverb process {happened}; the end of its logs: {logs}".split()))
        return line

    def _read_answer(self, timeout: float) -> dict[str, float]:
        answer: dict[str, float] = json.loads(self._read_line(self._client, timeout))
        return answer

    def ask(self, command: str, seconds: float) -> dict[str, float]:
        """Send the client a command of `reverb_side`, which takes about ``seconds``; returns its figures.

        They are per_s and, for a command that samples, p50_ms and p99_ms of a batch. Raises RunFault if the client does
        not answer.
        """
        assert self._client.stdin is not None
        with contextlib.suppress(OSError):  # the client ended: `_read_answer` reports it
            self._client.stdin.write(command + "\n")
            self._client.stdin.flush()
        return self._read_answer(seconds + ANSWER_TIMEOUT)

    def __enter__(self) -> Reverb:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait(timeout=10.0)
        self._folder.cleanup()
