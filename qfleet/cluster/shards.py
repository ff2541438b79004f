"""The replay shards of a run: starts them, and changes their number during the run.

A new shard is added to the sampler first and to the writers second, so that its first items can be drawn. A shard is
removed in three steps: it stores nothing more, so that the writers leave it; then its content is moved to the other
shards; then the sampler leaves it. The driver's loop advances a change step by step and never waits for it.

The actors get the addresses of the shards with each poll (`ShardsView`): one that misses a change, because its network
is interrupted, learns of it when it answers again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray

from qfleet.cluster.board import ShardsView
from qfleet.cluster.faults import DIED, last_line
from qfleet.cluster.fleet import ActorFleet
from qfleet.cluster.process import is_ready
from qfleet.cluster.restarts import Restarts
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

        options = placement.shard_options
        shards = ReplayShards(config, directory, access, local=True, resumed=False, options=options, restarts=restarts)
        shards.addresses = {i: ray.get(shards.start(i)) for i in range(config.replay.shards)}
        shards.scale(4)
        news = shards.advance(board, learner, fleet)  # repeatedly, from the driver's loop
        shards.failed("shard-0", error)
        shards.restart(board, learner)  # repeatedly, too

    ``local``: the run has started its own Ray, and did not join one. ``resumed``: it goes on from a checkpoint, so its
    shards report if they find no snapshot. ``options`` returns Ray's options of each shard, which say what it requests and
    where it is placed. ``restarts``: the failures of the run's processes.
    """

    def __init__(
        self,
        config: TrainConfig,
        directory: Path,
        access: Access,
        local: bool,
        resumed: bool,
        options: Callable[[], Mapping[str, Any]],
        restarts: Restarts,
    ) -> None:
        self._config, self._directory, self.access, self._local = config, directory, access, local
        self._resumed, self._options, self._restarts = resumed, options, restarts
        self._spec, _ = spec_and_actions(config.env)
        self.handles: dict[int, Any] = {}
        self.addresses: dict[int, str] = {}
        self._version = 0  # of `view`
        self._apart: int | None = None  # the shard that joins or leaves: the sampler has it, the writers do not
        self._writers: dict[str, tuple[int, list[str]]] = {}  # by actor: version and addresses of its last answer
        self._silent: dict[str, set[str]] = {}  # by actor: addresses of shards that do not answer it
        self._news = ""  # message for the user about the last change
        self._change: Iterator[None] | None = None
        self._wanted: int | None = None  # None once there are so many
        self._restarting: dict[int, Any] = {}  # shards that have failed; None: it is not started again yet

    def start(self, index: int, added: bool = False, restarted: bool = False) -> Any:
        """Start a shard; returns Ray's reference to its address (host:port), ready once the shard listens.

        ``added``: during the run, not at its start, so that it has no snapshot to restore. ``restarted``: in place of
        one that has failed. Raises ValueError while Ray still knows an earlier one.
        """
        config = self._config
        options = dict(self._options())
        if self._local and index >= config.replay.shards:  # the local Ray has no CPU left for it
            options["num_cpus"] = 0
        self.handles[index] = (
            remote(ShardWorker)
            .options(
                name=f"shard-{index}",
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
                self._resumed and not added,
                int(self.addresses[index].rpartition(":")[2]) if restarted else 0,
            )
        )
        return self.handles[index].address.remote()

    def _forget(self, index: int) -> None:
        """Remove a shard that was removed, or could not be added."""
        self.handles.pop(index, None)
        self.addresses.pop(index, None)
        self._restarts.forget(f"shard-{index}")

    def workers(self) -> list[tuple[str, Any]]:
        """(name, handle) of every shard that is not being started again."""
        return [(f"shard-{i}", handle) for i, handle in self.handles.items() if i not in self._restarting]

    @property
    def starting(self) -> dict[str, Any]:
        """Handles of the shards that are being started again, by name."""
        return {f"shard-{i}": self.handles[i] for i, call in self._restarting.items() if call is not None}

    def failed(self, name: str, error: Exception) -> None:
        """Shard ``name`` has failed with ``error``: it is started again. One that is being added is left to `advance`."""
        index = int(name.removeprefix("shard-"))
        if index in self.addresses:
            self._restarting[index] = None
            self._restarts.failed(name, error, time.monotonic())

    def restart(self, board: Any, learner: Any) -> None:
        """Start the shards again that have failed, without waiting. All clients get the address of one that listens.

        Raises RunFault if one is given up.
        """
        for index, call in list(self._restarting.items()):
            name = f"shard-{index}"
            if index not in self.addresses:  # removed meanwhile
                del self._restarting[index]
            elif call is None:
                self._request_again(index, name)
            elif is_ready(call):
                try:
                    self.addresses[index] = ray.get(call)
                except ray.exceptions.ActorUnavailableError:  # the network is interrupted
                    self._restarting[index] = self.handles[index].address.remote()
                    continue
                except ray.exceptions.RayError as error:
                    self.failed(name, error)
                    continue
                del self._restarting[index]
                self._restarts.started(name, time.monotonic())
                self.tell(board, learner)

    def _request_again(self, index: int, name: str) -> None:
        if self._restarts.given_up(name):
            raise RunFault(self._restarts.describe_last(name))
        if name not in self._restarts.waiting(time.monotonic()):
            ray.kill(self.handles[index])  # it may still live, and Ray would keep its name
            try:
                self._restarting[index] = self.start(index, restarted=True)
            except ValueError:  # Ray still knows the name: the next call tries again
                pass
            except BadInput:  # no node suits the learner now, beside which the shard is
                self._restarts.postpone(name, time.monotonic())

    @property
    def view(self) -> ShardsView:
        """What the actors have to know now."""
        addresses = [a for index, a in self.addresses.items() if index != self._apart]
        return ShardsView(self._version, addresses or list(self.addresses.values()))

    def tell(self, board: Any, learner: Any) -> Any:
        """Send the addresses after a change to ``board``, which starting actors ask, and ``learner``.

        Returns a reference to the learner's call. The actors get them with their next polls.
        """
        self._version += 1
        board.set_shards.remote(self.view.addresses)
        return learner.set_shards.remote(list(self.addresses.values()))

    def answered(self, name: str, version: int, in_use: list[str], silent: Mapping[str, str]) -> str:
        """Actor ``name`` has this version of `view`, and may have segments in flight to the shards ``in_use``.

        ``silent``: those that do not answer it, with their last errors. Returns a warning for the user, or "": each
        shard is reported once, by the first actor.
        """
        self._writers[name] = version, in_use
        reported = set().union(*self._silent.values())
        self._silent[name] = set(silent)
        new = [f"{address} ({error})" for address, error in silent.items() if address not in reported]
        return f"warning: {name} does not reach the replay shard(s) {', '.join(new)}" if new else ""

    @property
    def is_changing(self) -> bool:
        """Whether a shard is being added or removed."""
        return self._change is not None

    def scale(self, shards: int) -> None:
        """From now on, `advance` changes the number of shards to ``shards``."""
        self._wanted = shards

    def advance(self, board: Any, learner: Any, fleet: ActorFleet) -> str:
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
                self._change = change(board, learner, fleet)
            next(self._change)
        except StopIteration:
            self._end_change(board, learner)
        except (RunFault, BadInput, ray.exceptions.RayError) as error:
            self._end_change(board, learner)
            self._wanted = None
            self._news = f"warning: the run keeps {len(self.addresses)} replay shard(s): {last_line(error)}"
        return self._news

    def _end_change(self, board: Any, learner: Any) -> None:
        if self._change is not None:
            self._change = self._apart = None
            self.tell(board, learner)

    def with_shards(self, shards: int) -> TrainConfig:
        """The run's configuration with ``shards`` shards of the same size. Raises BadInput if it is not valid."""
        return with_shards(self._config, shards)

    def _needed(self) -> str:
        """What a new shard requests from Ray, and where, as text."""
        options = self._options()
        memory = options.get("memory", 0)
        where = "anywhere" if options.get("scheduling_strategy") == "SPREAD" else "on the learner's node"
        return f"1 CPU{f' and {memory / 1e9:.3g} GB of memory' if memory else ''} {where}"

    def _add_shard(self, board: Any, learner: Any, fleet: ActorFleet) -> Iterator[None]:
        index = next(i for i in range(len(self.handles) + 1) if i not in self.handles)
        deadline = time.monotonic() + STEP_TIMEOUT
        while index not in self.handles:
            try:
                call = self.start(index, added=True)
            except ValueError as error:  # Ray still knows a shard of this name, which has just been removed
                if time.monotonic() > deadline:
                    raise RunFault(f"shard-{index} could not be started: {last_line(error)}") from error
                yield
        handle = self.handles[index]
        try:
            yield from _until(call, STEP_TIMEOUT, f"shard-{index} to listen (it needs {self._needed()})")
            self._apart, self.addresses[index] = index, (address := ray.get(call))
            yield from _until(self.tell(board, learner), STEP_TIMEOUT, f"the learner to add shard-{index}")
        except (RunFault, ray.exceptions.RayError):
            ray.kill(handle)
            self._forget(index)
            raise
        self._news = f"added replay shard-{index} at {address}; the run has {len(self.addresses)} shards"

    def _remove_shard(self, board: Any, learner: Any, fleet: ActorFleet) -> Iterator[None]:
        index = self._apart = max(self.addresses)
        handle, address = self.handles[index], self.addresses[index]
        self.tell(board, learner)
        try:
            call = handle.drain.remote(self.view.addresses)
            yield from _until(call, DRAIN_TIMEOUT, f"shard-{index} to be drained")
            moved = ray.get(call)
            yield from self._until_left(address, fleet)
            address = self.addresses.pop(index)  # another one if it was started again meanwhile
            yield from _until(self.tell(board, learner), STEP_TIMEOUT, f"the learner to remove shard-{index}")
            with contextlib.suppress(*DIED):  # it has ended already
                yield from _until(handle.remove.remote(), STEP_TIMEOUT, f"shard-{index} to end")
        except (RunFault, ray.exceptions.RayError):
            handle.stay.remote()
            self.addresses.setdefault(index, address)
            raise
        ray.kill(self.handles.get(index, handle))  # it may have been started again meanwhile
        self._forget(index)
        self._news = (
            f"removed replay shard-{index}, moved its {moved:,} transitions; the run has {len(self.addresses)} shard(s)"
        )

    def _until_left(self, address: str, fleet: ActorFleet) -> Iterator[None]:
        """Yield until no living actor has segments in flight to the shard at ``address``, at most STEP_TIMEOUT seconds.

        The shard stores nothing more, so none can be lost; but a writer would try for `give_up_after` seconds to reach
        a shard that has ended.
        """
        deadline, version = time.monotonic() + STEP_TIMEOUT, self._version
        while time.monotonic() < deadline:
            answers = [self._writers.get(f"actor-{i}", (0, [address])) for i in fleet.roster.living]
            if not fleet.finishing and all(v >= version and address not in in_use for v, in_use in answers):
                return
            yield


def _until(call: Any, timeout: float, what: str) -> Iterator[None]:
    """Yield until ``call`` has finished. Raises RunFault after ``timeout`` seconds; re-raises the call's error.

    ``what`` completes the message "waited 120 s for ...".
    """
    deadline = time.monotonic() + timeout
    while not ray.wait([call], timeout=0)[0]:
        if time.monotonic() > deadline:
            raise RunFault(f"waited {timeout:g} s for {what}")
        yield
    ray.get(call)
