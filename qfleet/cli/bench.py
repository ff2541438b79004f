"""`qfleet bench`: runs a benchmark by name."""

from __future__ import annotations

import functools
import json

from benchmarks.registry import BENCHES
from qfleet.cli.flags import parse
from rl.errors import BadInput, nearest


def bench_command(args: list[str]) -> int:
    """Run `qfleet bench`; returns 0, or 1 if the benchmark has a criterion and fails it. Raises BadInput, RunFault."""
    if not args or args[0] in ("-h", "--help"):
        print("usage: qfleet bench NAME [flags]; `qfleet bench NAME --help` lists the flags")
        print(f"NAME is one of: {', '.join(BENCHES)}")
        return 0
    if args[0] not in BENCHES:
        raise BadInput(f"unknown benchmark {args[0]!r}: {nearest(args[0], BENCHES)}")
    bench = BENCHES[args[0]]
    command = parse(bench.Command, args[1:], prog=f"qfleet bench {args[0]}")
    figures = bench.run(command, functools.partial(print, flush=True))
    if command.json:
        print(json.dumps(figures))
    return 0 if figures.get("passed", True) else 1
