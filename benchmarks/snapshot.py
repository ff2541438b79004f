"""`qfleet bench snapshot`: request latency of a shard full of Pong while it writes snapshots, and its restart time.

One stream inserts segments of 40 items and another draws batches of 32. Each sends its next request as soon as the
previous one is answered, so the shard is always busy. Their latencies are measured while a snapshot is written and, for
comparison, in a window of the same length right after it. The latencies of all rounds are pooled. A full snapshot is
taken after all of the shard's content has been inserted or replaced, an incremental one after a tenth of it has been
replaced. Bytes are those of the files that were written.

Then the shard is killed and restarted from its snapshot; starting an empty shard is timed for comparison. The files are
written to Python's temporary directory (set TMPDIR to choose another).
"""

from __future__ import annotations

import itertools
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.measure import cpu_seconds, median, pong_segments, shard_process
from protos import replay_pb2 as pb
from protos import replay_pb2_grpc as rpc
from protos.codec import pack_segment, segment_to_message
from replay.wire.channel import CHANNEL_OPTIONS
from rl.bounds import at_least

PLAYED = 20_000  # transitions of Pong that are played and then inserted repeatedly
BATCH = 32
KINDS = {"full": 1.0, "incremental": 0.1}  # share of the content that is replaced before the snapshot


@dataclass(frozen=True)
class Command:
    """Request latency of a replay shard while it writes snapshots, and its restart time after a kill."""

    items: int = 500_000
    """Capacity of the shard, which is filled with transitions of Pong."""
    rounds: int = 3
    """Number of snapshots of each kind (full, incremental)."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "items", "rounds")


class Caller:
    """A bidirectional stream with one request in flight at a time; `latencies` has the seconds of each call.

    ``method`` is a streaming method of a gRPC stub; ``requests`` must not end.
    """

    def __init__(self, method: Callable[[Iterator[Any]], Iterator[Any]], requests: Iterator[Any]) -> None:
        self._requests, self._out = requests, queue.SimpleQueue[Any]()
        self._replies = method(iter(self._out.get, None))
        self.latencies: list[float] = []  # seconds

    def call(self) -> None:
        """Send the next request and wait for its answer."""
        request = next(self._requests)
        began = time.perf_counter()
        self._out.put(request)
        next(self._replies)
        self.latencies.append(time.perf_counter() - began)

    def call_until(self, stop: threading.Event) -> None:
        """Send requests one after the other until ``stop`` is set."""
        while not stop.is_set():
            self.call()


def run(c: Command, log: Callable[[str], None] = print) -> dict[str, float]:
    """Measure; returns the figures by name. Raises RunFault if a shard does not start."""
    log(f"playing {min(PLAYED, c.items):,} transitions of Pong ...")
    messages = [segment_to_message(pack_segment(segment)) for segment in pong_segments(min(PLAYED, c.items))]
    figures: dict[str, float] = {"items": c.items}
    with tempfile.TemporaryDirectory(prefix="qfleet-bench-") as folder:
        directory = Path(folder) / "shard"
        with (
            shard_process(c.items, snapshots=directory) as (address, _),
            grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel,
        ):
            figures |= _measure_pauses(c, rpc.ReplayStub(channel), messages, log)
        figures |= _measure_restarts(c, directory, Path(folder) / "empty", log)
    for kind, call in itertools.product(KINDS, ("insert", "sample")):
        name = f"{kind}_{call}"
        added = figures[f"{name}_added_p99.9_ms"] = figures[f"{name}_p99.9_ms"] - figures[f"{name}_without_p99.9_ms"]
        log(
            f"{kind} snapshot: {call} p99.9 {added:+.1f} ms compared with no snapshot, "
            f"longest {figures[f'{name}_max_ms']:.1f} ms"
        )
    return figures


def _measure_pauses(
    c: Command, stub: rpc.ReplayStub, messages: list[pb.Segment], log: Callable[[str], None]
) -> dict[str, float]:
    """Fill the shard and take ``c.rounds`` snapshots of each kind; returns their times, bytes and request latencies."""
    inserts = (
        pb.InsertRequest(writer="bench", sequence=k, segment=segment)
        for k, segment in enumerate(itertools.cycle(messages), start=1)
    )
    callers = {
        "insert": Caller(stub.Insert, inserts),
        "sample": Caller(stub.Sample, itertools.repeat(pb.SampleRequest(counts=[BATCH]))),
    }
    latencies: dict[str, list[float]] = {}
    written: dict[str, list[pb.SnapshotReply]] = {kind: [] for kind in KINDS}
    for done, (kind, share) in itertools.product(range(c.rounds), KINDS.items()):
        goal = stub.Info(pb.InfoRequest(), timeout=10.0).counts.inserted + share * c.items
        while stub.Info(pb.InfoRequest(), timeout=10.0).counts.inserted < goal:
            for _ in range(100):
                callers["insert"].call()
        reply, with_snapshot = _measure_latencies(callers, partial(stub.Snapshot, pb.SnapshotRequest(), timeout=600.0))
        _, without = _measure_latencies(callers, partial(time.sleep, reply.seconds))
        written[kind].append(reply)
        for call in callers:
            latencies.setdefault(f"{kind}_{call}", []).extend(with_snapshot[call])
            latencies.setdefault(f"{kind}_{call}_without", []).extend(without[call])
        log(
            f"round {done + 1} of {c.rounds}, {kind} snapshot: {reply.items:,} transitions, "
            f"{reply.bytes_written / 1e6:.1f} MB written in {reply.seconds:.2f} s"
        )
    figures = {}
    for kind, replies in written.items():
        figures[f"{kind}_seconds"] = median([r.seconds for r in replies])
        figures[f"{kind}_bytes"] = median([r.bytes_written for r in replies])
    for name, seconds in latencies.items():
        for label, value in zip(
            ("p50", "p99", "p99.9", "max"), np.percentile(seconds, [50, 99, 99.9, 100]), strict=True
        ):
            figures[f"{name}_{label}_ms"] = float(value) * 1e3
        figures[f"{name}_calls"] = len(seconds)
    return figures


def _measure_latencies(callers: dict[str, Caller], during: Callable[[], Any]) -> tuple[Any, dict[str, list[float]]]:
    """Run ``during`` while the callers send requests from threads; returns its result and the latencies by name."""
    stop = threading.Event()
    for caller in callers.values():
        caller.latencies = []
    threads = [threading.Thread(target=caller.call_until, args=(stop,)) for caller in callers.values()]
    for thread in threads:
        thread.start()
    try:
        result = during()
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=60.0)
    return result, {name: caller.latencies for name, caller in callers.items()}


def _measure_restarts(c: Command, directory: Path, empty: Path, log: Callable[[str], None]) -> dict[str, float]:
    """Start a shard from ``directory`` and one from ``empty``; returns the seconds until each listens."""
    figures = {}
    for name, place in (("empty_start", empty), ("restart", directory)):
        began = time.perf_counter()
        with shard_process(c.items, snapshots=place) as (address, pid):
            figures[f"{name}_seconds"] = time.perf_counter() - began
            figures[f"{name}_cpu_seconds"] = cpu_seconds([pid])
            with grpc.insecure_channel(address) as channel:
                stored = rpc.ReplayStub(channel).Info(pb.InfoRequest(), timeout=10.0).counts.stored
    figures["restored_items"] = stored
    log(
        f"restart: {stored:,} transitions restored after {figures['restart_seconds']:.1f} s; an empty shard starts in "
        f"{figures['empty_start_seconds']:.1f} s"
    )
    return figures
