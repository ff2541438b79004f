"""One writer (`python -m benchmarks.processes.writer ITEMS SEED`), which plays ITEMS transitions of Pong first.

Then for each line SECONDS ADDRESS [ADDRESS ...]: it opens its streams to these shards, says "ready", waits for a line,
inserts for so many seconds, and prints transitions/s, the last acknowledgement included.
"""

from __future__ import annotations

import contextlib
import sys

from benchmarks.measure import inserting, pong_segments, rate
from replay.wire.writer import Writer


def main() -> None:
    """Play the transitions, then insert them at each line on standard input, and print transitions/s."""
    segments = pong_segments(int(sys.argv[1]), seed=int(sys.argv[2]))
    print("ready", flush=True)
    while line := sys.stdin.readline():
        seconds, *addresses = line.split()
        with contextlib.closing(Writer(addresses)) as writer:
            insert = inserting(writer, segments)
            for _ in addresses:
                insert()
            writer.flush(60.0)
            print("ready", flush=True)
            sys.stdin.readline()
            print(rate(insert, float(seconds), lambda: writer.flush(60.0)), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(
        KeyboardInterrupt
    ):  # Ctrl-C reaches every process of a benchmark; `qfleet bench` reports it
        main()
