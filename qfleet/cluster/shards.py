"""The replay shards of a run: starts them, and changes their number during the run.

A new shard is added to the sampler first and to the writers second, so that its first items can be drawn. A shard is
removed in three steps: from the writers; then its content is moved to the other shards; then from the sampler. The
driver's loop advances a change step by step and never waits for it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray

from qfleet.cluster.faults import last_line
from qfleet.cluster.shard_worker import ShardWorker
from qfleet.config import TrainConfig, with_shards
from replay.security import Access
from rl.envs.make import spec_and_actions
from rl.errors import BadInput, RunFault

STEP_TIMEOUT = 120.0  # seconds for one step of a change, except a drain
DRAIN_TIMEOUT = 3600.0  # seconds for moving the content of a shard

remote: Any = ray.remote  # untyped, because Ray's handles have no typed methods


class ReplayShards:
    """Handles and addresses of a run's shards, by index.

        shards = ReplayShards(config, directory, access, local=True, resumed=False, options=placement.shard_options())
        shards.addresses = {i: ray.get(shards.start(i)) for i in range(config.replay.shards)}
        shards.scale(4)
        news = shards.advance(board, learner, actors)  # repeatedly, from the driver's loop

    ``local``: the run has started its own Ray, and did not join one. ``resumed``: it goes on from a checkpoint, so its
    shards report if they find no snapshot. ``options``: Ray's options of each shard, which say what it requests and where
    it is placed.
    """

    def __init__(
        self,
        config: TrainConfig,
        directory: Path,
        access: Access,
        local: bool,
        resumed: bool,
        options: Mapping[str, Any],
    ) -> None:
        self._config, self._directory, self.access, self._local = config, directory, access, local
        self._resumed, self._options = resumed, options
        self._spec, _ = spec_and_actions(config.env)
        self.handles: dict[int, Any] = {}
        self.addresses: dict[int, str] = {}
        self._news = ""  # message for the user about the last change
        self._change: Iterator[None] | None = None
        # None once there are so many: a shard that is lost later is not replaced.
        self._wanted: int | None = None

    def start(self, index: int) -> Any:
        """Start a shard; returns Ray's reference to its address (host:port), ready once the shard listens."""
        config = self._config
        max_restarts = -1 if config.replay.snapshot_minutes > 0 else 0  # without a snapshot it would restart empty
        options = dict(self._options)
        if self._local and index >= config.replay.shards:  # the local Ray has no CPU left for it
            options["num_cpus"] = 0
        self.handles[index] = (
            remote(ShardWorker)
            .options(
                name=f"shard-{index}",
                max_restarts=max_restarts,
                max_concurrency=2,  # so that it answers polls while it is drained
                **options,
            )
            .remote(
                config.replay,
                self._spec,
                config.seed,
                index,
                config.replay.host if self._local else "",
                self._directory.name,
                self.access,
                self._directory / "replay" / f"shard-{index}",
                self._resumed and index < config.replay.shards,  # later ones are added during the run
            )
        )
        return self.handles[index].address.remote()

    def forget(self, index: int) -> None:
        """Remove a shard that was lost or removed."""
        self.handles.pop(index, None)
        self.addresses.pop(index, None)

    def update_address(self, index: int, address: str, clients: list[Any]) -> None:
        """If shard ``index`` has a new address after a restart, send all addresses to ``clients``."""
        if index in self.addresses and self.addresses[index] != address:
            self.addresses[index] = address
            self._send_addresses(clients)

    def _send_addresses(self, clients: list[Any], without: int | None = None) -> list[Any]:
        """Send all addresses, except that of shard ``without``, to ``clients``; returns references to the calls."""
        addresses = [a for index, a in self.addresses.items() if index != without]
        return [client.set_shards.remote(addresses) for client in clients]

    @property
    def is_changing(self) -> bool:
        """Whether a shard is being added or removed."""
        return self._change is not None

    def scale(self, shards: int) -> None:
        """From now on, `advance` changes the number of shards to ``shards``."""
        self._wanted = shards

    def advance(self, board: Any, learner: Any, actors: list[Any]) -> str:
        """Advance towards the number of shards of `scale` by one step, without waiting.

        Returns a message for the user, or "". A change that fails is abandoned with a warning in the message.
        """
        self._news = ""
        try:
            if self._change is None:
                if self._wanted is None or self._wanted == len(self.addresses):
                    self._wanted = None
                    return ""
                self.with_shards(self._wanted)  # raises BadInput if the number is not valid
                change = self._add_shard if self._wanted > len(self.addresses) else self._remove_shard
                self._change = change(board, learner, actors)
            next(self._change)
        except StopIteration:
            self._change = None
        except (RunFault, BadInput, ray.exceptions.RayError) as error:
            self._change = self._wanted = None
            self._news = f"warning: the run keeps {len(self.addresses)} replay shard(s): {last_line(error)}"
        return self._news

    def with_shards(self, shards: int) -> TrainConfig:
        """The run's configuration with ``shards`` shards of the same size. Raises BadInput if it is not valid."""
        return with_shards(self._config, shards)

    def _needed(self) -> str:
        """What a new shard requests from Ray, and where, as text."""
        memory = self._options.get("memory", 0)
        where = "anywhere" if self._options.get("scheduling_strategy") == "SPREAD" else "on the learner's node"
        return f"1 CPU{f' and {memory / 1e9:.3g} GB of memory' if memory else ''} {where}"

    def _add_shard(self, board: Any, learner: Any, actors: list[Any]) -> Iterator[None]:
        index = next(i for i in range(len(self.handles) + 1) if i not in self.handles)
        call, handle = self.start(index), self.handles[index]
        try:
            yield from _until([call], STEP_TIMEOUT, f"shard-{index} to listen (it needs {self._needed()})")
            self.addresses[index] = ray.get(call)
        except (RunFault, ray.exceptions.RayError):
            ray.kill(handle)
            self.forget(index)
            raise
        yield from _until(self._send_addresses([board, learner]), STEP_TIMEOUT, f"the learner to add shard-{index}")
        yield from _until(self._send_addresses(actors), STEP_TIMEOUT, f"the actors to add shard-{index}")
        self._news = f"added replay shard-{index} at {self.addresses[index]}; the run has {len(self.addresses)} shards"

    def _remove_shard(self, board: Any, learner: Any, actors: list[Any]) -> Iterator[None]:
        index = max(self.addresses)
        handle = self.handles[index]
        rest = [a for i, a in self.addresses.items() if i != index]
        try:
            writers = self._send_addresses([board, *actors], index)
            yield from _until(writers, STEP_TIMEOUT, f"the actors to remove shard-{index}")
            call = handle.drain.remote(rest)
            yield from _until([call], DRAIN_TIMEOUT, f"shard-{index} to be drained")
            moved = ray.get(call)
        except (RunFault, ray.exceptions.RayError):
            self._send_addresses([board, *actors])  # keep the shard
            raise
        sampler = self._send_addresses([learner], index)
        yield from _until(sampler, STEP_TIMEOUT, f"the learner to remove shard-{index}")
        yield from _until([handle.remove.remote()], STEP_TIMEOUT, f"shard-{index} to end")
        ray.kill(handle)
        self.forget(index)
        self._news = (
            f"removed replay shard-{index}, moved its {moved:,} transitions; the run has {len(self.addresses)} shard(s)"
        )


def _until(calls: list[Any], timeout: float, what: str) -> Iterator[None]:
    """Yield until all calls have finished. Raises RunFault after ``timeout`` seconds; re-raises errors of the calls.

    ``what`` completes the message "waited 120 s for ...". The error of an actor that has died is ignored: when it
    restarts, it asks the board for the shards.
    """
    deadline = time.monotonic() + timeout
    while len(ray.wait(calls, num_returns=len(calls), timeout=0)[0]) < len(calls):
        if time.monotonic() > deadline:
            raise RunFault(f"waited {timeout:g} s for {what}")
        yield
    for call in calls:
        with contextlib.suppress(ray.exceptions.RayActorError):
            ray.get(call)
