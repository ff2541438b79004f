"""Configuration of the replay service."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

from replay.rate_limiter import LimiterConfig
from replay.security import SecurityConfig
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard, fixed_bytes
from rl.bounds import as_written, at_least, positive, require
from rl.errors import BadSetting
from rl.resuming import Rules, rules
from rl.types import ObservationSpec

MAX_PORT = 2**16 - 1
MAX_CAPACITY = 100_000_000  # transitions in a shard; rows and priorities alone then take 4 to 8 GB


def check_capacity_bytes(
    owner: type, capacity_bytes: int, capacity: int, shards: int, selector: SelectorConfig
) -> None:
    """Raise BadSetting of ``owner`` if ``capacity_bytes`` of all shards leaves no room for segments (0: unlimited)."""
    fixed = shards * fixed_bytes(capacity, selector)
    if capacity_bytes and capacity_bytes <= fixed:
        raise BadSetting(
            owner,
            "capacity_bytes",
            f"is {as_written(capacity_bytes)}: the rows and priorities of {as_written(shards * capacity)} transitions "
            f"alone take {as_written(fixed)} bytes; write more, or 0 for no limit, or a smaller `capacity`",
        )


@dataclass(frozen=True)
class ReplayConfig:
    """The replay service."""

    capacity: int = 200_000
    """Transitions that all shards together can hold; full shards evict the oldest."""
    capacity_bytes: int = 0
    """Memory limit in bytes for the content of all shards together: compressed frames, the data of each step and
    segment, and the rows and priorities of `capacity` transitions. Each process takes about 300 MB more. 0: no
    limit."""
    shards: int = 1
    """Number of replay shards. Each is a process; together they hold `capacity` transitions."""
    selector: SelectorConfig = field(default_factory=SelectorConfig)
    """How items are drawn."""
    limiter: LimiterConfig = field(default_factory=LimiterConfig)
    """The samples-per-insert limiter."""
    host: str = "127.0.0.1"
    """Address that shards listen on with a local Ray; in a cluster (--address), each listens on its node's address."""
    ports: str = ""
    """Ports that shards listen on, such as 50051-50082, for a firewall: each shard takes the first free one. By
    default any free port."""
    batches_ahead: int = 4
    """Batches that the learner requests before it needs them; serial mode requests each when it is needed."""
    give_up_after: float = 60.0
    """Seconds for which clients retry a shard that does not answer before they treat it as lost."""
    security: SecurityConfig = field(default_factory=SecurityConfig)
    """TLS, and the token that authenticates clients of the shards; without a token the run creates one."""
    snapshot_minutes: float = 0.0
    """Minutes between snapshots of each shard into the run's directory; 0: none. A resumed run and a restarted shard
    load them."""

    on_resume: ClassVar[Rules] = rules(
        may="host ports batches_ahead give_up_after snapshot_minutes",
        capacity="transitions restored from snapshots that do not fit are dropped, the oldest first",
        capacity_bytes="transitions restored from snapshots that do not fit are dropped, the oldest first",
        shards="added shards start empty; the content of removed shards is not restored",
    )

    def __post_init__(self) -> None:
        at_least(self, 1, "capacity", unit="transition")
        at_least(self, 1, "shards", unit="shard")
        at_least(self, 1, "batches_ahead", unit="batch")
        require(self.port_range is not None, self, "ports", f"a range such as 50051-50082, of ports up to {MAX_PORT}")
        most = f"at most {as_written(MAX_CAPACITY)} transitions per shard, or more `shards`"
        require(self.capacity <= MAX_CAPACITY * self.shards, self, "capacity", most)
        check_capacity_bytes(type(self), self.capacity_bytes, self.shard_capacity, self.shards, self.selector)
        positive(self, "give_up_after", unit="seconds")
        at_least(self, 0, "snapshot_minutes", zero="no snapshots")
        if self.limiter.min_size > self.capacity:
            asked, most = as_written(self.limiter.min_size), as_written(self.capacity)
            message = f"is {asked}, above `capacity` of {most}: write a smaller number"
            raise BadSetting(type(self), "limiter.min_size", message)

    @property
    def port_range(self) -> range | None:
        """The ports of `ports` in ascending order, an empty range if it is ""; None if it is not a valid range."""
        if not self.ports:
            return range(0)
        found = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", self.ports)
        ports = range(int(found[1]), int(found[2]) + 1) if found else range(0)
        return ports if ports and ports[0] >= 1 and ports[-1] <= MAX_PORT else None

    @property
    def shard_capacity(self) -> int:
        """Capacity of each shard in transitions, rounded up."""
        return -(-self.capacity // self.shards)

    @property
    def shard_capacity_bytes(self) -> int:
        """Bytes of memory for each shard's content; 0: unlimited."""
        return self.capacity_bytes // self.shards


def make_shard(config: ReplayConfig, spec: ObservationSpec, seed: int, limited: bool) -> Shard:
    """Create one of the configured shards, empty. With ``limited``, its inserts need credit."""
    return Shard(config.shard_capacity, spec, config.selector, limited, seed, config.shard_capacity_bytes)
