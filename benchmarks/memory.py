"""`qfleet bench memory`: memory of a replay shard full of Pong, and its sampling throughput at that size.

20,000 real transitions (n-step 3, stack 4) are played and inserted repeatedly until the shard holds --items. Resident
bytes are the growth of the process's resident memory from empty to full. Counted bytes are what the shard reports in
its `Counts`: `resident_bytes`, which --capacity-bytes limits, and `bytes`, the compressed frames alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from benchmarks.measure import (
    draw_batch,
    fill,
    measure_rate_and_latency,
    pong_segments,
    resident_mib,
    shard_process,
    unlimited_sampler,
)
from protos import replay_pb2 as pb
from protos import replay_pb2_grpc as rpc
from rl.allocator import keep_freed_memory
from rl.bounds import at_least, positive

BATCH, BATCHES_AHEAD = 32, 16
PLAYED = 20_000  # transitions of Pong that are played and then inserted repeatedly


@dataclass(frozen=True)
class Command:
    """Memory of a full replay shard per transition, and its sampling throughput."""

    items: int = 1_000_000
    """Transitions to insert; also the shard's capacity."""
    seconds: float = 10.0
    """Seconds to sample."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "items")
        positive(self, "seconds", unit="seconds")


def run(c: Command, log: Callable[[str], None] = print) -> dict[str, float]:
    """Measure; returns the figures by name. Raises RunFault if the shard does not start."""
    keep_freed_memory()  # as the learner of a run does
    played = min(PLAYED, c.items)
    log(f"playing {played:,} transitions of Pong ...")
    segments = pong_segments(played)
    with contextlib.ExitStack() as stack:
        address, pid = stack.enter_context(shard_process(c.items))
        stub = rpc.ReplayStub(stack.enter_context(grpc.insecure_channel(address)))
        empty = stub.Info(pb.InfoRequest(), timeout=10.0).counts
        before, began = resident_mib([pid]), time.perf_counter()
        fill(address, c.items, segments)
        took, after = time.perf_counter() - began, resident_mib([pid])
        log(f"filled in {took:.1f} s, {c.items / took:,.0f} inserted/s")
        sampler = stack.enter_context(contextlib.closing(unlimited_sampler([address], BATCH, BATCHES_AHEAD)))
        draw_batch(sampler)
        sampled = measure_rate_and_latency(lambda: draw_batch(sampler), c.seconds)
        counts = stub.Info(pb.InfoRequest(), timeout=10.0).counts
    figures = {
        "stored": counts.stored,
        "inserted_per_s": c.items / took,
        "mib_before": before,
        "mib_after": after,
        "resident_bytes_per_transition": (after - before) * 2**20 / counts.stored,
        "counted_bytes_per_transition": counts.resident_bytes / counts.stored,
        "counted_bytes_empty": empty.resident_bytes,
        "compressed_bytes_per_transition": counts.bytes / counts.stored,
        **{f"sampled_{name}": value for name, value in sampled.items()},
    }
    log(
        f"{counts.stored:,} transitions: {before:,.1f} MiB resident when empty, {after:,.1f} MiB when full; "
        f"per transition {figures['resident_bytes_per_transition']:,.0f} bytes resident, "
        f"{figures['counted_bytes_per_transition']:,.0f} by the shard's own count "
        f"({figures['compressed_bytes_per_transition']:,.0f} of them compressed frames); "
        f"{sampled['per_s']:,.0f} sampled/s in batches of {BATCH}"
    )
    return figures
