"""`qfleet bench`: run a benchmark by its name."""

from __future__ import annotations

import functools
import json

from benchmarks.registry import BENCHES
from qfleet.cli.flags import parse
from rl.errors import BadInput, suggestion


def bench_command(args: list[str]) -> int:
    """Run `qfleet bench`; returns the exit status: 0, or 1 if the benchmark did not pass. Raises BadInput, RunFault."""
    if not args or args[0] in ("-h", "--help"):
        print("usage: qfleet bench NAME [flags]\n")
        for name, module in BENCHES.items():
            print(f"  {name:<9} {module.Command.__doc__}")
        print("\nqfleet bench NAME --help lists its flags.")
        return 0
    if args[0] not in BENCHES:
        raise BadInput(f"unknown benchmark {args[0]!r}: {suggestion(args[0], BENCHES)}")
    bench = BENCHES[args[0]]
    command = parse(bench.Command, args[1:], prog=f"qfleet bench {args[0]}")
    figures = bench.run(command, functools.partial(print, flush=True))
    if command.json:
        print(json.dumps(figures))
    return 0 if figures.get("passed", True) else 1
