"""`qfleet replay export` and `import`: convert between replay content and Minari datasets."""

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
from qfleet.cli.flags import errors_name_flags, parse
from qfleet.cli.shards import check_addresses
from qfleet.run.directory import CONFIG, RunDir
from qfleet.run.remote import is_url, local_path
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
from rl.envs.make import check_env, spec_and_actions
from rl.envs.minari_files import dataset_path
from rl.errors import BadInput, RunFault
from rl.returns import ReturnConfig
from rl.types import ObservationSpec

PROGRESS_PERIOD = 5.0  # seconds between progress lines
INFO_TIMEOUT, FLUSH_TIMEOUT = 10.0, 60.0  # seconds


@dataclass(frozen=True)
class ExportCommand:
    """Write the episodes in the replay snapshots of a run as a Minari dataset."""

    run: tyro.conf.Positional[str]
    """Directory of the run, or of one shard's snapshots."""
    to: str
    """The dataset: a Minari id such as qfleet/pong-v0, or a directory such as ./pong-v0."""
    env: str = ""
    """Gymnasium id of the environment in which the episodes were played; needed only if RUN is a shard's directory."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""


@dataclass(frozen=True)
class ImportCommand:
    """Insert the transitions of a Minari dataset into running shards."""

    dataset: tyro.conf.Positional[str]
    """The dataset: a Minari id such as qfleet/pong-v0, or a directory such as ./pong-v0."""
    to: tuple[str, ...]
    """host:port of each shard."""
    returns: ReturnConfig = field(default_factory=ReturnConfig)
    """Rewards, discount and n-step returns."""
    segment_items: int = 40
    """Transitions per segment."""
    security: SecurityConfig = field(default_factory=SecurityConfig)
    """TLS, and the token that authenticates clients."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        if not self.to:
            raise BadInput("--to is empty: write host:port of one or more shards")
        check_addresses(self.to)
        at_least(self, 1, "segment_items")


class _Progress:
    """Prints progress lines to standard error, at most one in PROGRESS_PERIOD seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, text: str) -> None:
        if time.monotonic() - self._last >= PROGRESS_PERIOD:
            self._last = time.monotonic()
            print(text, file=sys.stderr, flush=True)


def export_command(args: list[str]) -> int:
    """Run `qfleet replay export`; returns the exit status. Raises BadInput, RunFault."""
    c = parse(ExportCommand, args, prog="qfleet replay export")
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit(143)
    )  # DatasetWriter then removes the incomplete dataset
    if is_url(c.run):
        raise BadInput(f"{c.run} holds no replay snapshot, as no run at a URL does: write the directory of a run")
    run = local_path(c.run)
    env = _played_env(run, c.env)
    spec, stored = _stored_shards(run)
    progress = _Progress()
    if env is not None and spec_and_actions(env)[0] != spec:
        raise BadInput(
            f"{c.run} holds observations of {spec}, but {env.id} gives {spec_and_actions(env)[0]}: write another --env"
        )
    dataset_path(c.to)
    segments = _read_all(stored, progress)
    actions = (
        spec_and_actions(env)[1]
        if env is not None
        else 1 + max(int(stored.segment.actions.max()) for stored in segments)
    )
    try:
        with DatasetWriter(c.to, spec, actions, env) as writer:
            for fragment in episode_fragments(segments, spec):
                writer.append(fragment)
                progress(f"{writer.episodes:,} episodes, {writer.steps:,} steps written")
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


def _played_env(run: Path, env_id: str) -> EnvConfig | None:
    """The environment of the episodes: ``env_id``, else that of the run's configuration; None if there is neither."""
    if env_id:
        env = EnvConfig(id=env_id)
        with errors_name_flags(ExportCommand, {EnvConfig: {"id": "env"}}):
            check_env(env)
        return env
    return RunDir.open(run).config().env if (run / CONFIG).is_file() else None


def _stored_shards(run: Path) -> tuple[ObservationSpec, list[Iterator[StoredSegment]]]:
    """The observation spec, and an iterator over the stored segments of each shard of ``run`` (a run, or one shard).

    Raises BadInput if there is no snapshot, or if the shards store different observations.
    """
    shards = [run] if (run / MANIFEST).is_file() else sorted((run / "replay").glob("shard-*"))
    if not shards:
        raise BadInput(
            f"{run} holds no replay snapshot: write a run that was trained with --replay.snapshot-minutes, or the "
            "--snapshots directory of a shard"
        )
    specs, stored = zip(*(open_snapshot(shard) for shard in shards), strict=True)
    for shard, spec in zip(shards, specs, strict=True):
        if spec != specs[0]:
            raise BadInput(f"{shard} stores other observations than {shards[0]}: write the directory of one run")
    return specs[0], list(stored)


def _read_all(stored: list[Iterator[StoredSegment]], progress: _Progress) -> list[StoredSegment]:
    """All segments, compressed as they are stored. Raises BadInput if there are none."""
    segments: list[StoredSegment] = []
    for shard in stored:
        for segment in shard:
            segments.append(segment)
            progress(f"{len(segments):,} segments read")
    if not segments:
        raise BadInput("the snapshot holds no transitions: write a run or shard whose snapshot holds some")
    return segments


def writer_name(dataset: str) -> str:
    """The writer id under which a dataset's segments are stored: the last MAX_NAME_BYTES bytes of the dataset's name."""
    return dataset.encode(errors="replace")[-MAX_NAME_BYTES:].decode(errors="ignore")


def _info(address: str, access: Access) -> ShardInfo:
    """The info of the shard at ``address``. Raises BadInput if it does not answer."""
    connection = ShardConnection(address, INFO_TIMEOUT, access)
    try:
        return connection.info(INFO_TIMEOUT)
    except RunFault as fault:
        raise BadInput(f"no replay shard answers at {address}: {fault}; write host:port of a running shard") from fault
    finally:
        connection.channel.close()


def import_command(args: list[str]) -> int:
    """Run `qfleet replay import`; returns the exit status. Raises BadInput, RunFault."""
    c = parse(ImportCommand, args, prog="qfleet replay import")
    dataset = Dataset(c.dataset)
    access = Access.load(c.security)
    infos = [_info(address, access) for address in c.to]
    specs = [info.spec for info in infos]
    for address, spec in zip(c.to, specs, strict=True):
        if spec != specs[0]:
            raise BadInput(f"--to: {address} stores other observations than {c.to[0]}: write shards of the same kind")
    if dataset.spec(specs[0], f"the shard at {c.to[0]}") != specs[0]:
        shape = " ".join(map(str, dataset.shape))
        raise BadInput(
            f"dataset {c.dataset} stores whole stacks of frames: start the shards with --frame-shape {shape} --stack 1"
        )
    capacity = sum(i.capacity for i in infos)
    if dataset.steps > capacity:
        print(
            f"warning: the shards hold {capacity:,} of the dataset's {dataset.steps:,} steps, and evict the first ones",
            file=sys.stderr,
        )
    done = {"items": 0, "segments": 0}
    progress, writer = _Progress(), Writer(list(c.to), access=access)
    try:
        for segment in dataset.segments(specs[0], c.returns, c.segment_items):
            writer.transfer(pack_segment(segment), writer_name(dataset.name))
            done["segments"] += 1
            done["items"] += segment.items
            progress(f"{done['items']:,} of at most {dataset.steps:,} transitions inserted")
        writer.flush(FLUSH_TIMEOUT)
    except TimeoutError as error:
        raise RunFault(str(error)) from error
    finally:
        writer.close()
    print(f"inserted {done['items']:,} transitions of {dataset.episodes:,} episodes into {', '.join(c.to)}")
    if c.json:
        print(json.dumps({**done, "episodes": dataset.episodes, "shards": list(c.to)}))
    return 0
