"""The benchmarks of `qfleet bench`: each a module with a `Command` (its flags) and `run(command, say)` -> figures."""

from __future__ import annotations

from types import ModuleType

from benchmarks import actors, classic, gpu, memory, pipeline, replay, shards, sizing, snapshot, soak, solve

BENCHES: dict[str, ModuleType] = {
    "pipeline": pipeline,
    "replay": replay,
    "shards": shards,
    "memory": memory,
    "soak": soak,
    "sizing": sizing,
    "snapshot": snapshot,
    "actors": actors,
    "classic": classic,
    "gpu": gpu,
    "solve": solve,
}
