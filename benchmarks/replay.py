"""`qfleet bench replay`: one shard on loopback, real Pong frames, n-step 3.

Inserted: transitions a second that one writer gets acknowledged. Sampled: transitions a second that one sampler has ready
in this process as uint8 [B, 4, 84, 84] pairs. Bytes: compressed payload at rest a transition, overlaps included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.measure import PONG_SPEC, alternating, at_least_1, pong_segments, rate, shard_process
from replay.rate_limiter import LimiterConfig, RateLimiter
from replay.sampler import Sampler
from replay.weights import BetaConfig
from replay.writer import Writer
from rl.types import Segment


@dataclass(frozen=True)
class Command:
    """Replay throughput over gRPC on loopback."""

    batch_size: int = 32
    """Transitions a batch."""
    seconds: float = 10.0
    """Length of a window."""
    windows: int = 3
    """Windows of each kind, taking turns; medians are reported."""
    items: int = 20_000
    """Transitions of Pong that are inserted again and again; also the shard's capacity."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least_1(self, "batch_size", "windows", "items")


def run(c: Command, say: Callable[[str], None] = print) -> dict[str, float]:
    """Measure; returns the figures."""
    say(f"playing {c.items:,} transitions of Pong ...")
    segments = pong_segments(c.items)
    with shard_process(c.items) as address:
        writer = Writer([address])
        insert = _inserting(writer, segments)
        for _ in segments:
            insert()
        writer.flush(60.0)
        limiter = RateLimiter(LimiterConfig(0.0, 1), max_insert=100, batch=c.batch_size)
        sampler = Sampler([address], PONG_SPEC, limiter, BetaConfig())

        def sample() -> int:
            batch = sampler.sample(10.0)
            assert batch is not None
            return len(batch.keys)

        def inserted() -> dict[str, float]:
            began = time.perf_counter()
            count = rate(insert, c.seconds) * (time.perf_counter() - began)
            writer.flush(60.0)
            return {"per_s": count / (time.perf_counter() - began)}

        figures = alternating(
            {"inserted": inserted, "sampled": lambda: {"per_s": rate(sample, c.seconds)}}, c.windows, say
        )
        stats = sampler.stats()
        writer.close()
        sampler.close()
    result = {
        "inserted_per_s": figures["inserted"]["per_s"],
        "sampled_per_s": figures["sampled"]["per_s"],
        "bytes_per_transition": stats["bytes"] / stats["stored"],
    }
    say(
        f"one shard, batches of {c.batch_size}: {result['inserted_per_s']:,.0f} inserted/s, "
        f"{result['sampled_per_s']:,.0f} sampled/s, {result['bytes_per_transition']:,.0f} bytes a transition"
    )
    return result


def _inserting(writer: Writer, segments: list[Segment]) -> Callable[[], int]:
    turn = iter(range(10**12))

    def insert() -> int:
        segment = segments[next(turn) % len(segments)]
        writer.write(segment)
        return segment.items

    return insert
