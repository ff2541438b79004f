"""The Ray actor of a replay shard. It does not import torch, which saves two seconds at its start."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import ray

from qfleet.cluster.metrics import RayMetrics
from qfleet.cluster.process import RunProcess
from replay.config import ReplayConfig, make_shard
from replay.security import Access
from replay.store.shard import Shard, random_generation
from replay.store.snapshots import Snapshots
from replay.wire.connection import ShardConnection
from replay.wire.drain import drain
from replay.wire.service import ShardServer
from replay.wire.writer import Writer
from rl.errors import RunFault
from rl.types import ObservationSpec


class ShardWorker(RunProcess):
    """One replay shard and its gRPC server, which listens on ``host`` ("": the address of this node).

    If the run makes snapshots, the shard writes them to ``directory``. It restores the last one if the run is
    ``resumed``, or if it is started in place of a shard that has failed, and reports what it has restored; otherwise it
    deletes what is there. ``old_port``: that of the failed shard, 0: there is none. Raises RunFault if all ports of
    `replay.ports` are taken.
    """

    def __init__(
        self,
        config: ReplayConfig,
        spec: ObservationSpec,
        seed: int,
        index: int,
        host: str,
        run: str,
        access: Access,
        directory: Path,
        resumed: bool,
        old_port: int,
    ) -> None:
        shard = make_shard(config, spec, seed * 1009 + index, limited=config.limiter.samples_per_insert > 0)
        host = host or ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        snapshots = _open_snapshots(config.snapshot_minutes, directory, shard, keep=resumed or old_port > 0)
        if snapshots is None:
            shard.generation = random_generation()  # with snapshots, these count the generations
        self._server = _serve(shard, host, old_port, config.port_range or range(0), access, snapshots)
        self._access, self._directory = access, directory if snapshots else None
        self._news = _describe(snapshots) if snapshots else ""  # message that the driver has not polled yet
        if snapshots and resumed and not self._news:
            self._news = f"found no snapshot in {directory} on {host}: it starts empty"
        if old_port:
            self._news = f"restarted at {self.address()}: {self._news or _describe_loss(config.snapshot_minutes)}"
        self._metrics = RayMetrics("shard", f"{run}/{index}")

    def address(self) -> str:
        """The host:port that the shard listens on."""
        return self._server.address

    def report(self) -> dict[str, Any]:
        """The shard's counts (`bytes`: compressed frames), and `news`: a new message for the user or ""."""
        counts = self._server.counts()
        names = ("inserted", "sampled", "stored", "bytes", "dropped_updates")
        values = {name: int(getattr(counts, name)) for name in names}
        self._metrics.report(values)
        news, self._news = self._news, ""
        return {"news": news, **values}

    def drain(self, addresses: list[str]) -> int:
        """Store nothing more, and move all items to the shards at ``addresses``; returns their number. Raises RunFault.

        Writers that still send segments send them to other shards, so none is lost that was acknowledged.
        """
        self._server.set_leaving(True)
        writer = Writer(addresses, access=self._access)
        connection = ShardConnection(self.address(), 60.0, self._access)
        try:
            return drain(connection, writer)
        finally:
            connection.channel.close()
            writer.close()

    def stay(self) -> None:
        """Store segments again, after a `drain` that has failed."""
        self._server.set_leaving(False)

    def remove(self) -> None:
        """Stop the server and delete the snapshots, so that a later shard with the same index starts empty.

        Raises TimeoutError, RunFault.
        """
        self._server.stop(timeout=60.0)
        if self._directory is not None:
            shutil.rmtree(self._directory)

    def stop(self) -> bool:
        """Stop the server and write the last snapshot; returns True. Raises TimeoutError, RunFault."""
        self._server.stop(timeout=60.0)
        return True


def _open_snapshots(minutes: float, directory: Path, shard: Shard, keep: bool) -> Snapshots | None:
    """The shard's snapshots, every ``minutes``; None if it makes none (0).

    Without ``keep``, what an earlier run of the same name has left in ``directory`` is deleted.
    """
    if minutes <= 0:
        return None
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)
    return Snapshots(directory, shard, minutes, set_aside=True)


def _describe_loss(minutes: float) -> str:
    """That a restarted shard is empty, and why, as a line for the user."""
    return f"its content is lost, it {'had no snapshot yet' if minutes > 0 else 'makes no snapshots'}"


def _describe(snapshots: Snapshots) -> str:
    """What the shard has restored, as a line for the user; "" if it found no snapshot."""
    if not snapshots.damage:
        return str(snapshots.restored or "")
    return f"{snapshots.restored or 'starts empty'}; {snapshots.damage}"


def _serve(
    shard: Shard, host: str, old_port: int, ports: range, access: Access, snapshots: Snapshots | None
) -> ShardServer:
    """Start the shard's server on ``old_port``, which its clients know, or the first free one of ``ports``.

    ``old_port`` 0: there is none; empty ``ports``: any free port. Raises RunFault if all ports are taken.
    """
    for port in filter(None, (old_port, *ports)):
        with contextlib.suppress(RuntimeError):  # another process uses the port
            return ShardServer(shard, host, port, access, snapshots=snapshots)
    if ports:
        raise RunFault(
            f"no port is free for a replay shard on the node {host}: all of `replay.ports` {ports[0]}-{ports[-1]} are "
            "taken; write a larger range"
        )
    return ShardServer(shard, host, access=access, snapshots=snapshots)
