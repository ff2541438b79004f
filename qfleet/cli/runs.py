"""`qfleet status` and `qfleet scale`: inspect and change a run from another process."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

from actors.actor import MAX_ACTORS
from qfleet.cli.flags import parse
from qfleet.config import with_actors, with_shards
from qfleet.run.directory import SCALE, STATUS, SUMMARY, RunDir, ScaleRequest
from qfleet.run.progress import duration, number, plain_line
from qfleet.run.remote import is_url, last_part, local_path
from rl.bounds import at_least, between, positive
from rl.errors import BadInput, BadSetting, RunFault

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
    """Change the number of replay shards or actors of a run while it trains.

    Removed shards move their content to the others. Removed actors send what they have played. Actors for which there
    is no room join later, when nodes with free CPUs come.
    """

    run: tyro.conf.Positional[str]
    """The run's directory, or its name in the cluster at --address."""
    shards: int | None = None
    """New number of replay shards."""
    actors: int | None = None
    """New number of actors."""
    timeout: float = 600.0
    """Seconds to wait until the run has these numbers."""
    address: str = "auto"
    """If RUN is a name: the Ray cluster in which it runs, auto or host:port of its head node."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        if self.shards is None and self.actors is None:
            raise BadSetting(type(self), "shards", "and `actors` are missing: write at least one of them")
        if self.shards is not None:
            at_least(self, 1, "shards", unit="shard")
        if self.actors is not None:
            between(self, 1, MAX_ACTORS, "actors")
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
        if "actors_wanted" in figures and "shards" in figures:  # a run on Ray
            print(f"{figures['actors']} of {figures['actors_wanted']} actors, {figures['shards']} replay shard(s)")
        if faults := _describe_faults(figures):
            print(faults)
        age = time.time() - figures.get("time", time.time())
        if age > STATUS_MAX_AGE:
            then = f"`qfleet train --resume {run}` continues it"
            print(f"not updated for {duration(age)}: the run was probably killed ({then})")
    else:
        print(f"{run}: the run has no status yet")


def _describe_faults(figures: dict[str, Any]) -> str:
    """A line about processes that have failed, and the last checkpoint; "" if none has failed."""
    if not figures.get("restarts"):
        return ""
    kinds = ", ".join(f"{kind} {count}" for kind, count in figures["restarts_by_kind"].items())
    ago = duration(time.time() - figures["last_fault_time"])
    return (
        f"{figures['restarts']} failure(s) of processes ({kinds}), last {ago} ago: {figures['last_fault']}; the last "
        f"checkpoint is {duration(figures['checkpoint_age'])} old"
    )


class _Training:
    """A run that trains on Ray now: by its directory, or else by its name in the Ray at ``address``.

    Raises BadInput if there is none.
    """

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self._place = RunDir.open(name) if local_path(name).is_dir() else _find_board(name, address)
        status = self.status()
        if self.has_ended or time.time() - status.get("time", 0.0) > STATUS_MAX_AGE or "shards" not in status:
            why = "it has ended" if self.has_ended else "it has not started yet, is a --serial run, or was killed"
            raise BadInput(f"{name} is not training on Ray now ({why}): write a run that is training on Ray")

    @property
    def has_ended(self) -> bool:
        """Whether the run has written its summary, as far as that can be seen from here."""
        return isinstance(self._place, RunDir) and (self._place.path / SUMMARY).exists()

    def status(self) -> dict[str, Any]:
        """The newest status, {} before the first."""
        return (self._place.read_json(STATUS) or {}) if isinstance(self._place, RunDir) else self._place.status()

    def last_request(self) -> ScaleRequest:
        """The last request of any `qfleet scale`, {} if none."""
        return (self._place.read_json(SCALE) or {}) if isinstance(self._place, RunDir) else self._place.last_request()

    def check(self, wanted: ScaleRequest) -> None:
        """Raise BadInput if the run cannot have these numbers. Of a run by its name, the driver checks them."""
        if isinstance(self._place, RunDir):
            config = self._place.config()
            config = config if wanted["actors"] is None else with_actors(config, wanted["actors"])
            if wanted["shards"] is not None:
                with_shards(config, wanted["shards"])

    def request(self, wanted: ScaleRequest) -> str:
        """Leave a request for the driver; returns its number. It also asks for what an earlier one, not taken yet, does."""
        earlier = self.last_request()
        if earlier and earlier["number"] != self.status().get("scale_taken"):
            wanted = {kind: earlier.get(kind) if value is None else value for kind, value in wanted.items()}
        request = {**wanted, "number": uuid.uuid4().hex}
        if isinstance(self._place, RunDir):
            self._place.write_json(SCALE, request)
        else:
            self._place.request_scale(request)
        return str(request["number"])


def scale_command(args: list[str]) -> int:
    """Run `qfleet scale`; returns the exit status. Raises BadInput, RunFault."""
    c = parse(ScaleCommand, args, prog="qfleet scale")
    run, wanted = _Training(c.run, c.address), {"shards": c.shards, "actors": c.actors}
    run.check(wanted)
    after = _await_numbers(run, wanted, c.timeout)
    print(f"{c.run}: {_count(wanted, after)}")
    if c.json:
        print(json.dumps({kind: after[kind] for kind, value in wanted.items() if value is not None}))
    return 0


def _count(wanted: ScaleRequest, numbers: dict[str, Any]) -> str:
    """The numbers of what ``wanted`` asks for, such as "2 replay shard(s), 6 actor(s)"."""
    words = {"shards": "replay shard(s)", "actors": "actor(s)"}
    return ", ".join(f"{numbers[kind]} {words[kind]}" for kind, value in wanted.items() if value is not None)


def _await_numbers(run: _Training, wanted: ScaleRequest, timeout: float) -> dict[str, Any]:
    """Ask for the numbers ``wanted`` and wait until the run has them; returns its status.

    Raises RunFault if the run rejects the request, ends, stops reporting, or takes longer than ``timeout`` seconds, and
    if another `qfleet scale` asks for other numbers meanwhile.
    """
    deadline, printed, is_taken = time.monotonic() + timeout, {""}, False
    numbers = {run.request(wanted)}  # of the requests that ask for these numbers
    while not _has(wanted, now := run.status()):
        is_taken = is_taken or now.get("scale_taken") in numbers
        if not is_taken:
            numbers.add(_number_of(run, wanted, numbers))
        lines = []
        if is_taken and (now["scale_request"] or {}).get("number") in numbers:
            lines += [now["scale_news"]]
        if is_taken and wanted["actors"] is not None:
            lines += [f"{now['actors']} of {now['actors_wanted']} actors"]
        for line in lines:
            if line.startswith("warning"):
                raise RunFault(line.removeprefix("warning: "))
            if line not in printed:
                print(line, flush=True)
                printed.add(line)
        if is_taken and wanted["actors"] not in (None, now["actors_wanted"]):
            raise RunFault(f"another `qfleet scale` has asked for {now['actors_wanted']} actors since")
        _check_waiting(run, wanted, now, None if time.monotonic() < deadline else timeout)
        time.sleep(0.5)
    return now


def _has(wanted: ScaleRequest, now: dict[str, Any]) -> bool:
    """Whether a run with the status ``now`` has the numbers ``wanted``."""
    shards, actors = wanted["shards"], wanted["actors"]
    return shards in (None, now["shards"]) and (actors is None or now["actors"] == now["actors_wanted"] == actors)


def _number_of(run: _Training, wanted: ScaleRequest, numbers: set[str]) -> str:
    """The number of the last request, while the driver has taken none of ``numbers``, which ask for ``wanted``.

    Another `qfleet scale` may have replaced them at the same instant. If its request leaves out what this one wants, it
    is made again, with both. Raises RunFault if it asks for other numbers.
    """
    last = run.last_request()
    mine = {kind: value for kind, value in wanted.items() if value is not None}
    theirs = {kind: last[kind] for kind in mine if last.get(kind) is not None}
    if last.get("number") in numbers or theirs == mine:
        return str(last["number"])
    if any(theirs[kind] != mine[kind] for kind in theirs):
        raise RunFault(f"another `qfleet scale` has asked for {_count(theirs, theirs)} at the same time")
    return run.request(wanted)


def _check_waiting(run: _Training, wanted: ScaleRequest, now: dict[str, Any], waited: float | None) -> None:
    """Raise RunFault if the run has ended or stopped reporting, or if the time is over: ``waited`` seconds, not None."""
    count = _count(wanted, now)
    if run.has_ended:
        raise RunFault(f"{run.name} has ended with {count}")
    if time.time() - now["time"] > STATUS_MAX_AGE:
        raise RunFault(
            f"{run.name} had {count}, but has not updated its status for {STATUS_MAX_AGE:g} s: it may have been killed"
        )
    if waited is not None and wanted["shards"] not in (None, now["shards"]):
        raise RunFault(f"{run.name} has {count} after {waited:g} s, not {_count(wanted, wanted)}: raise --timeout")
    if waited is not None:
        raise RunFault(
            f"{run.name} has {now['actors']} of {wanted['actors']} actors after {waited:g} s: the rest waits for nodes with "
            "free CPUs, and the request stays"
        )
