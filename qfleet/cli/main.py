"""The command `qfleet`: runs the command that is named; an error becomes one line and an exit status.

A command whose output is no longer read (`qfleet train --help | head`) ends quietly with status 141, as if by SIGPIPE,
which Python ignores. A training run ends in order then: it writes its last checkpoint first.
"""

from __future__ import annotations

import select
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from rl.errors import BadInput, RunFault, nearest

USAGE = """usage: qfleet COMMAND ...

  qfleet train [PRESET] [flags]     train; presets: pong (default), cartpole, breakout, flappybird
  qfleet train --offline DATASET    learn from a Minari dataset alone, without actors
  qfleet train --resume RUN         go on where a run stopped
  qfleet eval RUN [flags]           play a run's policy: mean return of 30 episodes
  qfleet status RUN                 how a run stands
  qfleet scale RUN --shards K       go on with more or fewer replay shards
  qfleet plot RUN [RUN ...]         learning curves as a picture
  qfleet classic METHOD [flags]     the methods before DQN, from value iteration on: qfleet classic lists them
  qfleet replay COMMAND ...         replay by itself: serve, info, snapshot, limit, drain, export, import
  qfleet bench NAME [flags]         measure: qfleet bench lists what

qfleet COMMAND --help lists its flags. RUN is a run's directory, or (status, scale) its name in a cluster.
"""


# Each imports its command only when it runs: torch and Ray take seconds to import, and most commands do not need them.


def _train(args: list[str]) -> int:
    from qfleet.cli.train import train_command

    return train_command(args)


def _eval(args: list[str]) -> int:
    from qfleet.cli.evaluate import eval_command

    return eval_command(args)


def _status_of_run(args: list[str]) -> int:
    from qfleet.cli.runs import status_command

    return status_command(args)


def _scale(args: list[str]) -> int:
    from qfleet.cli.runs import scale_command

    return scale_command(args)


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
    "status": _status_of_run,
    "scale": _scale,
    "plot": _plot,
    "classic": _classic,
    "replay": _replay,
    "bench": _bench,
}
CLOSED_PIPE = 128 + signal.SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0, 1 fault, 2 bad input, 130 Ctrl-C, 141 output closed, 143 SIGTERM."""
    args = list(sys.argv[1:] if argv is None else argv)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    try:
        return _flushed(args)
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _closed(stream)]
        if not closed:
            raise  # another pipe than standard output or error: a fault like any other
        from qfleet.run.progress import silence  # with rich

        for stream in closed:
            silence(stream)
        return CLOSED_PIPE


def _flushed(args: list[str]) -> int:
    """Run a command and flush its output, so that nothing fails when the interpreter ends; returns the exit status."""
    try:
        status = _status(args)
    except SystemExit:  # of --help, and of SIGTERM
        _flush()
        raise
    _flush()
    return status


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _closed(stream: Any) -> bool:
    """Whether ``stream`` is a pipe whose other end is closed."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return bool(poll.poll(0))
    except (AttributeError, OSError, ValueError):  # a stream without a file, or none at all
        return False


def _status(args: list[str]) -> int:
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
    if args[0] not in COMMANDS:
        raise BadInput(f"unknown command {args[0]!r}: {nearest(args[0], COMMANDS)}")
    return COMMANDS[args[0]](args[1:])
