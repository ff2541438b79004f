"""`qfleet bench sizing`: memory, network traffic and shards that given numbers of Pong actors need (docs/sizing.md).

The bytes per transition are measured on real Pong: of insert requests, of sample replies, and in a shard's memory. The
rates are flags: of one actor (measure it with `qfleet bench actors`), of one shard (`qfleet bench replay`) and of the
learner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from benchmarks.measure import PONG_ACTIONS, PONG_SPEC, pong_segments
from protos import replay_pb2 as pb
from protos.codec import pack_segment, sampled_to_message, segment_to_message
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from rl.bounds import at_least, positive, require
from rl.networks import NetworkConfig, make_network
from rl.parameters import bytes_of, weights_of

BATCH = 32
# The counters of a run that measure the same as figures of `measure_bytes` (docs/runs.md).
COUNTED = {
    "insert_bytes": "qfleet_actor_replay_bytes_sent / qfleet_actor_replay_items_sent",
    "sample_bytes": "qfleet_learner_replay_bytes_received / qfleet_learner_replay_items_received",
    "weights_bytes": "qfleet_actor_weights_bytes_received / (qfleet_actor_weights_publications + "
    "qfleet_actor_weights_target_syncs)",
}


@dataclass(frozen=True)
class Command:
    """Memory, network traffic and shards that given numbers of actors need."""

    actors: tuple[int, ...] = (10, 100, 1_000)
    """Numbers of actor processes; one column of the table each."""
    steps: float = 1_950.0
    """Agent steps/s of one actor; `qfleet bench actors` measures it."""
    batch_size: int = 512
    """Transitions per learner update."""
    updates: float = 19.0
    """Learner updates/s."""
    inserts: float = 60_000.0
    """Transitions/s that one shard can insert when it does nothing else; `qfleet bench replay` measures it."""
    samples: float = 50_000.0
    """Transitions/s that one shard can sample when it does nothing else; `qfleet bench replay` measures it."""
    actors_per_node: int = 16
    """Actors per node (machine)."""
    publish_period: int = 20
    """Learner updates between publications of weights."""
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig("nature", hidden=(512,), dueling=False))
    """The network whose weights are published."""
    items: int = 20_000
    """Transitions of Pong to play for measuring the bytes."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "actors_per_node", "publish_period", "items")
        require(bool(self.actors) and min(self.actors) >= 1, self, "actors", "one or more numbers, each at least 1")
        positive(self, "steps", "updates", "inserts", "samples")


def run(c: Command, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure the bytes and log the table; returns the bytes by name, and ``fleets``: the columns by actors."""
    log(f"playing {c.items:,} transitions of Pong ...")
    sizes = measure_bytes(c.items, c.network)
    log(", ".join(f"{name.replace('_', ' ')} {value:,.0f}" for name, value in sizes.items()))
    log("a run on Ray counts the same bytes (docs/runs.md); compare:")
    for name, counters in COUNTED.items():
        log(f"{sizes[name]:>12,.0f} {name.replace('_', ' ')} = {counters}")
    columns = [needs_of_actors(c, sizes, actors) for actors in c.actors]
    log("| | " + " | ".join(f"{actors:,} actors" for actors in c.actors) + " |")
    log("|---" * (len(columns) + 1) + "|")
    for name in columns[0]:
        log(f"| {name} | " + " | ".join(_short(column[name]) for column in columns) + " |")
    sampled = c.batch_size * c.updates
    log(
        f"the learner samples {sampled:,.0f} transitions/s, {sampled * sizes['sample_bytes'] / 1e6:,.1f} MB/s; "
        f"memory of 1M / 2M transitions: {sizes['resident_bytes'] / 1e3:,.2f} / {sizes['resident_bytes'] / 500:,.2f} GB"
    )
    return {**sizes, "fleets": dict(zip(map(str, c.actors), columns, strict=True))}


def measure_bytes(items: int, network: NetworkConfig) -> dict[str, float]:
    """Play ``items`` transitions of Pong; returns bytes per transition, and bytes of the weights of ``network``.

    insert_bytes: in insert requests; payload_bytes: compressed frames in a shard; resident_bytes: all memory of the
    content of a shard, by its own count; sample_bytes: in sample replies; weights_bytes: weights and buffers of the
    whole network, as published.
    """
    name = "0" * 32  # as long as a writer's name
    segments = [pack_segment(segment) for segment in pong_segments(items)]
    stored = sum(segment.items for segment in segments)
    shard = Shard(stored, PONG_SPEC, SelectorConfig(), limited=False)
    inserts = []
    for sequence, segment in enumerate(segments, 1):
        message = segment_to_message(segment)
        inserts.append(pb.InsertRequest(writer=name, origin=name, sequence=sequence, segment=message))
        shard.insert(name, sequence, segment)
    replies = [sampled_to_message(shard.sample([BATCH]), PONG_SPEC) for _ in range(100)]
    return {
        "insert_bytes": sum(r.ByteSize() for r in inserts) / stored,
        "payload_bytes": shard.counts().bytes / stored,
        "resident_bytes": shard.counts().resident_bytes / stored,
        "sample_bytes": sum(r.ByteSize() for r in replies) / (BATCH * len(replies)),
        "weights_bytes": bytes_of(weights_of(make_network(network, PONG_SPEC, PONG_ACTIONS, 0))),
    }


def needs_of_actors(c: Command, sizes: dict[str, float], actors: int) -> dict[str, float]:
    """What ``actors`` actors need, by the formulas of docs/sizing.md; one column of the table, by row name.

    ``sizes`` is the result of `measure_bytes`. The actors are assumed to run without a samples-per-insert limit.
    """
    inserted, sampled = actors * c.steps, c.batch_size * c.updates
    nodes = ceil(actors / c.actors_per_node)
    return {
        "inserted, transitions/s": inserted,
        "traffic into the shards, MB/s": inserted * sizes["insert_bytes"] / 1e6,
        "samples per insert": sampled / inserted,
        "shards for inserts alone": ceil(inserted / c.inserts),
        "shards for inserts and samples": ceil(inserted / c.inserts + sampled / c.samples),
        "time to insert 1M transitions, s": 1e6 / inserted,
        "inserted per hour, million transitions": 3600 * inserted / 1e6,
        "memory for one hour of inserts, GB": 3600 * inserted * sizes["resident_bytes"] / 1e9,
        "actor nodes": nodes,
        "weights to the actor nodes, MB/s": nodes * sizes["weights_bytes"] * c.updates / c.publish_period / 1e6,
    }


def _short(x: float) -> str:
    """``x`` as text: whole if it is an integer or at least 100, else with two digits."""
    return f"{x:,.0f}" if x >= 100 or x == int(x) else f"{x:,.2g}"
