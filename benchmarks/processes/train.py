"""The run of `qfleet bench chaos`: `qfleet train FLAGS`, with status.json written after each round of polls (1 s)."""

from __future__ import annotations

import runpy
import sys

from qfleet.run import run

if __name__ == "__main__":
    run.STATUS_PERIOD = 0.0
    sys.argv[1:] = ["train", *sys.argv[1:]]
    runpy.run_module("qfleet", run_name="__main__")
