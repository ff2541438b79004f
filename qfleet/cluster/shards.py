"""The replay shards of a run: starts them, and changes their number while it goes on.

The sampler draws from a new shard before the writers know of it, so that its first items can be drawn. A shard leaves
in three steps: the writers leave it, its content moves into the others, the sampler leaves it. The driver's loop
advances a change step by step and never waits for it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from qfleet.cluster.faults import last_line
from qfleet.cluster.shard_worker import ShardWorker
from qfleet.config import TrainConfig, with_shards
from qfleet.run.directory import ScaleRequest
from replay.security import Access
from rl.envs.make import describe
from rl.errors import BadInput, RunFault

STEP_TIMEOUT = 120.0  # seconds that the parts may take for a step of a change; a drain may take DRAIN_TIMEOUT
DRAIN_TIMEOUT = 3600.0

remote: Any = ray.remote  # Ray's handles type no methods


class ReplayShards:
    """Handles and addresses of a run's shards, by index.

    Use:

        shards = ReplayShards(config, directory, access, local=True)
        shards.addresses = {i: ray.get(shards.start(i)) for i in range(config.replay.shards)}
        news = shards.advance(request, board, learner, actors)  # again and again, from the driver's loop
    """

    def __init__(self, config: TrainConfig, directory: Path, access: Access, local: bool) -> None:
        self._config, self._directory, self.access, self._local = config, directory, access, local
        self._spec, _ = describe(config.env)
        self.handles: dict[int, Any] = {}
        self.addresses: dict[int, str] = {}
        self.news = ""  # of the last change
        self._change: Iterator[None] | None = None
        # The last request that was granted or refused: a shard that is lost later is not replaced because of it.
        self._settled: ScaleRequest | None = None

    def start(self, index: int) -> Any:
        """Start a shard; returns Ray's reference to its address (host:port), ready once the shard listens."""
        config = self._config
        again = -1 if config.replay.snapshot_minutes > 0 else 0  # without a snapshot it would restart empty
        late = self._local and index >= config.replay.shards  # a Ray started here has no CPUs left
        self.handles[index] = (
            remote(ShardWorker)
            .options(
                name=f"shard-{index}",
                num_cpus=0 if late else 1,
                max_restarts=again,
                scheduling_strategy="SPREAD",
                max_concurrency=2,  # answers while it is drained
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
            )
        )
        return self.handles[index].address.remote()

    def lost(self, index: int) -> None:
        """Forget a shard that is gone for good."""
        self.handles.pop(index, None)
        self.addresses.pop(index, None)

    def moved(self, index: int, address: str, clients: list[Any]) -> None:
        """Tell all clients the address of a restarted shard, where it has changed."""
        if index in self.addresses and self.addresses[index] != address:
            self.addresses[index] = address
            self._tell(clients)

    def _tell(self, clients: list[Any], without: int | None = None) -> list[Any]:
        addresses = [a for index, a in self.addresses.items() if index != without]
        return [client.set_shards.remote(addresses) for client in clients]

    @property
    def changing(self) -> bool:
        """Whether a shard is joining or leaving."""
        return self._change is not None

    def advance(self, request: ScaleRequest | None, board: Any, learner: Any, actors: list[Any]) -> str:
        """Take one step towards the shards that ``request`` asks for, without waiting; returns news for the user or "".

        A change that fails is given up, with a warning in the news.
        """
        self.news = ""
        try:
            if self._change is None:
                if request is None or request == self._settled:
                    return ""
                if request["shards"] == len(self.addresses):
                    self._settled = request
                    return ""
                self.with_shards(request["shards"])
                more = request["shards"] > len(self.addresses)
                self._change = (self._join if more else self._leave)(board, learner, actors)
            next(self._change)
        except StopIteration:
            self._change = None
        except (RunFault, BadInput, ray.exceptions.RayError) as error:
            self._change, self._settled = None, request
            self.news = f"warning: the replay stays at {len(self.addresses)} shard(s): {last_line(error)}"
        return self.news

    def with_shards(self, shards: int) -> TrainConfig:
        """The configuration with ``shards`` shards of the same size. Raises BadInput where its rules forbid them."""
        return with_shards(self._config, shards)

    def _join(self, board: Any, learner: Any, actors: list[Any]) -> Iterator[None]:
        index = next(i for i in range(len(self.handles) + 1) if i not in self.handles)
        call, handle = self.start(index), self.handles[index]
        try:
            yield from _until([call], STEP_TIMEOUT, f"shard-{index} to listen: no node has a free CPU for it")
            self.addresses[index] = ray.get(call)
        except (RunFault, ray.exceptions.RayError):
            ray.kill(handle)
            self.lost(index)
            raise
        yield from _until(self._tell([board, learner]), STEP_TIMEOUT, "the learner to take another shard in")
        yield from _until(self._tell(actors), STEP_TIMEOUT, "the actors to take another shard in")
        self.news = f"replay shard-{index} at {self.addresses[index]} has joined: {len(self.addresses)} shards"

    def _leave(self, board: Any, learner: Any, actors: list[Any]) -> Iterator[None]:
        index = max(self.addresses)
        handle = self.handles[index]
        rest = [a for i, a in self.addresses.items() if i != index]
        try:
            yield from _until(self._tell([board, *actors], index), STEP_TIMEOUT, f"the actors to leave shard-{index}")
            call = handle.drain.remote(rest)
            yield from _until([call], DRAIN_TIMEOUT, f"shard-{index} to be drained")
            moved = ray.get(call)
        except (RunFault, ray.exceptions.RayError):
            self._tell([board, *actors])  # it stays
            raise
        yield from _until(self._tell([learner], index), STEP_TIMEOUT, f"the learner to leave shard-{index}")
        yield from _until([handle.leave.remote()], STEP_TIMEOUT, f"shard-{index} to end")
        ray.kill(handle)
        self.lost(index)
        self.news = f"replay shard-{index} has left, its {moved:,} transitions moved: {len(self.addresses)} shard(s)"


def _until(calls: list[Any], timeout: float, what: str) -> Iterator[None]:
    """Yield until all calls have ended. Raises RunFault after ``timeout`` seconds, and what a call raised.

    The error of an actor that has died is ignored: when it restarts, it asks the board for the shards.
    """
    deadline = time.monotonic() + timeout
    while len(ray.wait(calls, num_returns=len(calls), timeout=0)[0]) < len(calls):
        if time.monotonic() > deadline:
            raise RunFault(f"waited {timeout:g} s for {what}")
        yield
    for call in calls:
        with contextlib.suppress(ray.exceptions.RayActorError):
            ray.get(call)
