"""Reverb 0.14 on the same Pong items: its own virtual environment, a server process and a client process."""

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

REQUIREMENTS = ("dm-reverb==0.14.0", "tensorflow-cpu==2.14.0", "numpy<2")  # the last release, and what it was built for
SIDE = Path(__file__).with_name("reverb_side.py")
ANSWER_TIMEOUT = 120.0  # seconds beyond the window that was asked for
N_STEP = 3


def reverb_python(say: Callable[[str], None]) -> str:
    """The Python that has Reverb; makes its virtual environment first if need be. Raises BadInput, RunFault."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qfleet" / "reverb-0.14"
    python, ready = home / "bin" / "python", home / "ready"
    if ready.exists():
        return str(python)
    base = next(filter(None, map(shutil.which, ("python3.11", "python3.10", "python3.9"))), None)
    if base is None:
        raise BadInput("Reverb 0.14 needs Python 3.9 to 3.11, which is not on the PATH: install it, or leave out --vs")
    say(f"making a virtual environment with Reverb and TensorFlow (1.3 GB) in {home} ...")
    shutil.rmtree(home, ignore_errors=True)
    for command in ([base, "-m", "venv", str(home)], [str(python), "-m", "pip", "install", "-q", *REQUIREMENTS]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
        if done.returncode != 0:
            raise RunFault(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
    ready.touch()
    return str(python)


def consecutive(segments: list[Segment]) -> dict[str, Array]:
    """The segments' episodes without their overlaps: frames [T, 84, 84], lengths, and action, r_t, discount_t [T].

    As `reverb_side` reads them; items of full length alone.
    """
    episodes: dict[int, list[Segment]] = defaultdict(list)
    for segment in segments:
        episodes[segment.episode_id].append(segment)
    found: dict[str, list[Array]] = defaultdict(list)
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
            found[name].append(column)
    return {name: np.concatenate(columns) for name, columns in found.items()}


class Reverb:
    """A context: a server that holds ``items``, and a client that measures."""

    def __init__(self, segments: list[Segment], items: int, say: Callable[[str], None]) -> None:
        python = reverb_python(say)
        self._folder = tempfile.TemporaryDirectory()
        self._processes: list[subprocess.Popen[str]] = []
        try:
            self._fill(python, segments, items)
        except BaseException:
            self.__exit__()
            raise

    def _fill(self, python: str, segments: list[Segment], items: int) -> None:
        path = Path(self._folder.name) / "items.npz"
        np.savez(path, **consecutive(segments))  # type: ignore[arg-type]
        server = self._start(python, "serve", str(items))
        port = self._line(server, ANSWER_TIMEOUT).strip()
        self._client = self._start(python, "client", port, str(path))
        self._answer(ANSWER_TIMEOUT)
        self.ask(f"fill {items}", items / 500)

    @property
    def pids(self) -> list[int]:
        """Process ids of server and client."""
        return [p.pid for p in self._processes]

    def _start(self, python: str, *arguments: str) -> subprocess.Popen[str]:
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""}
        command = [python, str(SIDE), *arguments]
        errors = (Path(self._folder.name) / f"{arguments[0]}.log").open("w")
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=env
        )
        errors.close()
        self._processes.append(process)
        return process

    def _line(self, process: subprocess.Popen[str], timeout: float) -> str:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], timeout)
        line = process.stdout.readline() if ready else ""
        if not line:
            logs = " | ".join(p.read_text()[-500:] for p in Path(self._folder.name).glob("*.log"))
            raise RunFault(f"Reverb's side {'has ended' if ready else f'said nothing for {timeout:g} s'}: {logs}")
        return line

    def _answer(self, timeout: float) -> dict[str, float]:
        answer: dict[str, float] = json.loads(self._line(self._client, timeout))
        return answer

    def ask(self, command: str, seconds: float) -> dict[str, float]:
        """The client's figures: per_s, and p50_ms and p99_ms of a batch where it sampled. Raises RunFault."""
        assert self._client.stdin is not None
        with contextlib.suppress(OSError):  # it has ended: there will be no answer
            self._client.stdin.write(command + "\n")
            self._client.stdin.flush()
        return self._answer(seconds + ANSWER_TIMEOUT)

    def __enter__(self) -> Reverb:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait(timeout=10.0)
        self._folder.cleanup()
