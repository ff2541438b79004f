"""`qfleet bench replay`: throughput of one shard over loopback gRPC; with `--vs reverb` also of Reverb 0.14.

The items are real Pong frames with n-step 3. It measures:

inserted    transitions/s of one writer, up to their acknowledgement
sampled     transitions/s of one sampler, ready to use as uint8 [B, 4, 84, 84] pairs, and the time between batches
CPU         seconds that server and client use per million transitions
limits      upper limits in transitions/s for each batch size: the reply's bytes over a plain gRPC stream (grpc),
            decoding the reply in one thread (lz4), and copying the pairs in one thread (copy)
bytes       compressed payload stored per transition, frames that segments share included

Reverb's sampled figure is the best of three: its client, and its dataset with one and with two workers. Qfleet and
Reverb take turns in one run; the medians over the windows are reported.
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
    draw_batch,
    make_inserter,
    measure_rate,
    measure_rate_and_latency,
    pong_segments,
    resident_mib,
    run_alternating,
    run_with_cpu_seconds,
    shard_process,
    unlimited_sampler,
)
from benchmarks.processes.plain_stream import plain_stream
from benchmarks.processes.reverb_process import Reverb
from protos import replay_pb2 as pb
from protos import replay_pb2_grpc as rpc
from protos.codec import unpack_replies
from replay.wire.channel import CHANNEL_OPTIONS
from replay.wire.writer import Writer
from rl.allocator import keep_freed_memory
from rl.bounds import at_least, require
from rl.types import Segment

REVERB_READERS = ("client", "dataset1", "dataset2")  # its client, and its dataset with one and with two workers
Cases = dict[str, Callable[[], Mapping[str, float]]]


@dataclass(frozen=True)
class Command:
    """Throughput of one replay shard over loopback gRPC."""

    batch_sizes: tuple[int, ...] = (32, 512)
    """Transitions per batch; sampled_per_s is the figure of the first."""
    seconds: float = 10.0
    """Length of a window in seconds."""
    windows: int = 3
    """Windows of each case; the medians are reported."""
    items: int = 20_000
    """Capacity of the shard in transitions; this many are played on Pong, then inserted again and again."""
    batches_ahead: int = 16
    """Batches that the sampler requests in advance."""
    vs: Literal["nobody", "reverb"] = "nobody"
    """reverb: measure Reverb 0.14 too. The first time it is installed into a virtual environment of 1.3 GB."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "windows", "items", "seconds")
        require(
            bool(self.batch_sizes) and min(self.batch_sizes) >= 1,
            self,
            "batch_sizes",
            "one or more sizes, each at least 1",
        )


def run(c: Command, log: Callable[[str], None] = print) -> dict[str, float]:
    """Measure; returns the figures by name. Raises BadInput, RunFault."""
    keep_freed_memory()  # as the learner of a run does
    log(f"playing {c.items:,} transitions of Pong ...")
    segments = pong_segments(c.items)
    with contextlib.ExitStack() as stack:
        cases, stats = stack.enter_context(_qfleet_cases(c, segments))
        if c.vs == "reverb":
            reverb = stack.enter_context(Reverb(segments, c.items, log))
            cases |= _reverb_cases(c, reverb)
            cases = dict(
                sorted(cases.items(), key=lambda case: case[0].rsplit("_", 1)[-1])
            )  # equal batch sizes next to each other
        figures = run_alternating(cases, c.windows, log, dict.fromkeys(cases, c.seconds))
        result = _summary(c, figures)
        result["bytes_per_transition"] = stats()["bytes"] / stats()["stored"]
    log(
        f"one shard, batches of {c.batch_sizes[0]}: {result['inserted_per_s']:,.0f} inserted/s, "
        f"{result['sampled_per_s']:,.0f} sampled/s, {result['bytes_per_transition']:,.0f} bytes per transition"
    )
    if c.vs == "reverb":
        _log_comparison(c, result, log)
    return result


@contextlib.contextmanager
def _qfleet_cases(c: Command, segments: list[Segment]) -> Iterator[tuple[Cases, Callable[[], Mapping[str, float]]]]:
    """Start and fill a shard; yields its cases and a function that returns its counts."""
    with shard_process(c.items) as (address, pid):
        writer = Writer([address])
        insert = make_inserter(writer, segments)
        for _ in segments:
            insert()
        writer.flush(60.0)
        samplers = {batch: unlimited_sampler([address], batch, c.batches_ahead) for batch in c.batch_sizes}
        pids = [pid, os.getpid()]

        def inserted() -> dict[str, float]:
            return {
                "per_s": measure_rate(insert, c.seconds, lambda: writer.flush(60.0)),
                "memory_mib": resident_mib([pid]),
            }

        def sampled(batch: int) -> dict[str, float]:
            return measure_rate_and_latency(lambda: draw_batch(samplers[batch]), c.seconds)

        cases: Cases = {"inserted": partial(run_with_cpu_seconds, inserted, pids)}
        for batch in c.batch_sizes:
            cases[f"sampled_{batch}"] = partial(run_with_cpu_seconds, partial(sampled, batch), pids)
            cases[f"limits_{batch}"] = partial(measure_limits, address, batch, c.seconds / 3)
        yield cases, samplers[c.batch_sizes[0]].stats
        writer.close()
        for sampler in samplers.values():
            sampler.close()


def measure_limits(address: str, batch: int, seconds: float) -> dict[str, float]:
    """Measure upper limits for batches of ``batch`` items from the shard at ``address``; returns transitions/s.

    grpc_per_s: the reply's bytes over a plain stream; lz4_per_s: the reply decoded; copy_per_s: the pairs copied once.
    """
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        reply = next(rpc.ReplayStub(channel).Sample(iter([pb.SampleRequest(counts=[batch])]), timeout=10.0))
    pairs = next(unpack_replies([(reply, [batch])], PONG_SPEC))[0]
    both = np.stack([pairs.s_tm1, pairs.s_t])
    target = np.empty_like(both)

    def measure(work: Callable[[], object]) -> float:
        def step() -> int:
            work()
            return batch

        return measure_rate(step, seconds)

    with plain_stream(reply.SerializeToString()) as receive:
        stream = measure(receive)
    lz4 = measure(lambda: next(unpack_replies([(reply, [batch])], PONG_SPEC)))
    return {"grpc_per_s": stream, "lz4_per_s": lz4, "copy_per_s": measure(lambda: np.copyto(target, both))}


def _reverb_cases(c: Command, reverb: Reverb) -> Cases:
    """The cases that measure Reverb; runs each sampling case for a second first."""

    def inserted() -> dict[str, float]:
        found = reverb.ask(f"insert {c.seconds}", c.seconds)
        return {**found, "memory_mib": resident_mib(reverb.pids[:1])}

    def sampled(reader: str, batch: int) -> dict[str, float]:
        return reverb.ask(f"{reader} {c.seconds} {batch}", c.seconds)

    cases: Cases = {"reverb_inserted": partial(run_with_cpu_seconds, inserted, reverb.pids)}
    for batch in c.batch_sizes:
        for reader in REVERB_READERS:
            reverb.ask(f"{reader} 1 {batch}", 1.0)  # builds the dataset and fills its buffers
            measure = partial(sampled, reader, batch)
            cases[f"reverb_{reader}_{batch}"] = partial(run_with_cpu_seconds, measure, reverb.pids)
    return cases


def _summary(c: Command, figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Rename the cases' figures: ``sampled_per_s`` is of the first batch size, ``sampled_per_s_512`` of another one."""
    groups = {("inserted", ""): figures["inserted"]}
    if c.vs == "reverb":
        groups["reverb_inserted", ""] = figures["reverb_inserted"]
    for i, batch in enumerate(c.batch_sizes):
        suffix = f"_{batch}" if i else ""
        groups["sampled", suffix], groups["limit", suffix] = figures[f"sampled_{batch}"], figures[f"limits_{batch}"]
        if c.vs == "reverb":
            by_reader = [figures[f"reverb_{reader}_{batch}"] for reader in REVERB_READERS]
            groups["reverb_sampled", suffix] = max(by_reader, key=lambda f: f["per_s"])
    return {f"{kind}_{key}{suffix}": x for (kind, suffix), values in groups.items() for key, x in values.items()}


def _log_comparison(c: Command, result: Mapping[str, float], log: Callable[[str], None]) -> None:
    suffixes = ["", *(f"_{batch}" for batch in c.batch_sizes[1:])]
    rows = [("inserted", "")] + [("sampled", suffix) for suffix in suffixes]
    for (kind, suffix), batch in zip(rows, [None, *c.batch_sizes], strict=True):
        ours, theirs = result[f"{kind}_per_s{suffix}"], result[f"reverb_{kind}_per_s{suffix}"]
        cpu = [result[f"{prefix}{kind}_cpu_s_per_million{suffix}"] for prefix in ("", "reverb_")]
        what = kind if batch is None else f"{kind} in batches of {batch}"
        log(
            f"{what}: Qfleet {ours:,.0f}/s, Reverb {theirs:,.0f}/s, {ours / theirs:.1f} times as many; "
            f"CPU seconds per million: Qfleet {cpu[0]:.1f}, Reverb {cpu[1]:.1f}"
        )
