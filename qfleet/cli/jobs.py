"""`qfleet logs` and `stop`, and `status` and `scale` of a run on a cluster: from a laptop, through Ray's job server."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import tyro

from qfleet.cli.flags import flag_value, parse
from rl.errors import BadInput, RunFault, suggestion

if TYPE_CHECKING:
    from qfleet.cluster.jobs import Job, JobServer

CHECKOUT = "~/qfleet"  # where `ray up` puts the checkout on the head node
PLACE_FLAGS = ("--cluster", "--jobs", "--checkout")


@dataclass(frozen=True, kw_only=True)
class Place:
    """The cluster of a command."""

    cluster: str | None = None
    """The cluster, by the file with which `ray up` started it; its head node is reached over ssh."""
    jobs: str | None = None
    """The cluster, by the URL of its job server, such as http://10.0.0.1:8265."""
    checkout: str = CHECKOUT
    """Folder of the checkout on the head node."""

    def check(self) -> None:
        """Raise BadInput unless it names one cluster. Reads the file of --cluster, and connects to nothing."""
        if (self.cluster is None) == (self.jobs is None):
            problem = "is missing" if self.cluster is None else "and --jobs cannot be combined"
            raise BadInput(f"--cluster {problem}: write --cluster with the file of `ray up`, or --jobs with a URL")
        if self.jobs is not None and not self.jobs.startswith(("http://", "https://")):
            raise BadInput(f"--jobs is {self.jobs}: write a URL, such as http://10.0.0.1:8265")
        if self.cluster is not None:
            from qfleet.cluster.head import cluster_name

            cluster_name(self.cluster)

    def connect(self) -> JobServer:
        """The job server, to be used in `with`. Raises BadInput."""
        self.check()
        from qfleet.cluster.jobs import JobServer  # imports Ray, which takes seconds

        return JobServer(self.jobs, self.cluster)

    def typed(self, command: str, rest: str = "") -> str:
        """The command line ``command``, the flags that name this place, ``rest``."""
        flags = {"--cluster": self.cluster, "--jobs": self.jobs}
        flags["--checkout"] = self.checkout if self.checkout != CHECKOUT else None
        words = [word for name, value in flags.items() if value is not None for word in (name, shlex.quote(value))]
        return " ".join([command, *words, *([rest] if rest else [])])

    def on_head(self, directory: str) -> str:
        """A run's directory, with the checkout before it if it is relative; a URL stays as it is."""
        is_relative = not directory.startswith(("/", "~")) and "://" not in directory
        return f"{self.checkout}/{directory}" if is_relative else directory

    def command(self, words: list[str], change_folder: bool = True) -> str:
        """The shell command that runs `qfleet WORDS` of the head node as the process of the job.

        It runs in the checkout there, or without ``change_folder`` in the job's folder.
        """
        folder = quoted(self.checkout)
        start = f"cd {folder} && exec .venv/bin/qfleet" if change_folder else f"exec {folder}/.venv/bin/qfleet"
        return f"{start} {' '.join(map(quoted, words))}"


@dataclass(frozen=True, kw_only=True)
class PlaceOrHere(Place):
    """The cluster of a command that may also be typed on its head node."""

    jobs: str | None = None
    """The cluster, by the URL of its job server; without --cluster http://127.0.0.1:8265, that of this machine."""

    def check(self) -> None:
        """Raise BadInput if it names two clusters, or one by a bad file or URL."""
        if self.cluster is not None or self.jobs is not None:
            super().check()


@dataclass(frozen=True)
class LogsCommand(PlaceOrHere):
    """Show what a run on a cluster prints: from its last start on, and as long as it runs."""

    run: tyro.conf.Positional[str]
    """The run's name."""
    follow: bool = True
    """Wait for more while the run goes on; the exit status is then that of the run. It is 0 if the run has ended."""


@dataclass(frozen=True)
class StopCommand(PlaceOrHere):
    """Stop a run on a cluster, after a last checkpoint."""

    run: tyro.conf.Positional[str]
    """The run's name."""


@dataclass(frozen=True)
class RunsCommand(Place):
    """List the runs on a cluster."""


def quoted(word: str) -> str:
    """``word`` for a shell command; a ~/ at its start stays the home directory."""
    return f"~/{shlex.quote(word[2:])}" if word.startswith("~/") and len(word) > 2 else shlex.quote(word)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Context manager in which SIGTERM and SIGHUP raise SystemExit, so that a tunnel is closed."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def show(text: str) -> None:
    """Print a part of a job's output at once."""
    print(text, end="", flush=True)


def note(line: str) -> None:
    """Print a line about the command itself."""
    print(f"qfleet: {line}", file=sys.stderr, flush=True)


def newest_job(server: JobServer, run: str) -> Job:
    """The newest job of the run with this name or directory. Raises BadInput if there is none."""
    jobs = server.runs()
    found = [job for job in jobs if run.rstrip("/") in (job.run, job.directory)]
    if not found:
        known = sorted({job.run for job in jobs})
        hint = suggestion(run, known) if known else "none was submitted since it was started"
        raise BadInput(f"{run} is no submitted run of {server.where}: {hint}")
    return found[-1]


def directory_on_head(server: JobServer, run: str) -> str:
    """The directory of the run on the head node, relative to the checkout, or its URL.

    That of a run that was not submitted is runs/NAME; a path or a URL stays as it is.
    """
    if "/" in run:
        return run
    found = [job.directory for job in server.runs() if job.run == run]
    return found[-1] if found else f"runs/{run}"


def follow(server: JobServer, job_id: str, name: str, place: Place) -> int:
    """Print the job's output until it ends; returns the run's exit status, and 130 after Ctrl-C.

    The run goes on after Ctrl-C. Raises RunFault if the cluster can no longer be reached, or if the job failed without
    an exit status.
    """
    from qfleet.cluster.job_client import NoJobServer

    try:
        job = server.follow(job_id, show)
    except KeyboardInterrupt:
        print(f"\nqfleet: no longer watching; the run goes on\n{next_steps(name, place)}", file=sys.stderr)
        return 130
    except NoJobServer as error:
        again = place.typed(f"qfleet logs {shlex.quote(name)}")
        raise RunFault(f"{error}; the run goes on if the head node does: `{again}` shows it again") from error
    status = job.exit_status()
    if status != 2:
        print(f"qfleet: {name} has ended\n{last_steps(name, job.directory, place)}", file=sys.stderr)
    return status


def next_steps(name: str, place: Place) -> str:
    """What to type while a run goes on."""
    watch, stop = (place.typed(f"qfleet {command} {shlex.quote(name)}") for command in ("logs", "stop"))
    return f"  watch it      {watch}\n  stop it       {stop}"


def last_steps(name: str, directory: str, place: Place) -> str:
    """What to type after a run has ended: how to continue it, and how to fetch it if its files can be reached."""
    what = shlex.quote(name if directory == f"runs/{name}" else directory)
    lines = [f"  continue it   {place.typed('qfleet submit', f'-- train --resume {what}')}"]
    if "://" in directory:
        lines.insert(0, f"  fetch it      qfleet fetch {what}")
    elif place.cluster is not None:
        lines.insert(0, f"  fetch it      {place.typed(f'qfleet fetch {what}')}")
    return "\n".join(lines)


def logs_command(args: list[str]) -> int:
    """Run `qfleet logs`; returns the run's exit status if it waited for its end, else 0. Raises BadInput, RunFault."""
    c = parse(LogsCommand, args, prog="qfleet logs")
    with ended_by_signals(), c.connect() as server:
        job = newest_job(server, c.run)
        if c.follow and not job.has_ended:
            return follow(server, job.id, job.run, c)
        show(server.log(job.id))
        if job.has_ended and job.exit_code is None:
            print(f"qfleet: job {job.id}: {job.state.lower()}", file=sys.stderr)
        return 0


def stop_command(args: list[str]) -> int:
    """Run `qfleet stop`; returns 0 once the run has ended. Raises BadInput; RunFault, also if Ray has killed the run."""
    c = parse(StopCommand, args, prog="qfleet stop")
    with ended_by_signals(), c.connect() as server:
        from qfleet.cluster.jobs import STOP_WAIT

        job = newest_job(server, c.run)
        if job.has_ended:
            raise BadInput(f"{c.run} does not run: its last job, {job.id}, has ended ({job.state.lower()})")
        started = time.monotonic()
        server.stop(job.id)
        print(f"stopping {job.run}: it writes a last checkpoint (at most {STOP_WAIT} s) ...", file=sys.stderr)
        server.await_end(job.id, STOP_WAIT + 30.0)
        seconds = time.monotonic() - started
        if seconds >= STOP_WAIT:
            log = c.typed(f"qfleet logs {shlex.quote(job.run)}")
            raise RunFault(
                f"{job.run} was killed after {seconds:.0f} s, and its last checkpoint may be missing: `{log}` shows its log"
            )
        where = c.on_head(job.directory) + ("" if "://" in job.directory else " on the head node")
        print(f"{job.run} has ended after {seconds:.0f} s; it is in {where}")
        print(last_steps(job.run, job.directory, c), file=sys.stderr)
    return 0


def is_remote(args: list[str]) -> bool:
    """Whether the arguments of `status` or `scale` name a cluster, and are no request for help."""
    asks_help = any(a in ("-h", "--help") for a in args)
    return not asks_help and any(a.partition("=")[0] in PLACE_FLAGS[:2] for a in args)


def remote_command(command: str, args: list[str]) -> int:
    """Run `qfleet COMMAND ARGS` on the head node of the cluster in ``args``; returns its exit status.

    The first argument is the run. `status` without one lists the runs. Raises BadInput, RunFault.
    """
    rest, places = list(args), []
    for name in PLACE_FLAGS:
        if (value := flag_value(rest, name)) is not None:
            rest = without_flag(rest, name)
            places += [f"{name}={value}"]
        elif name in rest:
            raise BadInput(f"{name} has no value: write one after it")
    place = parse(RunsCommand, places, prog=f"qfleet {command}")
    place.check()
    if not rest and command == "status":
        with ended_by_signals(), place.connect() as server:
            list_runs(server)
        return 0
    if not rest or rest[0].startswith("-"):
        raise BadInput(f"missing RUN: write qfleet {command} RUN {' '.join(rest)}".rstrip())
    with ended_by_signals(), place.connect() as server:
        words = [command, directory_on_head(server, rest[0]), *rest[1:]]
        return run_on_head(server, place.command(words))


def without_flag(args: list[str], name: str) -> list[str]:
    """``args`` without the flag ``name`` and its value."""
    kept, skip = [], False
    for arg in args:
        if not skip and arg != name and not arg.startswith(name + "="):
            kept.append(arg)
        skip = not skip and arg == name
    return kept


def run_on_head(server: JobServer, command: str, write: Callable[[str], object] = show) -> int:
    """Run a shell command on the head node as a short job, and ``write`` its output; returns its exit status.

    After Ctrl-C the job is stopped.
    """
    job_id = f"qfleet-command-{uuid.uuid4().hex[:8]}"
    server.submit(job_id, command, {}, {}, note)
    try:
        job = server.follow(job_id, write)
    except BaseException:
        with contextlib.suppress(RunFault):
            server.stop(job_id)
        raise
    server.delete(job_id)
    return job.exit_status()


def list_runs(server: JobServer) -> None:
    """Print the runs of a cluster, the newest last, with the state of the newest job of each."""
    newest = {job.run: job for job in server.runs()}
    if not newest:
        print("no run was submitted to this cluster since it was started")
    width = max(map(len, newest), default=0)
    for job in sorted(newest.values(), key=lambda job: job.started):
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started))
        print(f"{job.run:<{width}}  {job.state.lower():<9}  started {started}  {job.directory}")
