"""`qfleet bench snapshot`: how long a shard full of Pong keeps its callers waiting while it writes snapshots.

One stream inserts segments of 40 items and one draws batches of 32, each its next request when the last is answered: the
shard has no idle moment. Their latencies are taken while a snapshot is written and in an equal window right after it,
without one; windows of a kind are taken together over the rounds. A full snapshot is the first, and any after the whole
content was replaced; an incremental one comes after a tenth of it was. Bytes are of the files written. Then the shard is
killed and started on what it wrote, beside a start without content. The files go where Python's tempfile does (TMPDIR).
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

PLAYED = 20_000  # transitions of Pong that are played; inserted again and again
BATCH = 32
KINDS = {"full": 1.0, "incremental": 0.1}  # share of the content that is replaced before


@dataclass(frozen=True)
class Command:
    """Pauses of a replay shard while it writes snapshots, and how soon it is back after a kill."""

    items: int = 500_000
    """Transitions of Pong in the shard; also its capacity."""
    rounds: int = 3
    """Snapshots of each kind."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "items", "rounds")


class Caller:
    """A bidirectional stream on which each request waits for the answer to the last; `took` has the seconds of each."""

    def __init__(self, method: Callable[[Iterator[Any]], Iterator[Any]], requests: Iterator[Any]) -> None:
        self._next, self._out = requests, queue.SimpleQueue[Any]()
        self._replies = method(iter(self._out.get, None))
        self.took: list[float] = []  # seconds of each

    def call(self) -> None:
        """Send the next request and wait for its answer."""
        request = next(self._next)
        began = time.perf_counter()
        self._out.put(request)
        next(self._replies)
        self.took.append(time.perf_counter() - began)

    def call_until(self, stop: threading.Event) -> None:
        """Send requests, one after the other, until ``stop`` is set."""
        while not stop.is_set():
            self.call()


def run(c: Command, say: Callable[[str], None] = print) -> dict[str, float]:
    """Measure; returns the figures."""
    say(f"playing {min(PLAYED, c.items):,} transitions of Pong ...")
    messages = [segment_to_message(pack_segment(segment)) for segment in pong_segments(min(PLAYED, c.items))]
    figures: dict[str, float] = {"items": c.items}
    with tempfile.TemporaryDirectory(prefix="qfleet-bench-") as folder:
        directory = Path(folder) / "shard"
        with (
            shard_process(c.items, snapshots=directory) as (address, _),
            grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel,
        ):
            figures |= _pauses(c, rpc.ReplayStub(channel), messages, say)
        figures |= _restarts(c, directory, Path(folder) / "empty", say)
    for kind, call in itertools.product(KINDS, ("insert", "sample")):
        name = f"{kind}_{call}"
        added = figures[f"{name}_added_p99.9_ms"] = figures[f"{name}_p99.9_ms"] - figures[f"{name}_without_p99.9_ms"]
        say(f"{kind} snapshot: p99.9 of {call} {added:+.1f} ms, longest {figures[f'{name}_max_ms']:.1f} ms")
    return figures


def _pauses(
    c: Command, stub: rpc.ReplayStub, messages: list[pb.Segment], say: Callable[[str], None]
) -> dict[str, float]:
    inserts = (
        pb.InsertRequest(writer="bench", sequence=k, segment=segment)
        for k, segment in enumerate(itertools.cycle(messages), start=1)
    )
    callers = {
        "insert": Caller(stub.Insert, inserts),
        "sample": Caller(stub.Sample, itertools.repeat(pb.SampleRequest(counts=[BATCH]))),
    }
    seen: dict[str, list[float]] = {}
    written: dict[str, list[pb.SnapshotReply]] = {kind: [] for kind in KINDS}
    for round_, (kind, share) in itertools.product(range(c.rounds), KINDS.items()):
        goal = stub.Info(pb.InfoRequest(), timeout=10.0).counts.inserted + share * c.items
        while stub.Info(pb.InfoRequest(), timeout=10.0).counts.inserted < goal:
            for _ in range(100):
                callers["insert"].call()
        reply, found = _window(callers, partial(stub.Snapshot, pb.SnapshotRequest(), timeout=600.0))
        _, without = _window(callers, partial(time.sleep, reply.seconds))
        written[kind].append(reply)
        for call in callers:
            seen.setdefault(f"{kind}_{call}", []).extend(found[call])
            seen.setdefault(f"{kind}_{call}_without", []).extend(without[call])
        say(
            f"round {round_ + 1}/{c.rounds} {kind}: {reply.items:,} transitions, {reply.bytes_written / 1e6:.1f} MB written "
            f"in {reply.seconds:.2f} s"
        )
    figures = {}
    for kind, replies in written.items():
        figures[f"{kind}_seconds"] = median([r.seconds for r in replies])
        figures[f"{kind}_bytes"] = median([r.bytes_written for r in replies])
    for name, took in seen.items():
        for label, value in zip(("p50", "p99", "p99.9", "max"), np.percentile(took, [50, 99, 99.9, 100]), strict=True):
            figures[f"{name}_{label}_ms"] = float(value) * 1e3
        figures[f"{name}_calls"] = len(took)
    return figures


def _window(callers: dict[str, Caller], during: Callable[[], Any]) -> tuple[Any, dict[str, list[float]]]:
    """Let the callers call while ``during`` runs; its result, and their latencies by name."""
    stop = threading.Event()
    for caller in callers.values():
        caller.took = []
    threads = [threading.Thread(target=caller.call_until, args=(stop,)) for caller in callers.values()]
    for thread in threads:
        thread.start()
    try:
        result = during()
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=60.0)
    return result, {name: caller.took for name, caller in callers.items()}


def _restarts(c: Command, directory: Path, empty: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Seconds until a shard listens, with the content of ``directory`` and without any."""
    figures = {}
    for name, place in (("empty_start", empty), ("restart", directory)):
        began = time.perf_counter()
        with shard_process(c.items, snapshots=place) as (address, pid):
            figures[f"{name}_seconds"] = time.perf_counter() - began
            figures[f"{name}_cpu_seconds"] = cpu_seconds([pid])
            with grpc.insecure_channel(address) as channel:
                stored = rpc.ReplayStub(channel).Info(pb.InfoRequest(), timeout=10.0).counts.stored
    figures["restored_items"] = stored
    say(
        f"restart: {stored:,} transitions back after {figures['restart_seconds']:.1f} s, of which an empty start takes "
        f"{figures['empty_start_seconds']:.1f} s"
    )
    return figures
