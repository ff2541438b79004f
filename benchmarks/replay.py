"""`qfleet bench replay`: one shard on loopback, real Pong frames, n-step 3; with `--vs reverb` beside Reverb 0.14.

Inserted: transitions a second that one writer gets acknowledged. Sampled: transitions a second that one sampler has ready in
its process as uint8 [B, 4, 84, 84] pairs, with the time from one batch to the next. CPU: seconds that server and client
spend on a million of them. Limits, for batches of each size: the same bytes over a plain gRPC stream; their LZ4 unpacked,
and the pairs copied, in one thread. Bytes: compressed payload at rest a transition, overlaps included. Reverb's sampled
figure is the best of its client and of its dataset with one and with two workers. Both sides take turns in one run; medians.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import grpc
import numpy as np

from benchmarks.measure import (
    PONG_SPEC,
    alternating,
    batches_timed,
    drawn,
    free_sampler,
    inserting,
    pong_segments,
    rate,
    resident_mib,
    shard_process,
    with_cpu,
)
from benchmarks.processes.plain_stream import plain_stream
from benchmarks.processes.reverb_process import Reverb
from protos import replay_pb2 as pb
from protos import replay_pb2_grpc as rpc
from protos.codec import unpack_replies
from replay.wire.channel import CHANNEL_OPTIONS
from replay.wire.writer import Writer
from rl.allocator import keep_freed_memory
from rl.bounds import at_least
from rl.errors import BadInput
from rl.types import Segment

REVERB_WAYS = ("client", "dataset1", "dataset2")  # its client, and its dataset with one and with two workers
Cases = dict[str, Callable[[], Mapping[str, float]]]


@dataclass(frozen=True)
class Command:
    """Replay throughput over gRPC on loopback."""

    batch_sizes: tuple[int, ...] = (32, 512)
    """Transitions a batch; the first is the one that is reported as sampled_per_s."""
    seconds: float = 10.0
    """Length of a window."""
    windows: int = 3
    """Windows of each kind, taking turns; medians are reported."""
    items: int = 20_000
    """Transitions of Pong that are inserted again and again; also the shard's capacity."""
    batches_ahead: int = 16
    """Batches that the sampler asks for ahead of their use."""
    vs: Literal["nobody", "reverb"] = "nobody"
    """reverb: the same of Reverb 0.14, in a virtual environment of its own (made at the first time, 1.3 GB)."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "windows", "items", "seconds")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise BadInput("--batch-sizes must name sizes of at least 1")


def run(c: Command, say: Callable[[str], None] = print) -> dict[str, float]:
    """Measure; returns the figures."""
    keep_freed_memory()  # as the learner of a run does
    say(f"playing {c.items:,} transitions of Pong ...")
    segments = pong_segments(c.items)
    with contextlib.ExitStack() as stack:
        cases, stats = stack.enter_context(_ours(c, segments))
        if c.vs == "reverb":
            reverb = stack.enter_context(Reverb(segments, c.items, say))
            cases |= _reverbs(c, reverb)
            cases = dict(sorted(cases.items(), key=lambda case: case[0].rsplit("_", 1)[-1]))  # like beside like
        figures = alternating(cases, c.windows, say, dict.fromkeys(cases, c.seconds))
        result = _summary(c, figures)
        result["bytes_per_transition"] = stats()["bytes"] / stats()["stored"]
    say(
        f"one shard, batches of {c.batch_sizes[0]}: {result['inserted_per_s']:,.0f} inserted/s, "
        f"{result['sampled_per_s']:,.0f} sampled/s, {result['bytes_per_transition']:,.0f} bytes a transition"
    )
    if c.vs == "reverb":
        _compare(c, result, say)
    return result


@contextlib.contextmanager
def _ours(c: Command, segments: list[Segment]) -> Iterator[tuple[Cases, Callable[[], Mapping[str, float]]]]:
    """Cases of a full shard, and its counts."""
    with shard_process(c.items) as (address, pid):
        writer = Writer([address])
        insert = inserting(writer, segments)
        for _ in segments:
            insert()
        writer.flush(60.0)
        samplers = {batch: free_sampler([address], batch, c.batches_ahead) for batch in c.batch_sizes}
        pids = [pid, os.getpid()]

        def inserted() -> dict[str, float]:
            return {"per_s": rate(insert, c.seconds, lambda: writer.flush(60.0)), "memory_mib": resident_mib([pid])}

        def sampled(batch: int) -> dict[str, float]:
            return batches_timed(lambda: drawn(samplers[batch]), c.seconds)

        cases: Cases = {"inserted": partial(with_cpu, inserted, pids)}
        for batch in c.batch_sizes:
            cases[f"sampled_{batch}"] = partial(with_cpu, partial(sampled, batch), pids)
            cases[f"limits_{batch}"] = partial(limits, address, batch, c.seconds / 3)
        yield cases, samplers[c.batch_sizes[0]].stats
        writer.close()
        for sampler in samplers.values():
            sampler.close()


def limits(address: str, batch: int, seconds: float) -> dict[str, float]:
    """Upper limits in transitions/s for batches of ``batch``: carry their bytes, unpack them, copy the pairs once."""
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        reply = next(rpc.ReplayStub(channel).Sample(iter([pb.SampleRequest(counts=[batch])]), timeout=10.0))
    pairs = next(unpack_replies([(reply, [batch])], PONG_SPEC))[0]
    both = np.stack([pairs.s_tm1, pairs.s_t])
    room = np.empty_like(both)

    def each(work: Callable[[], object]) -> float:
        def step() -> int:
            work()
            return batch

        return rate(step, seconds)

    with plain_stream(reply.SerializeToString()) as take:
        stream = each(take)
    lz4 = each(lambda: next(unpack_replies([(reply, [batch])], PONG_SPEC)))
    return {"grpc_per_s": stream, "lz4_per_s": lz4, "copy_per_s": each(lambda: np.copyto(room, both))}


def _reverbs(c: Command, reverb: Reverb) -> Cases:
    def inserted() -> dict[str, float]:
        found = reverb.ask(f"insert {c.seconds}", c.seconds)
        return {**found, "memory_mib": resident_mib(reverb.pids[:1])}

    def sampled(how: str, batch: int) -> dict[str, float]:
        return reverb.ask(f"{how} {c.seconds} {batch}", c.seconds)

    cases: Cases = {"reverb_inserted": partial(with_cpu, inserted, reverb.pids)}
    for batch in c.batch_sizes:
        for how in REVERB_WAYS:
            reverb.ask(f"{how} 1 {batch}", 1.0)  # builds the dataset, fills its buffers
            cases[f"reverb_{how}_{batch}"] = partial(with_cpu, partial(sampled, how, batch), reverb.pids)
    return cases


def _summary(c: Command, figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Figures by name: `sampled_per_s` of the first batch size, `sampled_per_s_512` of another."""
    found = {("inserted", ""): figures["inserted"]}
    if c.vs == "reverb":
        found["reverb_inserted", ""] = figures["reverb_inserted"]
    for i, batch in enumerate(c.batch_sizes):
        end = f"_{batch}" if i else ""
        found["sampled", end], found["limit", end] = figures[f"sampled_{batch}"], figures[f"limits_{batch}"]
        if c.vs == "reverb":
            ways = [figures[f"reverb_{way}_{batch}"] for way in REVERB_WAYS]
            found["reverb_sampled", end] = max(ways, key=lambda f: f["per_s"])
    return {f"{kind}_{key}{end}": value for (kind, end), values in found.items() for key, value in values.items()}


def _compare(c: Command, result: Mapping[str, float], say: Callable[[str], None]) -> None:
    tails = ["", *(f"_{batch}" for batch in c.batch_sizes[1:])]
    rows = [("inserted", "")] + [("sampled", tail) for tail in tails]
    for (kind, tail), batch in zip(rows, [None, *c.batch_sizes], strict=True):
        ours, theirs = result[f"{kind}_per_s{tail}"], result[f"reverb_{kind}_per_s{tail}"]
        cpu = [result[f"{side}{kind}_cpu_s_per_million{tail}"] for side in ("", "reverb_")]
        what = kind if batch is None else f"{kind} in batches of {batch}"
        say(
            f"{what}: {ours:,.0f}/s, Reverb {theirs:,.0f}/s: {ours / theirs:.1f} times; "
            f"{cpu[0]:.1f} CPU seconds a million, Reverb {cpu[1]:.1f}"
        )
