"""`qfleet status` and `qfleet scale`: inspect and change a run from another process."""

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
from qfleet.config import with_shards
from qfleet.run.directory import SCALE, STATUS, SUMMARY, RunDir, ScaleRequest
from qfleet.run.progress import duration, number, plain_line
from qfleet.run.remote import is_url, last_part, local_path
from rl.bounds import at_least, positive
from rl.errors import BadInput, RunFault

if TYPE_CHECKING:
    from qfleet.cluster.board import RemoteBoard

STATUS_MAX_AGE = 30.0  # seconds: a run whose status is older is treated as not running


@dataclass(frozen=True)
class StatusCommand:
    """Show the progress of a run, or its summary if it has ended."""

    run: tyro.conf.Positional[str]
    """The run's directory or URL, or its name in the cluster at --address."""
    address: str = "auto"
    """If RUN is a name: the Ray cluster in which it runs, auto or host:port of its head node."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""


@dataclass(frozen=True)
class ScaleCommand:
    """Change the number of replay shards of a run while it trains. Removed shards move their content to the others."""

    run: tyro.conf.Positional[str]
    """The run's directory, or its name in the cluster at --address."""
    shards: int
    """New number of replay shards."""
    timeout: float = 600.0
    """Seconds to wait until the run has that number."""
    address: str = "auto"
    """If RUN is a name: the Ray cluster in which it runs, auto or host:port of its head node."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "shards", unit="shard")
        positive(self, "timeout", unit="seconds")


def print_summary(s: dict[str, Any]) -> None:
    """Print ``s``, the content of a summary.json, as one line."""
    verdict = "ended (no goal)" if s["goal"] is None else "solved" if s["solved"] else "not solved"
    mean, best = s["mean_return"], s["best_return"]
    best_too = f" (best {best:.2f})" if mean is not None and best is not None and best > mean else ""
    result = "no evaluation in" if mean is None else f"mean return {mean:.2f}{best_too} after"
    print(
        f"{verdict}: {result} {s['agent_steps']:,} agent steps ({s['frames']:,} frames), {s['updates']:,} updates, "
        f"{s['wall_seconds'] / 60:.1f} minutes of training; results are in {s['run_dir']}"
    )


def status_command(args: list[str]) -> int:
    """Run `qfleet status`; returns the exit status. Raises BadInput, RunFault."""
    c = parse(StatusCommand, args, prog="qfleet status")
    if is_url(c.run) or local_path(c.run).is_dir():
        run = RunDir.open(c.run)
        figures = run.read_json(STATUS) or {}
        summary = run.read_json(SUMMARY)
        if summary is not None and "solved" not in summary:
            raise BadInput(f"{c.run} is a run of qfleet classic, which has no status: read its {SUMMARY}")
    else:
        figures, summary = _find_board(c.run, c.address).status(), None
    _print_status(c.run, figures, summary)
    if c.json:
        print(json.dumps({**figures, **(summary or {})}))
    return 0


def _find_board(name: str, address: str) -> RemoteBoard:
    """The board of the run called ``name`` in the Ray cluster at ``address``. Raises BadInput if there is none.

    The name of a run at a URL is the URL's last part.
    """
    from qfleet.cluster.board import RemoteBoard  # imports Ray, which is not needed when RUN is a directory

    if is_url(name):
        try:
            return RemoteBoard.of(last_part(name), address)
        except BadInput as error:
            raise BadInput(f"{name} is changed by its name in the cluster where it trains: {error}") from error
    return RemoteBoard.of(name, address)


def _print_status(run: str, figures: dict[str, Any], summary: dict[str, Any] | None) -> None:
    if summary is not None:
        print_summary(summary)
    elif figures:
        row = {k: float("nan") if v is None else v for k, v in figures.items()}
        print(plain_line(row, number(row["last_return"]), float("nan")))
        age = time.time() - figures.get("time", time.time())
        if age > STATUS_MAX_AGE:
            then = f"`qfleet train --resume {run}` continues it"
            print(f"not updated for {duration(age)}: the run was probably killed ({then})")
    else:
        print(f"{run}: the run has no status yet")


def scale_command(args: list[str]) -> int:
    """Run `qfleet scale`; returns the exit status. Raises BadInput, RunFault."""
    c = parse(ScaleCommand, args, prog="qfleet scale")
    if Path(c.run).is_dir():
        run = RunDir.open(Path(c.run))
        status: Callable[[], dict[str, Any]] = lambda: run.read_json(STATUS) or {}  # noqa: E731
    else:
        board = _find_board(c.run, c.address)
        status = board.status
    before = status()
    ended = Path(c.run).is_dir() and (Path(c.run) / SUMMARY).exists()
    if ended or time.time() - before.get("time", 0.0) > STATUS_MAX_AGE or "shards" not in before:
        why = "it has ended" if ended else "it has not started yet, is a --serial run, or was killed"
        raise BadInput(f"{c.run} is not training on Ray now ({why}): write a run that is training on Ray")
    request = {"shards": c.shards, "number": uuid.uuid4().hex}
    if Path(c.run).is_dir():
        with_shards(run.config(), c.shards)
        run.write_json(SCALE, request)
    else:
        board.request_scale(request)
    after = _await_shards(c, status, request)
    print(f"{c.run}: {after['shards']} replay shard(s)")
    if c.json:
        print(json.dumps({"shards": after["shards"]}))
    return 0


def _await_shards(c: ScaleCommand, status: Callable[[], dict[str, Any]], request: ScaleRequest) -> dict[str, Any]:
    """Wait until the run has the requested number of shards; returns its status.

    Raises RunFault if the run rejects the request, ends, stops reporting, or takes longer than ``c.timeout`` seconds.
    """
    deadline, printed = time.monotonic() + c.timeout, ""
    while (now := status())["shards"] != c.shards:
        if now["scale_request"] == request and now["scale_news"] != printed:
            printed = now["scale_news"]
            if printed.startswith("warning"):
                raise RunFault(printed.removeprefix("warning: "))
            print(printed, flush=True)
        if Path(c.run).is_dir() and (Path(c.run) / SUMMARY).exists():
            raise RunFault(f"{c.run} has ended with {now['shards']} replay shard(s)")
        if time.time() - now["time"] > STATUS_MAX_AGE:
            raise RunFault(
                f"{c.run} had {now['shards']} replay shard(s), but has not updated its status for {STATUS_MAX_AGE:g} s: "
                "it may have been killed"
            )
        if time.monotonic() > deadline:
            raise RunFault(
                f"{c.run} has {now['shards']} replay shard(s) after {c.timeout:g} s, not {c.shards}: raise --timeout"
            )
        time.sleep(0.5)
    return now
