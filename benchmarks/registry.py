"""The benchmarks of `qfleet bench` by name.

Each is a module with a dataclass `Command`, whose fields are its flags, and a function `run(command, log)`. `run`
passes each line of progress to `log` and returns the figures by name. A benchmark that can fail returns `passed` among
them.
"""

from __future__ import annotations

from types import ModuleType

from benchmarks import actors, chaos, classic, gpu, memory, pipeline, replay, shards, sizing, snapshot, soak, solve

BENCHES: dict[str, ModuleType] = {
    "pipeline": pipeline,
    "replay": replay,
    "shards": shards,
    "memory": memory,
    "soak": soak,
    "chaos": chaos,
    "sizing": sizing,
    "snapshot": snapshot,
    "actors": actors,
    "classic": classic,
    "gpu": gpu,
    "solve": solve,
}
