"""The entry point `qfleet`: dispatches to a command and turns errors into one line and an exit status.

If its output pipe is closed (`qfleet train --help | head`), a command ends silently with status 141, the status of a
process that SIGPIPE ended; Python itself ignores SIGPIPE. A training run writes its last checkpoint first.
"""

from __future__ import annotations

import importlib.metadata
import select
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from rl.errors import BadInput, RunFault, suggestion

USAGE = """usage: qfleet COMMAND ...

  qfleet train [PRESET] [flags]   train a new run
  qfleet train --offline DATASET  train on a Minari dataset, without actors
  qfleet train --resume RUN       continue a run from its newest checkpoint
  qfleet eval RUN [flags]         evaluate a run's policy over 30 episodes
  qfleet status RUN               show the progress of a run
  qfleet scale RUN --shards K     change the number of replay shards of a run
  qfleet submit [flags] -- train  train on a cluster from here or its head node
  qfleet logs RUN                 show what a submitted run prints
  qfleet stop RUN                 stop a submitted run after a last checkpoint
  qfleet fetch RUN                copy a run from a cluster or a URL
  qfleet plot RUN [RUN ...]       plot learning curves
  qfleet classic METHOD [flags]   methods before DQN: see `qfleet classic`
  qfleet replay COMMAND ...       the replay service alone: see `qfleet replay`
  qfleet bench NAME [flags]       benchmarks: see `qfleet bench`

`qfleet COMMAND --help` lists the flags of a command. See also qfleet --version.
RUN is a run's directory or URL; for status and scale also its name in a cluster.
logs, stop, fetch, status and scale take --cluster FILE (that of `ray up`) or
--jobs URL for a run on a cluster; `qfleet status --cluster FILE` lists its runs.
presets: pong (default), cartpole, breakout, flappybird
Any other Gymnasium environment: qfleet train --env.id ID
"""


# Each function imports its command only when it runs: torch and Ray take seconds to import, and most commands do not
# need them.


def _train(args: list[str]) -> int:
    from qfleet.cli.train import train_command

    return train_command(args)


def _eval(args: list[str]) -> int:
    from qfleet.cli.evaluate import eval_command

    return eval_command(args)


def _run_status(args: list[str]) -> int:
    from qfleet.cli.jobs import is_remote, remote_command

    if is_remote(args):
        return remote_command("status", args)
    from qfleet.cli.runs import status_command

    return status_command(args)


def _scale(args: list[str]) -> int:
    from qfleet.cli.jobs import is_remote, remote_command

    if is_remote(args):
        return remote_command("scale", args)
    from qfleet.cli.runs import scale_command

    return scale_command(args)


def _submit(args: list[str]) -> int:
    from qfleet.cli.submit import submit_command

    return submit_command(args)


def _logs(args: list[str]) -> int:
    from qfleet.cli.jobs import logs_command

    return logs_command(args)


def _stop(args: list[str]) -> int:
    from qfleet.cli.jobs import stop_command

    return stop_command(args)


def _fetch(args: list[str]) -> int:
    from qfleet.cli.fetch import fetch_command

    return fetch_command(args)


def _plot(args: list[str]) -> int:
    from qfleet.cli.plot import plot_command

    return plot_command(args)


def _classic(args: list[str]) -> int:
    from qfleet.cli.classic import classic_command

    return classic_command(args)


def _replay(args: list[str]) -> int:
    from qfleet.cli.replay import replay_command

    return replay_command(args)


def _bench(args: list[str]) -> int:
    from qfleet.cli.bench import bench_command

    return bench_command(args)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "eval": _eval,
    "status": _run_status,
    "scale": _scale,
    "submit": _submit,
    "logs": _logs,
    "stop": _stop,
    "fetch": _fetch,
    "plot": _plot,
    "classic": _classic,
    "replay": _replay,
    "bench": _bench,
}
CLOSED_PIPE = 128 + signal.SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (None: that of the process); returns its exit status.

    0: success; 1: RunFault; 2: BadInput; 129: SIGHUP; 130: Ctrl-C; 141: the output pipe was closed; 143: SIGTERM.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    try:
        return _run_and_flush(args)
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed_pipe(stream)]
        if not closed:
            raise  # the pipe is neither standard output nor standard error
        from qfleet.run.progress import discard_output  # imports rich

        for stream in closed:
            discard_output(stream)
        return CLOSED_PIPE


def _run_and_flush(args: list[str]) -> int:
    """Run a command and flush its output, so that a closed pipe raises here and not at the exit of the interpreter.

    Returns the exit status.
    """
    try:
        status = _exit_status(args)
    except SystemExit:  # after --help, SIGTERM or SIGHUP
        _flush()
        raise
    _flush()
    return status


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _is_closed_pipe(stream: Any) -> bool:
    """Whether ``stream`` is a pipe whose other end is closed."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return bool(poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no stream, or one without a file descriptor
        return False


def _exit_status(args: list[str]) -> int:
    """Run a command; returns its exit status and prints BadInput and RunFault as one line."""
    try:
        return _dispatch(args)
    except BadInput as error:
        print(f"qfleet: {error}", file=sys.stderr)
        return 2
    except RunFault as error:
        print(f"qfleet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("qfleet: stopped", file=sys.stderr)
        return 130


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if args[0] == "--version":
        print(f"qfleet {importlib.metadata.version('qfleet')}")
        return 0
    if args[0] not in COMMANDS:
        raise BadInput(f"unknown command {args[0]!r}: {suggestion(args[0], COMMANDS)}")
    return COMMANDS[args[0]](args[1:])
