"""`qfleet replay export` and `import`: between a replay's content and a Minari dataset."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from protos.codec import pack_segment
from protos.types import InvalidMessage, ShardInfo
from qfleet.cli.flags import as_flags, parse
from qfleet.cli.shards import check_addresses
from qfleet.run.directory import CONFIG, RunDir
from replay.datasets.dataset import Dataset
from replay.datasets.episodes import episode_fragments
from replay.datasets.export import DatasetWriter
from replay.security import Access, SecurityConfig
from replay.store.shard import MAX_NAME_BYTES
from replay.store.snapshot_files import MANIFEST, open_snapshot
from replay.store.storage import StoredSegment
from replay.wire.connection import ShardConnection
from replay.wire.writer import Writer
from rl.bounds import at_least
from rl.envs.config import EnvConfig
from rl.envs.make import check_env, describe
from rl.envs.minari_files import dataset_path
from rl.errors import BadInput, RunFault
from rl.returns import ReturnConfig
from rl.types import ObservationSpec

SAY_EVERY = 5.0  # seconds between lines of progress
INFO_TIMEOUT, FLUSH_TIMEOUT = 10.0, 60.0


@dataclass(frozen=True)
class ExportCommand:
    """Write the episodes of a run's replay as a Minari dataset."""

    run: tyro.conf.Positional[str]
    """The run's directory, or the directory of one shard's snapshots."""
    to: str
    """The dataset: a Minari id such as qfleet/pong-v0, or a directory such as ./pong-v0."""
    env: str = ""
    """Gymnasium id of the environment that was played; a run knows its own."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""


@dataclass(frozen=True)
class ImportCommand:
    """Put the transitions of a Minari dataset into running shards."""

    dataset: tyro.conf.Positional[str]
    """The dataset: a Minari id such as qfleet/pong-v0, or a directory such as ./pong-v0."""
    to: tuple[str, ...]
    """host:port of each shard."""
    returns: ReturnConfig = field(default_factory=ReturnConfig)
    """Rewards to returns."""
    segment_items: int = 40
    """Transitions a segment."""
    security: SecurityConfig = field(default_factory=SecurityConfig)
    """TLS and the token."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        if not self.to:
            raise BadInput("--to names no shard: write host:port of one or more")
        check_addresses(self.to)
        at_least(self, 1, "segment_items")


class _Progress:
    """Prints a line to standard error, at most one in SAY_EVERY seconds."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, text: str) -> None:
        if time.monotonic() - self._said >= SAY_EVERY:
            self._said = time.monotonic()
            print(text, file=sys.stderr, flush=True)


def export_command(args: list[str]) -> int:
    """Run `qfleet replay export`; returns the exit status. Raises BadInput, RunFault."""
    c = parse(ExportCommand, args, prog="qfleet replay export")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # which removes a dataset that is half written
    env = _env_of(Path(c.run), c.env)
    spec, stored = _stored_in(Path(c.run))
    say = _Progress()
    if env is not None and describe(env)[0] != spec:
        raise BadInput(f"{c.run} holds observations of {spec}, {env.id} gives {describe(env)[0]}: write another --env")
    dataset_path(c.to)
    segments = _all_of(stored, say)
    actions = describe(env)[1] if env is not None else 1 + max(int(stored.segment.actions.max()) for stored in segments)
    try:
        with DatasetWriter(c.to, spec, actions, env) as writer:
            for fragment in episode_fragments(segments, spec):
                writer.append(fragment)
                say(f"{writer.episodes:,} episodes, {writer.steps:,} steps written")
    except InvalidMessage as error:
        raise BadInput(f"{c.run} holds a damaged segment: {error}") from error
    except OSError as error:
        raise RunFault(f"dataset {c.to} could not be written: {error}") from error
    size = writer.bytes
    print(f"{c.to}: {writer.episodes:,} episodes, {writer.steps:,} steps, {size / 1e6:,.1f} MB in {writer.path}")
    if c.json:
        figures = {"episodes": writer.episodes, "steps": writer.steps, "bytes": size, "path": str(writer.path)}
        print(json.dumps(figures))
    return 0


def _env_of(run: Path, named: str) -> EnvConfig | None:
    """The environment that was played: ``named``, or that of the run's configuration; None where there is neither."""
    if named:
        env = EnvConfig(id=named)
        with as_flags(ExportCommand, {EnvConfig: {"id": "env"}}):
            check_env(env)
        return env
    return RunDir.open(run).config().env if (run / CONFIG).is_file() else None


def _stored_in(run: Path) -> tuple[ObservationSpec, list[Iterator[StoredSegment]]]:
    """The observations' spec, and the segments of every shard of a run, or of one shard. Raises BadInput."""
    shards = [run] if (run / MANIFEST).is_file() else sorted((run / "replay").glob("shard-*"))
    if not shards:
        raise BadInput(
            f"{run} holds no snapshot of a replay: write a run that was given --replay.snapshot-minutes, or the --snapshots "
            "of a shard"
        )
    specs, stored = zip(*(open_snapshot(shard) for shard in shards), strict=True)
    for shard, spec in zip(shards, specs, strict=True):
        if spec != specs[0]:
            raise BadInput(f"{shard} is of other observations than {shards[0]}: write the directory of one run")
    return specs[0], list(stored)


def _all_of(stored: list[Iterator[StoredSegment]], say: _Progress) -> list[StoredSegment]:
    """Every segment, compressed as it was stored. Raises BadInput when there is none."""
    segments: list[StoredSegment] = []
    for own in stored:
        for segment in own:
            segments.append(segment)
            say(f"{len(segments):,} segments read")
    if not segments:
        raise BadInput("the snapshot is empty: write one of a replay that holds transitions")
    return segments


def origin_of(dataset: str) -> str:
    """The writer's name that a dataset's segments are stored under: the end of its name, at most MAX_NAME_BYTES bytes."""
    return dataset.encode(errors="replace")[-MAX_NAME_BYTES:].decode(errors="ignore")


def _info(address: str, access: Access) -> ShardInfo:
    connection = ShardConnection(address, INFO_TIMEOUT, access)
    try:
        return connection.info(INFO_TIMEOUT)
    except RunFault as fault:
        raise BadInput(f"no replay shard answers at {address}: {fault}; write host:port of one that runs") from fault
    finally:
        connection.channel.close()


def import_command(args: list[str]) -> int:
    """Run `qfleet replay import`; returns the exit status. Raises BadInput, RunFault."""
    c = parse(ImportCommand, args, prog="qfleet replay import")
    dataset = Dataset(c.dataset)
    access = Access.of(c.security)
    infos = [_info(address, access) for address in c.to]
    specs = [info.spec for info in infos]
    for address, spec in zip(c.to, specs, strict=True):
        if spec != specs[0]:
            raise BadInput(f"--to: {address} stores other observations than {c.to[0]}: write shards of one kind")
    if dataset.spec(specs[0], f"the shard at {c.to[0]}") != specs[0]:
        shape = " ".join(map(str, dataset.shape))
        raise BadInput(f"dataset {c.dataset} has whole stacks: start the shards with --frame-shape {shape} --stack 1")
    capacity = sum(i.capacity for i in infos)
    if dataset.steps > capacity:
        print(f"warning: {dataset.steps:,} steps for shards of {capacity:,}: the first ones will go", file=sys.stderr)
    done = {"items": 0, "segments": 0}
    say, writer = _Progress(), Writer(list(c.to), access=access)
    try:
        for segment in dataset.segments(specs[0], c.returns, c.segment_items):
            writer.transfer(pack_segment(segment), origin_of(dataset.name))
            done["segments"] += 1
            done["items"] += segment.items
            say(f"{done['items']:,} of at most {dataset.steps:,} transitions written")
        writer.flush(FLUSH_TIMEOUT)
    except TimeoutError as error:
        raise RunFault(str(error)) from error
    finally:
        writer.close()
    print(f"{done['items']:,} transitions of {dataset.episodes:,} episodes into {', '.join(c.to)}")
    if c.json:
        print(json.dumps({**done, "episodes": dataset.episodes, "shards": list(c.to)}))
    return 0
