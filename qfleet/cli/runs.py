"""`qfleet status` and `qfleet scale`: see and change a run from another process."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from qfleet.cli.flags import parse
from qfleet.config import resized
from qfleet.run.directory import SCALE, STATUS, SUMMARY, RunDir, ScaleRequest
from qfleet.run.progress import number, plain_line
from rl.bounds import at_least, positive
from rl.errors import BadInput, RunFault

if TYPE_CHECKING:
    from qfleet.cluster.board import RemoteBoard

SILENT = 30.0  # seconds: a run whose status is older is taken as not being trained


@dataclass(frozen=True)
class StatusCommand:
    """How a run stands."""

    run: tyro.conf.Positional[str]
    """The run's directory, or its name in the cluster at --address."""
    address: str = "auto"
    """Ray to ask when RUN is a name."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""


@dataclass(frozen=True)
class ScaleCommand:
    """Have a run go on with more or fewer replay shards; the content of those that leave moves into the others."""

    run: tyro.conf.Positional[str]
    """The run's directory, or its name in the cluster at --address."""
    shards: int
    """Replay shards that the run is to have."""
    timeout: float = 600.0
    """Seconds to wait until it has them."""
    address: str = "auto"
    """Ray to ask when RUN is a name."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "shards", unit="shard")
        positive(self, "timeout", unit="seconds")


def say_summary(s: dict[str, Any]) -> None:
    """Print the content of a summary.json in one line."""
    verdict = "solved" if s["solved"] else "not solved"
    mean = "no evaluation" if s["mean_return"] is None else f"mean return {s['mean_return']:.2f}"
    if s["mean_return"] is not None and s["best_return"] is not None and s["best_return"] > s["mean_return"]:
        mean += f" (best {s['best_return']:.2f})"
    print(
        f"{verdict}: {mean} after {s['agent_steps']:,} agent steps ({s['frames']:,} frames), {s['updates']:,} updates, "
        f"{s['wall_seconds'] / 60:.1f} minutes of training; everything is in {s['run_dir']}"
    )


def status_command(args: list[str]) -> int:
    """Run `qfleet status`; returns the exit status. Raises BadInput, RunFault."""
    c = parse(StatusCommand, args, prog="qfleet status")
    if Path(c.run).is_dir():
        run = RunDir.open(Path(c.run))
        figures = run.read_json(STATUS) or {}
        summary = run.read_json(SUMMARY)
        if summary is not None and "solved" not in summary:
            raise BadInput(f"{c.run} is a run of qfleet classic: its figures are in {SUMMARY}")
    else:
        figures, summary = _board(c.run, c.address).status(), None
    _say_status(c.run, figures, summary)
    if c.json:
        print(json.dumps({**figures, **(summary or {})}))
    return 0


def _board(name: str, address: str) -> RemoteBoard:
    """The board of a run in a cluster. Raises BadInput."""
    from qfleet.cluster.board import RemoteBoard  # imports Ray, which a run's directory does not need

    return RemoteBoard.of(name, address)


def _say_status(run: str, figures: dict[str, Any], summary: dict[str, Any] | None) -> None:
    if summary is not None:
        say_summary(summary)
    elif figures:
        shown = {k: float("nan") if v is None else v for k, v in figures.items()}
        print(plain_line(shown, number(shown["last_return"]), float("nan")))
    else:
        print(f"{run}: started, nothing to report yet")


def scale_command(args: list[str]) -> int:
    """Run `qfleet scale`; returns the exit status. Raises BadInput, RunFault."""
    c = parse(ScaleCommand, args, prog="qfleet scale")
    if Path(c.run).is_dir():
        run = RunDir.open(Path(c.run))
        status: Callable[[], dict[str, Any]] = lambda: run.read_json(STATUS) or {}  # noqa: E731
    else:
        board = _board(c.run, c.address)
        status = board.status
    before = status()
    ended = Path(c.run).is_dir() and (Path(c.run) / SUMMARY).exists()
    if ended or time.time() - before.get("time", 0.0) > SILENT or "shards" not in before:
        why = "it has ended" if ended else "it has not begun, is a --serial one, or was killed"
        raise BadInput(f"{c.run} is not being trained on Ray now ({why}): write a run that is")
    request = {"shards": c.shards, "number": uuid.uuid4().hex}
    if Path(c.run).is_dir():
        resized(run.config(), c.shards)
        run.write_json(SCALE, request)
    else:
        board.request_scale(request)
    after = _await_shards(c, status, request)
    print(f"{c.run}: {after['shards']} replay shard(s)")
    if c.json:
        print(json.dumps({"shards": after["shards"]}))
    return 0


def _await_shards(c: ScaleCommand, status: Callable[[], dict[str, Any]], request: ScaleRequest) -> dict[str, Any]:
    """The run's status once it has the shards. Raises RunFault where it cannot have them, or not in time."""
    deadline, said = time.monotonic() + c.timeout, ""
    while (now := status())["shards"] != c.shards:
        if now["scale_request"] == request and now["scale_news"] != said:
            said = now["scale_news"]
            if said.startswith("warning"):
                raise RunFault(said.removeprefix("warning: "))
            print(said, flush=True)
        if Path(c.run).is_dir() and (Path(c.run) / SUMMARY).exists():
            raise RunFault(f"{c.run} has ended with {now['shards']} replay shard(s)")
        if time.time() - now["time"] > SILENT:
            raise RunFault(f"{c.run} has said nothing for {SILENT:g} s, with {now['shards']} replay shard(s)")
        if time.monotonic() > deadline:
            raise RunFault(f"{c.run} has {now['shards']} replay shard(s) after {c.timeout:g} s, not {c.shards}")
        time.sleep(0.5)
    return now
