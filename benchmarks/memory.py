"""`qfleet bench memory`: what a replay shard full of Pong takes of memory, and how fast it is sampled at that size.

Real frames, n-step 3, stack 4: some 20,000 transitions are played and inserted again and again, until the shard's process
holds --items. Resident: growth of the process over what it took empty. Counted: what the shard says by `Counts`:
`resident_bytes`, which bounds it under --capacity-bytes, and `bytes`, the compressed frames alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from benchmarks.measure import (
    batches_timed,
    drawn,
    fill,
    free_sampler,
    pong_segments,
    resident_mib,
    shard_process,
)
from protos import replay_pb2 as pb
from protos import replay_pb2_grpc as rpc
from rl.allocator import keep_freed_memory
from rl.bounds import at_least, positive

BATCH, BATCHES_AHEAD = 32, 16
PLAYED = 20_000  # transitions of Pong


@dataclass(frozen=True)
class Command:
    """Memory of a full replay shard."""

    items: int = 1_000_000
    """Transitions; also the shard's capacity."""
    seconds: float = 10.0
    """Length of the window in which it is sampled."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "items")
        positive(self, "seconds", unit="seconds")


def run(c: Command, say: Callable[[str], None] = print) -> dict[str, float]:
    """Measure; returns the figures."""
    keep_freed_memory()  # as the learner of a run does
    played = min(PLAYED, c.items)
    say(f"playing {played:,} transitions of Pong ...")
    segments = pong_segments(played)
    with contextlib.ExitStack() as stack:
        address, pid = stack.enter_context(shard_process(c.items))
        stub = rpc.ReplayStub(stack.enter_context(grpc.insecure_channel(address)))
        empty = stub.Info(pb.InfoRequest(), timeout=10.0).counts
        before, began = resident_mib([pid]), time.perf_counter()
        fill(address, c.items, segments)
        took, after = time.perf_counter() - began, resident_mib([pid])
        say(f"filled in {took:.1f} s, {c.items / took:,.0f} inserted/s")
        sampler = stack.enter_context(contextlib.closing(free_sampler([address], BATCH, BATCHES_AHEAD)))
        drawn(sampler)
        sampled = batches_timed(lambda: drawn(sampler), c.seconds)
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
    say(
        f"{counts.stored:,} transitions: {before:,.1f} MiB before, {after:,.1f} MiB after; a transition takes "
        f"{figures['resident_bytes_per_transition']:,.0f} bytes resident, {figures['counted_bytes_per_transition']:,.0f} by "
        f"the shard's count, {figures['compressed_bytes_per_transition']:,.0f} of them compressed frames; "
        f"{sampled['per_s']:,.0f} sampled/s in batches of {BATCH}"
    )
    return figures
