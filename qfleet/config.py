"""The whole configuration: every component's own, composed, and the rules that span two of them."""

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
from learner.learner import LearnerConfig, pick_device
from protos.codec import MAX_STEPS
from replay.config import ReplayConfig
from replay.importance_weights import BetaConfig
from replay.rate_limiter import RateLimiter
from replay.security import Access
from replay.store.shard import MAX_BATCH
from rl.bounds import at_least, between, positive
from rl.envs.config import ATARI_STACK, EnvConfig
from rl.envs.make import check_env, describe
from rl.errors import BadInput, BadSetting, nearest
from rl.evaluation import EvaluationConfig
from rl.exploration import ExplorationConfig
from rl.formats import KEY as FORMAT_KEY
from rl.formats import upgraded
from rl.networks import NetworkConfig, check_network
from rl.resuming import Rules, rules
from rl.returns import ReturnConfig

# {old name: new name} of the fields of config.yaml that were renamed after format 0, 1, ...: add a renamed field here.
RENAMED = ({"learner.prefetch": "learner.batches_ahead"}, {"learner.batches_ahead": "replay.batches_ahead"})


@dataclass(frozen=True)
class TrainConfig:
    """The whole configuration of a training run. Raises BadSetting where a rule that spans two components is broken."""

    env: EnvConfig = field(default_factory=EnvConfig)
    """Environment."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Network."""
    returns: ReturnConfig = field(default_factory=ReturnConfig)
    """Rewards to returns."""
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    """Exploration."""
    actors: ActorConfig = field(default_factory=ActorConfig)
    """Actors."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """Replay service."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    """Learner."""
    beta: BetaConfig = field(default_factory=BetaConfig)
    """Importance weights' exponent."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation."""
    seed: int = 1
    """Seed of everything that draws."""
    max_steps: int = 2_000_000
    """Agent steps after which the run ends, solved or not."""
    max_updates: int = 0
    """Learner updates after which the run ends; 0: no limit."""
    ready_timeout: float = 180.0
    """Seconds in which the shards, then the learner, then the actors must stand; more where nodes are launched first."""
    max_minutes: float = 0.0
    """Minutes of training after which the run ends; 0: no limit."""
    offline: str = ""
    """Learn from this Minari dataset alone, with no actor: its id, or its directory (./NAME-v0)."""

    on_resume: ClassVar[Rules] = rules(
        may="max_steps max_updates ready_timeout max_minutes",
        stays="offline",
        seed="what is drawn from here on is of the new seed",
    )

    def __post_init__(self) -> None:
        _check_finite(self, "")
        at_least(self, 1, "max_steps", unit="agent step")
        at_least(self, 0, "max_updates", unit="learner updates", zero="no limit")
        at_least(self, 0, "max_minutes", zero="no limit")
        positive(self, "ready_timeout", unit="seconds")
        between(self, 0, 2**31 - 1, "seed")
        if self.offline and not self.max_updates and not self.max_minutes:
            said = "makes no agent steps that could end the run: write `max_updates` or `max_minutes`"
            raise BadSetting(type(self), "offline", said)
        self._check_batch()
        self._check_segments()
        if bool(self.replay.security.certificate) != bool(self.replay.security.authority):
            raise BadSetting(
                type(self),
                "replay.security.certificate",
                "and `replay.security.authority` go together in a run: the shards show the one, their clients check it by "
                "the other; write both",
            )
        self.limiter()

    def _check_batch(self) -> None:
        size, capacity = self.learner.batch_size, self.replay.capacity
        said = ""
        if size > MAX_BATCH:
            said = f"is {size}: write at most {MAX_BATCH}"
        elif size > capacity:
            said = f"is {size}, above `replay.capacity` of {capacity}: write at most {capacity}"
        if said:
            raise BadSetting(type(self), "learner.batch_size", said)

    def _check_segments(self) -> None:
        longest, most = self.max_segment_items, MAX_STEPS - (ATARI_STACK - 1)  # a segment also has earlier frames
        if longest > most:
            raise BadSetting(
                type(self),
                "actors.segment_items",
                f"is {self.actors.segment_items}: write at most {most - self.returns.n_step + 1}, as a segment has up to "
                f"{MAX_STEPS} steps",
            )
        room = self.surely_stored(self.replay.shards)
        if self.replay.limiter.min_size > room:
            raise BadSetting(
                type(self),
                "replay.limiter.min_size",
                f"is {self.replay.limiter.min_size}: with capacity {self.replay.capacity} and segments of up to {longest} "
                f"items that many are never sure to be stored; write at most {max(room, 0)}",
            )

    @property
    def max_segment_items(self) -> int:
        """Items of the longest segment: an episode's last one also has the n - 1 steps that waited for their return."""
        return self.actors.segment_items + self.returns.n_step - 1

    def surely_stored(self, shards: int) -> int:
        """Items that ``shards`` full shards hold at least, as eviction removes whole segments."""
        return shards * (self.replay.shard_capacity - self.max_segment_items)

    @property
    def fleet_environments(self) -> int:
        """Environments of all actors together."""
        return self.actors.count * self.actors.environments

    def limiter(self) -> RateLimiter:
        """The samples-per-insert limiter of this run; raises BadInput when it could never be satisfied."""
        c = self.replay
        return RateLimiter(c.limiter, self.max_segment_items, self.learner.batch_size, c.shards)


def resized(config: TrainConfig, shards: int) -> TrainConfig:
    """The configuration with ``shards`` replay shards, each as large as before. Raises BadInput where not valid."""
    c = config.replay
    capacity, memory = shards * c.shard_capacity, shards * c.shard_capacity_bytes
    try:
        replay = dataclasses.replace(c, shards=shards, capacity=capacity, capacity_bytes=memory)
        return dataclasses.replace(config, replay=replay)
    except BadSetting as error:
        raise BadInput(dotted(error)) from error


def dotted(error: BadInput) -> str:
    """The message of ``error``, with a setting by its path in config.yaml, such as `replay.selector.alpha`."""
    return error.render_in(TrainConfig, str) if isinstance(error, BadSetting) else str(error)


def _check_finite(config: Any, prefix: str) -> None:
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), prefix + f.name
        if dataclasses.is_dataclass(value):
            _check_finite(value, name + ".")
        elif isinstance(value, float) and not math.isfinite(value) and (name != "evaluation.goal" or math.isnan(value)):
            raise BadSetting(TrainConfig, name, f"is {value}: write a finite number")


def check(config: TrainConfig) -> None:
    """Raise BadInput where the environment, or this machine, does not allow ``config``; nothing is started."""
    pick_device(config.learner.device)
    Access.of(config.replay.security)
    check_env(config.env)
    spec, _ = describe(config.env)
    check_network(config.network, spec)
    if config.actors.precision == "bfloat16" and (spec.dtype != "uint8" or config.network.kind == "mlp"):
        raise BadSetting(
            TrainConfig,
            "actors.precision",
            f"bfloat16 is for convolutions of pixels, {config.env.id} gives {spec.dtype} to a {config.network.kind} "
            "network: write `actors.precision: float32`",
        )


def to_data(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain data (dicts, lists, numbers, strings), with its format number."""
    data: dict[str, Any] = json.loads(json.dumps({FORMAT_KEY: len(RENAMED), **dataclasses.asdict(config)}))
    return data


def from_data(data: Any, where: str) -> TrainConfig:
    """The configuration that `to_data` wrote, in this format or an older one. Raises BadInput that names ``where``."""
    try:
        config = _build(TrainConfig, upgraded(data, RENAMED, where) if isinstance(data, Mapping) else data, where)
    except BadSetting as error:
        raise BadInput(f"{where}: {dotted(error)}") from error
    except ValueError as error:
        raise BadInput(f"{where}: {error}") from error
    assert isinstance(config, TrainConfig)
    return config


def to_yaml(config: TrainConfig) -> str:
    """The content of config.yaml."""
    return yaml.safe_dump(to_data(config), sort_keys=False)


def from_yaml(text: str, where: str) -> TrainConfig:
    """Inverse of `to_yaml`. Raises BadInput as `from_data` does."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    return from_data(data, where)


def _build(cls: type, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise BadInput(f"{where}: expected a mapping of settings, found {data!r}")
    hints, own = typing.get_type_hints(cls), [f.name for f in dataclasses.fields(cls)]
    unknown = [k for k in data if k not in own]
    if unknown:
        raise BadInput(f"{where}: unknown setting {unknown[0]!r}: {nearest(str(unknown[0]), own)}")
    return cls(**{name: _value(hints[name], value, f"{where}: {name}") for name, value in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
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
            raise BadInput(f"{where} is {value!r}: {nearest(str(value), map(str, args))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise BadInput(f"{where} is too large a number") from None
    if isinstance(hint, type) and type(value) is not hint:
        raise BadInput(f"{where} is {value!r}: expected {hint.__name__}")
    return value
