"""Publication of weights through Ray's object store: one copy per node, shared by all actors of the node.

A separate Ray actor, the weight store, owns the objects, so that they outlive the learner's process. References are
passed inside lists: Ray then does not resolve them, and a reader can fetch the objects once they are on its node.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import ray

from rl.errors import RunFault
from rl.parameters import bytes_of
from rl.ports import Publication, Weights

Found = tuple[Publication, list[Any]]  # a publication without its weights; [online] or [online, target], references
DIED = "the weight store has died"  # Ray does not restart it: its content would be lost
WEIGHT_STORE = "weights"  # the actor's name, in the run's own namespace


class WeightStore:
    """A Ray actor that stores the newest publication and the newest target weights."""

    def __init__(self) -> None:
        self._newest: Publication | None = None  # without its weights
        self._online: Any = None
        self._target: Any = None
        self._target_version = -1

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


class RayWeightSink:
    """`WeightSink` that sends publications to the weight store without blocking.

    While two are in flight, it holds back the newest. The next call of `publish` replaces it, but keeps its target
    weights if the new publication has none.
    """

    def __init__(self, store: Any, timeout: float = 60.0) -> None:
        self._store, self._timeout = store, timeout
        self._pending: list[Any] = []
        self._held: Publication | None = None
        self._last_progress = time.monotonic()  # when the store last finished a publication, or had none in flight

    def publish(self, publication: Publication) -> None:
        """Send or hold back ``publication``.

        Raises RunFault if the store has died, or finishes none for ``timeout`` seconds.
        """
        if self._held is not None and publication.target_weights is None:
            publication = replace(publication, target_weights=self._held.target_weights)
        self._held = None
        done, self._pending = (
            ray.wait(self._pending, num_returns=len(self._pending), timeout=0) if self._pending else ([], [])
        )
        try:
            ray.get(done)  # re-raises an exception of the store
        except ray.exceptions.RayActorError:
            raise RunFault(DIED) from None
        now = time.monotonic()
        if done or not self._pending:
            self._last_progress = now
        if len(self._pending) >= 2:
            if now - self._last_progress > self._timeout:
                raise RunFault(f"the weight store has accepted no weights for {self._timeout:g} s")
            self._held = publication
            return
        self._pending.append(self._store.publish.remote(publication))


class RayWeightSource:
    """`WeightSource` that queries the weight store in the background, one query at a time."""

    def __init__(self, store: Any) -> None:
        self._store = store
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

        Weights that Ray has lost are queried again at the next call. Raises RunFault if the store has died.
        """
        if self._found is None and not self._query():
            return None
        if not self._has_arrived():
            return None
        assert self._found is not None
        newest, refs = self._found
        try:
            return self._take(newest, ray.get(refs))
        except ray.exceptions.ObjectLostError:  # the store may have died: the next query says so
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

    def _query(self) -> bool:
        """Whether the store has answered with a newer publication; sends a query if none is in flight."""
        if self._pending_query is None:
            self._pending_query = self._store.newer_than.remote(self._version, self._target_version)
        ready, _ = ray.wait([self._pending_query], timeout=0)
        if not ready:
            return False
        try:
            self._found = ray.get(self._pending_query)
        except ray.exceptions.ActorUnavailableError:  # the network is interrupted: query again next time
            self._found = None
        except ray.exceptions.RayActorError:
            raise RunFault(DIED) from None
        self._pending_query = None
        return self._found is not None

    def _has_arrived(self) -> bool:
        """Whether the weights of the found publication are on this node."""
        assert self._found is not None
        refs = self._found[1]
        return len(ray.wait(refs, num_returns=len(refs), timeout=0)[0]) == len(refs)

    def await_first(self, timeout: float) -> None:
        """Wait until `poll` can return a publication.

        Raises RunFault after ``timeout`` seconds, or if the store has died.
        """
        deadline = time.monotonic() + timeout
        while not ((self._found is not None or self._query()) and self._has_arrived()):
            if time.monotonic() > deadline:
                raise RunFault(f"the learner has published no weights within {timeout:g} s")
            time.sleep(0.02)

    def wait(self, timeout: float) -> Publication | None:
        """Wait up to ``timeout`` seconds for the newest publication; returns None if there is no newer one.

        Raises RunFault if the store does not answer in that time, or its weights do not arrive in as much or are lost, or
        if it has died; ActorUnavailableError while the network is interrupted.
        """
        call = self._store.newer_than.remote(self._version, self._target_version)
        try:
            found = ray.get(call, timeout=timeout)
            return None if found is None else self._take(found[0], ray.get(found[1], timeout=timeout))
        except ray.exceptions.GetTimeoutError:
            raise RunFault(f"the weight store has not answered for {timeout:g} s") from None
        except ray.exceptions.ActorDiedError:
            raise RunFault(DIED) from None
        except ray.exceptions.ObjectLostError:
            raise RunFault("the weights of the newest publication were lost before they arrived") from None
