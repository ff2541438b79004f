"""`TrainConfig`: the configurations of all components, and the rules that involve two of them."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import yaml

from actors.actor import ActorConfig
from learner.learner import LearnerConfig, check_cluster_device, pick_device
from protos.codec import MAX_STEPS
from qfleet.placement import PlacementConfig
from replay.config import ReplayConfig
from replay.importance_weights import BetaConfig
from replay.rate_limiter import RateLimiter
from replay.security import Access
from replay.store.shard import MAX_BATCH
from rl.bounds import as_written, at_least, between, positive
from rl.envs.config import ATARI_STACK, EnvConfig
from rl.envs.make import check_env, spec_and_actions
from rl.errors import BadInput, BadSetting, suggestion
from rl.evaluation import EvaluationConfig
from rl.exploration import ExplorationConfig
from rl.formats import KEY as FORMAT_KEY
from rl.formats import upgraded
from rl.networks import NetworkConfig, check_network
from rl.resuming import Rules, rules
from rl.returns import ReturnConfig

# Renamed fields of config.yaml, {old name: new name}; entry i holds those renamed after format i. Append new ones.
RENAMED = ({"learner.prefetch": "learner.batches_ahead"}, {"learner.batches_ahead": "replay.batches_ahead"})


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run. Raises BadSetting if it breaks a rule that involves two components."""

    env: EnvConfig = field(default_factory=EnvConfig)
    """Environment."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Network."""
    returns: ReturnConfig = field(default_factory=ReturnConfig)
    """Rewards, discount and n-step returns."""
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    """Exploration."""
    actors: ActorConfig = field(default_factory=ActorConfig)
    """Actors."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """Replay service."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    """Learner."""
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    """Nodes of a cluster."""
    beta: BetaConfig = field(default_factory=BetaConfig)
    """Exponent of the importance weights."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation."""
    seed: int = 1
    """Random seed."""
    max_steps: int = 2_000_000
    """Agent steps after which the run ends, solved or not."""
    max_updates: int = 0
    """Learner updates after which the run ends; 0: no limit."""
    ready_timeout: float = 180.0
    """Seconds for the start of the learner's process, then of the shards, then of the learner's networks, then of the
    first actor: each has as many. Raise it if the cluster must launch nodes first."""
    max_minutes: float = 0.0
    """Minutes of training after which the run ends; 0: no limit."""
    offline: str = ""
    """Train on this Minari dataset only, without actors: its id, or its directory (./NAME-v0)."""

    on_resume: ClassVar[Rules] = rules(
        may="max_steps max_updates ready_timeout max_minutes",
        stays="offline",
        seed="random numbers from here on come from the new seed",
    )

    def __post_init__(self) -> None:
        _check_finite(self, "")
        at_least(self, 1, "max_steps", unit="agent step")
        at_least(self, 0, "max_updates", unit="learner updates", zero="no limit")
        at_least(self, 0, "max_minutes", zero="no limit")
        positive(self, "ready_timeout", unit="seconds")
        between(self, 0, 2**31 - 1, "seed")
        if self.offline and not self.max_updates and not self.max_minutes:
            message = "needs a limit, because it makes no agent steps: write `max_updates` or `max_minutes`"
            raise BadSetting(type(self), "offline", message)
        self._check_batch()
        self._check_segments()
        self._check_ports()
        if bool(self.replay.security.certificate) != bool(self.replay.security.authority):
            raise BadSetting(
                type(self),
                "replay.security.certificate",
                "and `replay.security.authority` must be set together in a run: the shards present the certificate, and "
                "their clients check it against the authority; write both",
            )
        self.make_limiter()  # raises BadSetting

    def _check_batch(self) -> None:
        size, capacity = self.learner.batch_size, self.replay.capacity
        message = ""
        if size > MAX_BATCH:
            message = f"is {as_written(size)}: write at most {as_written(MAX_BATCH)}"
        elif size > capacity:
            most = as_written(capacity)
            message = f"is {as_written(size)}, above `replay.capacity` of {most}: write at most {most}"
        if message:
            raise BadSetting(type(self), "learner.batch_size", message)

    def _check_segments(self) -> None:
        # A segment also has the steps of its first stack's earlier frames.
        longest, most = self.max_segment_items, MAX_STEPS - (ATARI_STACK - 1)
        if longest > most:
            raise BadSetting(
                type(self),
                "actors.segment_items",
                f"is {as_written(self.actors.segment_items)}: write at most {most - self.returns.n_step + 1}, because a "
                f"segment may have at most {as_written(MAX_STEPS)} steps",
            )
        room = self.min_items_when_full(self.replay.shards)
        if self.replay.limiter.min_size > room:
            asked, capacity = as_written(self.replay.limiter.min_size), as_written(self.replay.capacity)
            raise BadSetting(
                type(self),
                "replay.limiter.min_size",
                f"is {asked}: with capacity {capacity} and segments of up to {longest} items, full shards may hold fewer; "
                f"write at most {as_written(max(room, 0))}",
            )

    def _check_ports(self) -> None:
        ports, shards = self.replay.port_range, self.replay.shards
        if ports and self.placement.shards == "learner" and len(ports) < shards:
            raise BadSetting(
                type(self),
                "replay.ports",
                f"is {as_written(self.replay.ports)}, {len(ports)} port(s) for {shards} shards on one node: write a larger "
                "range, or `placement.shards: spread` in a cluster",
            )

    @property
    def max_segment_items(self) -> int:
        """Items of the longest segment: an episode's last one also has n - 1 items that waited for later rewards."""
        return self.actors.segment_items + self.returns.n_step - 1

    def min_items_when_full(self, shards: int) -> int:
        """The least number of items that ``shards`` full shards hold: eviction removes whole segments."""
        return shards * (self.replay.shard_capacity - self.max_segment_items)

    @property
    def total_environments(self) -> int:
        """Environments of all wanted actors together."""
        return self.actors.count * self.actors.environments

    def make_limiter(self) -> RateLimiter:
        """A new samples-per-insert limiter for this run. Raises BadSetting if it could deadlock actors and learner."""
        c = self.replay
        return RateLimiter(c.limiter, self.max_segment_items, self.learner.batch_size, c.shards)


def with_shards(config: TrainConfig, shards: int) -> TrainConfig:
    """The configuration with ``shards`` replay shards, each as large as before. Raises BadInput if it is not valid."""
    c = config.replay
    capacity, memory = shards * c.shard_capacity, shards * c.shard_capacity_bytes
    try:
        replay = dataclasses.replace(c, shards=shards, capacity=capacity, capacity_bytes=memory)
        return dataclasses.replace(config, replay=replay)
    except BadSetting as error:
        raise BadInput(message_with_paths(error)) from error


def with_actors(config: TrainConfig, actors: int) -> TrainConfig:
    """The configuration with ``actors`` actors. Raises BadInput if it is not valid."""
    try:
        return dataclasses.replace(config, actors=dataclasses.replace(config.actors, count=actors))
    except BadSetting as error:
        raise BadInput(message_with_paths(error)) from error


def message_with_paths(error: BadInput) -> str:
    """The message of ``error``, with each setting as its path in config.yaml, such as replay.selector.alpha."""
    return error.render_in(TrainConfig, str) if isinstance(error, BadSetting) else str(error)


def _check_finite(config: Any, prefix: str) -> None:
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), prefix + f.name
        if dataclasses.is_dataclass(value):
            _check_finite(value, name + ".")
        elif isinstance(value, float) and not math.isfinite(value) and (name != "evaluation.goal" or value != math.inf):
            wanted = "a number, or inf for no goal" if name == "evaluation.goal" else "a finite number"
            raise BadSetting(TrainConfig, name, f"is {value}: write {wanted}")


def check_config(config: TrainConfig, in_cluster: bool = False) -> None:
    """Raise BadInput if ``config`` does not fit its environment or this machine. Starts nothing.

    ``in_cluster``: the learner runs on a node of a cluster, which may have devices that this machine lacks.
    """
    if in_cluster:
        check_cluster_device(config.learner.device)
    else:
        pick_device(config.learner.device)
    Access.load(config.replay.security)
    check_env(config.env)
    spec, _ = spec_and_actions(config.env)
    check_network(config.network, spec)
    if config.actors.precision == "bfloat16" and (spec.dtype != "uint8" or config.network.kind == "mlp"):
        raise BadSetting(
            TrainConfig,
            "actors.precision",
            f"bfloat16 is for convolutions of pixels, but {config.env.id} has {spec.dtype} observations and the network "
            f"is {config.network.kind}: write `actors.precision: float32`",
        )


def to_data(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain data (dicts, lists, numbers, strings) with the number of its format."""
    data: dict[str, Any] = json.loads(json.dumps({FORMAT_KEY: len(RENAMED), **dataclasses.asdict(config)}))
    return data


def from_data(data: Any, where: str) -> TrainConfig:
    """The configuration in ``data``, written by `to_data` in this format or an older one.

    Raises BadInput; its message starts with ``where``, the file that holds the data.
    """
    try:
        config = _build(TrainConfig, upgraded(data, RENAMED, where) if isinstance(data, Mapping) else data, where)
    except BadSetting as error:
        raise BadInput(f"{where}: {message_with_paths(error)}") from error
    except ValueError as error:
        raise BadInput(f"{where}: {error}") from error
    assert isinstance(config, TrainConfig)
    return config


def to_yaml(config: TrainConfig) -> str:
    """The configuration as the content of config.yaml."""
    return yaml.safe_dump(to_data(config), sort_keys=False)


def from_yaml(text: str, where: str) -> TrainConfig:
    """Inverse of `to_yaml`. Raises BadInput as `from_data` does."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    return from_data(data, where)


def _build(cls: type, data: Any, where: str) -> Any:
    """An instance of the dataclass ``cls`` from the mapping ``data``. Raises BadInput; ``where`` starts its message."""
    if not isinstance(data, Mapping):
        raise BadInput(f"{where}: expected a mapping of settings, found {data!r}")
    hints, own = typing.get_type_hints(cls), [f.name for f in dataclasses.fields(cls)]
    unknown = [k for k in data if k not in own]
    if unknown:
        raise BadInput(f"{where}: unknown setting {unknown[0]!r}: {suggestion(str(unknown[0]), own)}")
    return cls(**{name: _value(hints[name], value, f"{where}: {name}") for name, value in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the type annotation ``hint`` requires it. Raises BadInput; ``where`` starts its message."""
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    if isinstance(hint, types.UnionType):  # T | None
        return None if value is None else _value(typing.get_args(hint)[0], value, where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and not isinstance(value, list):
        raise BadInput(f"{where} is {value!r}: expected a list")
    if origin is tuple:
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise BadInput(f"{where} holds {value!r}: expected {len(inner)} values")
        return tuple(_value(h, v, where) for h, v in zip(inner, value, strict=True))
    if origin is typing.Literal:
        if value not in args:
            raise BadInput(f"{where} is {value!r}: {suggestion(str(value), map(str, args))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise BadInput(f"{where} is too large a number") from None
    if isinstance(hint, type) and type(value) is not hint:
        raise BadInput(f"{where} is {value!r}: expected {hint.__name__}")
    return value
