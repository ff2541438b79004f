"""Publication of weights through Ray's object store: one copy per node, shared by all actors of the node.

A separate Ray actor, the weight store, owns the objects, so that they outlive the learner's process. References are
passed inside lists: Ray then does not resolve them, and a reader can fetch the objects once they are on its node.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray

from qfleet.cluster.faults import DIED
from qfleet.cluster.process import RunProcess
from rl.errors import RunFault, Unreachable
from rl.parameters import bytes_of
from rl.ports import Publication, Weights

Found = tuple[Publication, list[Any]]  # a publication without its weights; [online] or [online, target], references
WEIGHT_STORE = "weight store"  # the actor's name, in the run's own namespace
FIND_PERIOD = 0.5  # seconds between two attempts to find the store after it has died
FIND_TIMEOUT = 10.0  # seconds to wait for an answer of the store
MAX_IN_FLIGHT = 2  # publications


class WeightStore(RunProcess):
    """A Ray actor that stores the newest publication and the newest target weights."""

    def __init__(self) -> None:
        self._newest: Publication | None = None  # without its weights
        self._online: Any = None
        self._target: Any = None
        self._target_version = -1

    def report(self) -> dict[str, Any]:
        """`weights_version`: that of the newest publication, 0 if there is none."""
        return {"weights_version": 0 if self._newest is None else self._newest.version}

    def publish(self, publication: Publication) -> None:
        """Put the weights of ``publication`` into the object store, owned by this actor."""
        self._online = ray.put(publication.weights)
        if publication.target_weights is not None:
            self._target, self._target_version = ray.put(publication.target_weights), publication.target_version
        self._newest = replace(publication, weights={}, target_weights=None)

    def newer_than(self, version: int, target_version: int) -> Found | None:
        """The newest publication if it is newer than ``version``, else None.

        It includes the target weights if these are newer than ``target_version``.
        """
        if self._newest is None or self._newest.version <= version:
            return None
        refs = [self._online]
        if self._target is not None and self._target_version > target_version:
            refs.append(self._target)
        return self._newest, refs


def find_weight_store() -> Any:
    """The handle of the run's weight store. Raises ValueError while there is none."""
    return ray.get_actor(WEIGHT_STORE)


class RayWeightSink:
    """`WeightSink` that sends publications to the weight store without blocking. Safe from any thread.

    ``find`` returns the store's handle; it is called again after the store has died. While two publications are in
    flight, or there is no store, only the newest is kept, with the newest target weights.
    """

    def __init__(self, find: Callable[[], Any] = find_weight_store, timeout: float = 60.0) -> None:
        self._find, self._timeout = find, timeout
        self._lock = threading.Lock()
        self._store: Any = None
        self._pending: list[Any] = []
        self._newest: Publication | None = None  # with the newest target weights
        self._owes_target = False  # whether the store lacks these target weights
        self._blocked_since: float | None = None  # since when no publication could be sent

    def publish(self, publication: Publication) -> None:
        """Send ``publication``, or keep it.

        Raises Unreachable if the store finishes no publication, or cannot be found, for ``timeout`` seconds.
        """
        with self._lock:
            target = publication.target_weights
            self._owes_target = self._owes_target or target is not None
            if target is None and self._newest is not None:
                target = self._newest.target_weights
            self._newest = replace(publication, target_weights=target)
            self._send()

    def republish(self) -> None:
        """Send the newest publication to the store that there is now, in place of one that has died."""
        with self._lock:
            self._forget_store()
            if self._newest is not None:
                self._send()

    def stored_version(self) -> int:
        """The version of the newest publication in the store; 0 if there is none, or no store that answers."""
        try:
            return int(ray.get(self._find().poll.remote(), timeout=FIND_TIMEOUT)["weights_version"])
        except (ValueError, TimeoutError, *DIED):
            return 0

    def _send(self) -> None:
        self._collect()
        if self._store is None or len(self._pending) >= MAX_IN_FLIGHT:
            self._blocked_since = self._blocked_since or time.monotonic()
            if time.monotonic() - self._blocked_since > self._timeout:
                raise Unreachable(f"the weight store has accepted no weights for {self._timeout:g} s")
            return
        self._blocked_since = None
        assert self._newest is not None
        sent = self._newest if self._owes_target else replace(self._newest, target_weights=None)
        self._owes_target = False
        self._pending.append(self._store.publish.remote(sent))

    def _collect(self) -> None:
        """Collect the publications that the store has finished; find the store if there is none."""
        waiting = len(self._pending)
        done, self._pending = ray.wait(self._pending, num_returns=waiting, timeout=0) if waiting else ([], [])
        try:
            ray.get(done)
        except DIED:  # or its network is interrupted
            self._forget_store()
        if self._store is None:
            with contextlib.suppress(ValueError):
                self._store = self._find()

    def _forget_store(self) -> None:
        self._store, self._pending, self._owes_target = None, [], True


class RayWeightSource:
    """`WeightSource` that queries the weight store in the background, one query at a time.

    ``find`` returns the store's handle; it is called again after the store has died. Until there is one, nothing new
    arrives.
    """

    def __init__(self, find: Callable[[], Any] = find_weight_store) -> None:
        self._find = find
        self._store: Any = None
        self._find_at = 0.0  # time of the next attempt to find it
        self._version, self._target_version = 0, -1
        self._pending_query: Any = None
        self._found: Found | None = None
        self._publications = self._target_syncs = self._bytes = 0  # received

    def stats(self) -> dict[str, float]:
        """What `poll` and `wait` have returned: ``publications``, ``target_syncs`` among them, ``bytes_received``.

        A target sync is a publication with target weights. Bytes are those of the weights. All readers of a node share
        one copy, which crosses the network once.
        """
        return {
            "publications": float(self._publications),
            "target_syncs": float(self._target_syncs),
            "bytes_received": float(self._bytes),
        }

    def poll(self) -> Publication | None:
        """The newest publication, once its weights are on this node; None if there is no newer one. Never blocks.

        Weights that Ray has lost are queried again at the next call.
        """
        if self._found is None and not self._query():
            return None
        if not self._has_arrived():
            return None
        assert self._found is not None
        newest, refs = self._found
        try:
            return self._take(newest, ray.get(refs))
        except ray.exceptions.ObjectLostError:  # the store may have died: the next query shows it
            self._found = None
            return None

    def _take(self, newest: Publication, weights: list[Weights]) -> Publication:
        """The publication ``newest`` with its ``weights``, [online] or [online, target]; later ones must be newer."""
        online, *target = weights
        self._found = None
        self._version = newest.version
        self._publications += 1
        self._target_syncs += len(target)
        self._bytes += sum(bytes_of(weights) for weights in (online, *target))
        if target:
            self._target_version = newest.target_version
        return replace(newest, weights=online, target_weights=target[0] if target else None)

    def _found_store(self) -> bool:
        """Whether there is a handle of the store; tries to find it, at most every FIND_PERIOD seconds."""
        if self._store is None and time.monotonic() >= self._find_at:
            self._find_at = time.monotonic() + FIND_PERIOD
            with contextlib.suppress(ValueError):
                self._store = self._find()
        return self._store is not None

    def _query(self) -> bool:
        """Whether the store has answered with a newer publication; sends a query if none is in flight."""
        if not self._found_store():
            return False
        if self._pending_query is None:
            self._pending_query = self._store.newer_than.remote(self._version, self._target_version)
        ready, _ = ray.wait([self._pending_query], timeout=0)
        if not ready:
            return False
        query, self._pending_query, self._found = self._pending_query, None, None
        try:
            self._found = ray.get(query)
        except ray.exceptions.ActorUnavailableError:  # the network is interrupted: query again next time
            pass
        except DIED:
            self._store = None
        return self._found is not None

    def _has_arrived(self) -> bool:
        """Whether the weights of the found publication are on this node."""
        assert self._found is not None
        refs = self._found[1]
        return len(ray.wait(refs, num_returns=len(refs), timeout=0)[0]) == len(refs)

    def await_first(self, timeout: float) -> None:
        """Wait until `poll` can return a publication. Raises Unreachable after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while not ((self._found is not None or self._query()) and self._has_arrived()):
            if time.monotonic() > deadline:
                raise Unreachable(f"the learner has published no weights within {timeout:g} s")
            time.sleep(0.02)

    def wait(self, timeout: float) -> Publication | None:
        """Wait up to ``timeout`` seconds for the newest publication; returns None if there is no newer one.

        Raises RunFault if there is no store that answers in that time, or its weights do not arrive in as much or are
        lost; ActorUnavailableError while the network is interrupted.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                if self._found_store():
                    call = self._store.newer_than.remote(self._version, self._target_version)
                    found = ray.get(call, timeout=max(0.0, deadline - time.monotonic()))
                    return None if found is None else self._take(found[0], ray.get(found[1], timeout=timeout))
            except ray.exceptions.GetTimeoutError:
                raise RunFault(f"the weight store has not answered for {timeout:g} s") from None
            except ray.exceptions.ActorUnavailableError:
                raise
            except ray.exceptions.ObjectLostError:
                raise RunFault("the weights of the newest publication were lost before they arrived") from None
            except DIED:  # it is started again
                self._store = None
            if time.monotonic() >= deadline:
                raise RunFault(f"there has been no weight store for {timeout:g} s")
            time.sleep(0.1)
