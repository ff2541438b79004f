"""Weights through Ray's object store: one copy a node, however many actors live there.

The weight store, a small actor of its own, owns the objects, so that they outlive a learner that is restarted. References
travel inside lists, so that a reader gets the reference at once and fetches the object when it is there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray

from rl.errors import RunFault
from rl.ports import Publication
from rl.types import Array

WEIGHT_STORE = "weights"  # the actor's name, in the run's own namespace


class WeightStore:
    """A Ray actor: the newest publication, and the newest target weights."""

    def __init__(self) -> None:
        self._meta: dict[str, int] = {}
        self._online: Any = None
        self._target: Any = None
        self._target_version = -1

    def publish(
        self, version: int, updates: int, weights: Mapping[str, Array], target_version: int, target: Any
    ) -> None:
        """Take a publication and own its objects."""
        self._online = ray.put(weights)
        if target is not None:
            self._target, self._target_version = ray.put(target), target_version
        self._meta = {"version": version, "updates": updates, "target_version": target_version}

    def newer_than(self, version: int, target_version: int) -> tuple[dict[str, int], list[Any]] | None:
        """(meta, [online] or [online, target]) when there is a publication newer than ``version``, else None."""
        if not self._meta or self._meta["version"] <= version:
            return None
        refs = [self._online]
        if self._target is not None and self._target_version > target_version:
            refs.append(self._target)
        return self._meta, refs


class RayWeightSink:
    """`WeightSink`: hands publications to the store without waiting; while two are on their way it holds the newest."""

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
        p = publication
        target = None if p.target_weights is None else dict(p.target_weights)
        call = self._store.publish.remote(p.version, p.updates, dict(p.weights), p.target_version, target)
        self._pending.append(call)


class RayWeightSource:
    """`WeightSource`: asks the store in the background; `poll` never waits. One question at a time is under way."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._version, self._target_version = 0, -1
        self._asked: Any = None
        self._found: tuple[dict[str, int], list[Any]] | None = None

    def poll(self) -> Publication | None:
        if self._found is None and not self._ask():
            return None
        if not self._arrived():
            return None  # still on their way to this node
        assert self._found is not None
        meta, refs = self._found
        weights = ray.get(refs)
        self._found = None
        self._version = meta["version"]
        target = None
        if len(weights) > 1:
            target, self._target_version = weights[1], meta["target_version"]
        return Publication(meta["version"], meta["updates"], weights[0], meta["target_version"], target)

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
        """The newest publication, waiting up to ``timeout`` seconds for one newer than the last."""
        found = ray.get(self._store.newer_than.remote(self._version, self._target_version), timeout=timeout)
        self._found = found
        if found is None:
            return None
        ray.wait(found[1], num_returns=len(found[1]), timeout=timeout)
        return self.poll()
