"""One writer, for `qfleet bench shards`.

    python -m benchmarks.processes.writer ITEMS SEED

It plays ITEMS transitions of Pong and prints "ready". Then it reads lines SECONDS ADDRESS [ADDRESS ...] from standard
input. For each it connects to these shards, prints "ready", waits for a line, inserts for SECONDS, waits until
everything is acknowledged, and prints transitions/s.
"""

from __future__ import annotations

import contextlib
import sys

from benchmarks.measure import make_inserter, measure_rate, pong_segments
from replay.wire.writer import Writer


def main() -> None:
    """Play the transitions; then measure one window for each line on standard input."""
    segments = pong_segments(int(sys.argv[1]), seed=int(sys.argv[2]))
    print("ready", flush=True)
    while line := sys.stdin.readline():
        seconds, *addresses = line.split()
        with contextlib.closing(Writer(addresses)) as writer:
            insert = make_inserter(writer, segments)
            for _ in addresses:
                insert()
            writer.flush(60.0)
            print("ready", flush=True)
            sys.stdin.readline()
            print(measure_rate(insert, float(seconds), lambda: writer.flush(60.0)), flush=True)


if __name__ == "__main__":
    # Ctrl-C reaches every process of a benchmark; `qfleet bench` reports it
    with contextlib.suppress(KeyboardInterrupt):
        main()
