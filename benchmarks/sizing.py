"""`qfleet bench sizing`: memory, network and shards for given numbers of actors on Pong, as in docs/sizing.md.

The bytes are measured: of real segments as they are sent, of a sample's reply, and of a shard's count. The rates are
given: of one actor (`bench actors`), of one shard (`bench replay`), and of the learner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

from benchmarks.measure import PONG_ACTIONS, PONG_SPEC, pong_segments
from protos import replay_pb2 as pb
from protos.codec import pack_segment, sampled_to_message, segment_to_message
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from rl.bounds import at_least, positive
from rl.errors import BadInput
from rl.networks import NetworkConfig, make_network

BATCH = 32


@dataclass(frozen=True)
class Command:
    """What fleets of actors need."""

    actors: tuple[int, ...] = (10, 100, 1_000)
    """Actor processes."""
    steps: float = 1_950.0
    """Agent steps a second that an actor does."""
    batch_size: int = 512
    """Transitions of a learner's update."""
    updates: float = 19.0
    """Learner updates a second."""
    inserts: float = 60_000.0
    """Transitions a second that one shard takes, by itself."""
    samples: float = 50_000.0
    """Transitions a second that one shard gives, by itself."""
    actors_per_node: int = 16
    """Actors on one machine."""
    publish_period: int = 20
    """Learner updates between publications of weights."""
    items: int = 20_000
    """Transitions of Pong that the bytes are measured on."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "actors_per_node", "publish_period", "items")
        if not self.actors or min(self.actors) < 1:
            raise BadInput(f"--actors {self.actors}: write numbers of actors from 1 on")
        positive(self, "steps", "updates", "inserts", "samples")


def run(c: Command, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure the bytes and print the table; returns the figures."""
    say(f"playing {c.items:,} transitions of Pong ...")
    sizes = measured(c.items)
    say(", ".join(f"{name.replace('_', ' ')} {value:,.0f}" for name, value in sizes.items()))
    fleets = [fleet(c, sizes, actors) for actors in c.actors]
    say("| | " + " | ".join(f"{actors:,} actors" for actors in c.actors) + " |")
    say("|---" * (len(fleets) + 1) + "|")
    for name in fleets[0]:
        say(f"| {name} | " + " | ".join(_short(f[name]) for f in fleets) + " |")
    sampled = c.batch_size * c.updates
    say(
        f"the learner: {sampled:,.0f} transitions/s, {sampled * sizes['sample_bytes'] / 1e6:,.1f} MB/s out of the shards; "
        f"1M / 2M transitions: {sizes['resident_bytes'] / 1e3:,.2f} / {sizes['resident_bytes'] / 500:,.2f} GB"
    )
    return {**sizes, "fleets": dict(zip(map(str, c.actors), fleets, strict=True))}


def measured(items: int) -> dict[str, float]:
    """Bytes per transition on its way into a shard, in it and out of it, and bytes of a Nature network's weights."""
    name = "0" * 32  # as long as a writer's
    segments = [pack_segment(segment) for segment in pong_segments(items)]
    stored = sum(segment.items for segment in segments)
    shard = Shard(stored, PONG_SPEC, SelectorConfig(), limited=False)
    inserts = []
    for sequence, segment in enumerate(segments, 1):
        message = segment_to_message(segment)
        inserts.append(pb.InsertRequest(writer=name, origin=name, sequence=sequence, segment=message))
        shard.insert(name, sequence, segment)
    replies = [sampled_to_message(shard.sample([BATCH]), PONG_SPEC) for _ in range(100)]
    network = make_network(NetworkConfig(kind="nature", hidden=(512,), dueling=False), PONG_SPEC, PONG_ACTIONS, 0)
    return {
        "insert_bytes": sum(r.ByteSize() for r in inserts) / stored,
        "payload_bytes": shard.counts().bytes / stored,
        "resident_bytes": shard.counts().resident_bytes / stored,
        "sample_bytes": sum(r.ByteSize() for r in replies) / (BATCH * len(replies)),
        "weights_bytes": sum(p.numel() * p.element_size() for p in network.parameters()),
    }


def fleet(c: Command, sizes: dict[str, float], actors: int) -> dict[str, float]:
    """Memory, network and shards that ``actors`` need, by the formulas of docs/sizing.md."""
    inserted, sampled = actors * c.steps, c.batch_size * c.updates
    nodes = ceil(actors / c.actors_per_node)
    return {
        "inserted, transitions/s": inserted,
        "into the shards, MB/s": inserted * sizes["insert_bytes"] / 1e6,
        "samples an insert": sampled / inserted,
        "shards by inserts alone": ceil(inserted / c.inserts),
        "shards, samples included": ceil(inserted / c.inserts + sampled / c.samples),
        "1M transitions are, s": 1e6 / inserted,
        "the last hour, million transitions": 3600 * inserted / 1e6,
        "the last hour, GB": 3600 * inserted * sizes["resident_bytes"] / 1e9,
        "nodes of actors": nodes,
        "weights to nodes, MB/s": nodes * sizes["weights_bytes"] * c.updates / c.publish_period / 1e6,
    }


def _short(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 or x == int(x) else f"{x:,.2g}"
