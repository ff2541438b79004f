"""The Ray actor of a replay shard. It does not import torch, which saves two seconds at its start."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import ray

from qfleet.cluster.metrics import RayMetrics
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


class ShardWorker:
    """One replay shard and its gRPC server, which listens on ``host`` ("": the address of this node).

    If the run makes snapshots, the shard writes them to ``directory``. After a restart by Ray, and with ``resumed``, it
    restores the last one, and with ``resumed`` it reports if there is none; otherwise it deletes what is there. Raises
    RunFault if all ports of `replay.ports` are taken.
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
    ) -> None:
        shard = make_shard(config, spec, seed * 1009 + index, limited=config.limiter.samples_per_insert > 0)
        host = host or ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        restarted = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        snapshots = _open_snapshots(config.snapshot_minutes, directory, shard, keep=resumed or restarted)
        if snapshots is None:
            shard.generation = random_generation()  # with snapshots, these count the generations
        self._server = _serve(shard, host, config.port_range or range(0), access, snapshots, restarted)
        self._access, self._directory = access, directory if snapshots else None
        self._news = _describe(snapshots) if snapshots else ""  # message that the driver has not polled yet
        if snapshots and resumed and not self._news:
            self._news = f"found no snapshot in {directory} on {host}: it starts empty"
        if restarted:
            self._news = f"restarted at {self.address()}: {self._news or 'its content is lost, it had no snapshot yet'}"
        self._metrics = RayMetrics("shard", f"{run}/{index}")

    def address(self) -> str:
        """The host:port that the shard listens on."""
        return self._server.address

    def poll(self) -> dict[str, Any]:
        """The shard's counts (`bytes`: compressed frames), its address, and `news`: a new message for the user or ""."""
        counts = self._server.counts()
        names = ("inserted", "sampled", "stored", "bytes", "dropped_updates")
        values = {name: int(getattr(counts, name)) for name in names}
        self._metrics.report(values)
        news, self._news = self._news, ""
        return {"failure": None, "news": news, "address": self.address(), **values}

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


def _describe(snapshots: Snapshots) -> str:
    """What the shard has restored, as a line for the user; "" if it found no snapshot."""
    if not snapshots.damage:
        return str(snapshots.restored or "")
    return f"{snapshots.restored or 'starts empty'}; {snapshots.damage}"


def _serve(
    shard: Shard, host: str, ports: range, access: Access, snapshots: Snapshots | None, restarted: bool
) -> ShardServer:
    """Start the shard's server on the first free one of ``ports`` (empty: any free port).

    After a restart, its old port, which its clients know, is tried first. Raises RunFault if all ports are taken.
    """
    file = snapshots.directory / "port" if snapshots else None
    old = [int(file.read_text())] if restarted and file is not None and file.is_file() else []
    server = None
    for port in (*old, *ports):
        with contextlib.suppress(RuntimeError):  # another process uses the port
            server = ShardServer(shard, host, port, access, snapshots=snapshots)
            break
    if server is None and ports:
        raise RunFault(
            f"no port is free for a replay shard on the node {host}: all of `replay.ports` {ports[0]}-{ports[-1]} are "
            "taken; write a larger range"
        )
    server = server or ShardServer(shard, host, access=access, snapshots=snapshots)
    if file is not None:
        file.write_text(str(server.port))
    return server
