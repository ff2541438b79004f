"""Prints the Unix time of the status on a run's board, whenever the board answers; for `qfleet bench chaos`.

    python -m benchmarks.processes.board NAME ADDRESS

NAME is the run's name, ADDRESS that of its Ray.
"""

from __future__ import annotations

import contextlib
import sys
import time

from qfleet.cluster.board import RemoteBoard
from qfleet.cluster.connect import join_ray
from rl.errors import RunFault

PERIOD = 0.2  # seconds


def main(run: str, address: str) -> None:
    """Print until this process is killed, or the Ray has ended. Raises BadInput if there is no Ray at the address."""
    join_ray(address, run)
    while True:
        with contextlib.suppress(RunFault):  # the board has died, or hangs
            print(RemoteBoard.here().status().get("time", 0.0), flush=True)
        time.sleep(PERIOD)


if __name__ == "__main__":
    main(*sys.argv[1:])
