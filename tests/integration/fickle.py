"""A process of a run on Ray that cannot start at times; it imports no more than it needs."""

from __future__ import annotations

import os
from pathlib import Path

import ray

from qfleet.cluster.process import RunProcess


class Fickle(RunProcess):
    """Stands for an actor of which nothing matters but its start: it fails while `run`, a folder, has a file of its name."""

    def __init__(self, _config, _index, _base_steps, run, *_):
        name = ray.get_runtime_context().get_actor_name()
        if (Path(run) / name).exists():
            raise FileNotFoundError(f"no ROM for {name}")

    def report(self, _view, _shards):
        return {"pid": os.getpid()}
