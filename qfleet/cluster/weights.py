"""Weights through Ray's object store: one copy a node, shared by all actors there.

The weight store, a small actor of its own, owns the objects, so that they outlive a learner that is restarted.
References travel inside lists, so that a reader gets the reference at once and fetches the object when it is there.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import ray

from rl.errors import RunFault
from rl.ports import Publication

Found = tuple[Publication, list[Any]]  # a publication without its weights; [online] or [online, target], references
WEIGHT_STORE = "weights"  # the actor's name, in the run's own namespace


class WeightStore:
    """A Ray actor: the newest publication, and the newest target weights."""

    def __init__(self) -> None:
        self._newest: Publication | None = None  # without its weights
        self._online: Any = None
        self._target: Any = None
        self._target_version = -1

    def publish(self, publication: Publication) -> None:
        """Store a publication and own its objects."""
        self._online = ray.put(publication.weights)
        if publication.target_weights is not None:
            self._target, self._target_version = ray.put(publication.target_weights), publication.target_version
        self._newest = replace(publication, weights={}, target_weights=None)

    def newer_than(self, version: int, target_version: int) -> Found | None:
        """The newest publication where newer than ``version``, else None.

        It comes with the target's weights where these are newer than ``target_version``.
        """
        if self._newest is None or self._newest.version <= version:
            return None
        refs = [self._online]
        if self._target is not None and self._target_version > target_version:
            refs.append(self._target)
        return self._newest, refs


class RayWeightSink:
    """`WeightSink` that sends to the store without waiting; while two publications are under way, the newest waits."""

    def __init__(self, store: Any, patience: float = 60.0) -> None:
        self._store, self._patience = store, patience
        self._pending: list[Any] = []
        self._held: Publication | None = None
        self._taken = time.monotonic()  # when the store last took one, or had none to take

    def publish(self, publication: Publication) -> None:
        """Send, or hold back, a publication. Raises RunFault when the store takes none for ``patience`` seconds."""
        if self._held is not None and publication.target_weights is None:
            publication = replace(publication, target_weights=self._held.target_weights)
        self._held = None
        done, self._pending = (
            ray.wait(self._pending, num_returns=len(self._pending), timeout=0) if self._pending else ([], [])
        )
        ray.get(done)  # raises what the store raised
        now = time.monotonic()
        if done or not self._pending:
            self._taken = now
        if len(self._pending) >= 2:
            if now - self._taken > self._patience:
                raise RunFault(f"the weight store has taken no weights for {self._patience:g} s")
            self._held = publication
            return
        self._pending.append(self._store.publish.remote(publication))


class RayWeightSource:
    """`WeightSource` that asks the store in the background, with one question at a time under way."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._version, self._target_version = 0, -1
        self._asked: Any = None
        self._found: Found | None = None

    def poll(self) -> Publication | None:
        """The newest publication once its weights are on this node; None where none is newer. It never waits."""
        if self._found is None and not self._ask():
            return None
        if not self._arrived():
            return None  # still on their way to this node
        assert self._found is not None
        newest, refs = self._found
        online, *target = ray.get(refs)
        self._found = None
        self._version = newest.version
        if target:
            self._target_version = newest.target_version
        return replace(newest, weights=online, target_weights=target[0] if target else None)

    def _ask(self) -> bool:
        """Whether an answer with a newer publication has come; asks when no question is under way."""
        if self._asked is None:
            self._asked = self._store.newer_than.remote(self._version, self._target_version)
        ready, _ = ray.wait([self._asked], timeout=0)
        if not ready:
            return False
        try:
            self._found = ray.get(self._asked)
        except ray.exceptions.RayActorError:  # the store is restarting: ask again next time
            self._found = None
        self._asked = None
        return self._found is not None

    def _arrived(self) -> bool:
        """Whether the objects of the publication found are on this node."""
        assert self._found is not None
        refs = self._found[1]
        return len(ray.wait(refs, num_returns=len(refs), timeout=0)[0]) == len(refs)

    def await_first(self, timeout: float) -> None:
        """Wait until a publication is on this node, for the next `poll`. Raises RunFault after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while not ((self._found is not None or self._ask()) and self._arrived()):
            if time.monotonic() > deadline:
                raise RunFault(f"the learner has published no weights within {timeout:g} s")
            time.sleep(0.02)

    def wait(self, timeout: float) -> Publication | None:
        """The newest publication, waiting up to ``timeout`` seconds for its weights; None where there is no newer one.

        Raises RunFault when the store does not answer in that time.
        """
        call = self._store.newer_than.remote(self._version, self._target_version)
        try:
            found = ray.get(call, timeout=timeout)
        except ray.exceptions.GetTimeoutError:
            raise RunFault(f"the weight store has not answered for {timeout:g} s") from None
        self._found = found
        if found is None:
            return None
        ray.wait(found[1], num_returns=len(found[1]), timeout=timeout)
        return self.poll()
