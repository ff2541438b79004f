"""Processes that do not answer: those that hang are killed, so that they are started again.

A process that hangs keeps its port and its locks, and Ray does not notice. But a process may also be silent because the
network to its node is interrupted, or its node is busy. So a task on its own node decides, which runs only if that node
can be reached: it kills the process if it is stopped (SIGSTOP), or does not answer on that node either. On the driver's
node no task is needed to see that a process is stopped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qfleet.cluster.process import is_ready
from qfleet.cluster.restarts import title

SILENT_AFTER = 5.0  # seconds without an answer after which a process is looked at on its node
PATIENCE = 10.0  # seconds in which a process that is not stopped must answer there
TASK_TIMEOUT = 60.0  # seconds after which another task is sent
START_TIMEOUT = 600.0  # seconds after which a process that starts hangs; a shard may restore gigabytes
START_PERIOD = 10.0  # seconds between two looks at a process that starts
STARTS_AT_A_TIME = 10  # processes that one call looks at; each costs a question to Ray


class Where(NamedTuple):
    """Where a process is."""

    node: str  # Ray's id
    pid: int


def where_is(handle: Any) -> Where | None:
    """Where the process of the Ray actor ``handle`` is; None if it has none, for example because it waits for room."""
    actor = ray._private.state.actors(handle._actor_id.hex())
    if not actor.get("Pid") or actor["State"] == "DEAD":
        return None
    return Where(actor["Address"]["NodeID"], actor["Pid"])


def end_if_it_hangs(handle: Any, pid: int, patience: float | None) -> bool:
    """Kill process ``pid`` of this node, whose Ray actor is ``handle``, if it hangs. Returns whether it did.

    It hangs if it is stopped, or has not answered after ``patience`` seconds; None: it need not answer yet.
    """
    if end_if_stopped(pid):
        return True
    if patience is None:
        return False
    call, deadline = handle.__ray_ready__.remote(), time.monotonic() + patience
    while not ray.wait([call], timeout=0.5)[0]:
        if end_if_stopped(pid):
            return True
        if time.monotonic() > deadline:
            return _end(pid)
    return False


def end_if_stopped(pid: int) -> bool:
    """Kill process ``pid`` of this node if it is stopped. Returns whether it did."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED and _end(pid)
    except psutil.NoSuchProcess:
        return False


def _end(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


class Watch:
    """Looks at silent processes, each with one task at a time, and at processes that start.

    watch = Watch(note)
    watch.look_at("shard-0", handle)  # it has not answered for SILENT_AFTER seconds
    watch.heard("shard-0")  # it has answered
    watch.look_at_starts({"actor-3": handle})  # repeatedly, with all that have been requested and do not work yet
    watch.advance()  # repeatedly
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._node = note, ray.get_runtime_context().get_node_id()
        self._task: Any = ray.remote(num_cpus=0, max_retries=0)(end_if_it_hangs)
        self._calls: dict[str, tuple[Any, float]] = {}  # in flight, with the times at which they were sent
        self._starts: dict[Any, float] = {}  # by Ray's id of an actor that starts: when its process was first seen
        self._next_looks: dict[Any, float] = {}  # by that id: time of the next look

    def look_at(self, name: str, handle: Any, patience: float | None = PATIENCE) -> None:
        """Process ``name`` is silent."""
        if name in self._calls or (where := where_is(handle)) is None:
            return
        if where.node == self._node:
            if end_if_stopped(where.pid):
                return self._tell(name)
            if patience is None:
                return
        there = NodeAffinitySchedulingStrategy(where.node, soft=False)
        call = self._task.options(scheduling_strategy=there).remote(handle, where.pid, patience)
        self._calls[name] = call, time.monotonic()

    def heard(self, name: str) -> None:
        """Process ``name`` has answered, or has died."""
        if name in self._calls:
            ray.cancel(self._calls.pop(name)[0], force=True)

    def look_at_starts(self, starting: Mapping[str, Any]) -> None:
        """Look at those processes that start whose turn it is: one that is stopped, or takes too long, hangs.

        Those that wait for room have no process yet.
        """
        now, by_id = time.monotonic(), {handle._actor_id: (name, handle) for name, handle in starting.items()}
        self._next_looks = {i: self._next_looks.get(i, now + START_PERIOD) for i in by_id}
        self._starts = {i: since for i, since in self._starts.items() if i in by_id}
        for i in sorted((i for i, at in self._next_looks.items() if at <= now), key=self._next_looks.__getitem__)[
            :STARTS_AT_A_TIME
        ]:
            self._next_looks[i] = now + START_PERIOD
            name, handle = by_id[i]
            if where_is(handle) is not None:
                took = now - self._starts.setdefault(i, now)
                self.look_at(name, handle, patience=None if took < START_TIMEOUT else 0.0)

    def advance(self) -> None:
        """Collect the answers of the tasks."""
        for name, (call, sent) in list(self._calls.items()):
            if not is_ready(call):
                if time.monotonic() - sent > TASK_TIMEOUT:  # its node is cut off
                    self.heard(name)
                continue
            del self._calls[name]
            with contextlib.suppress(ray.exceptions.RayError):  # the node has died, or has no room for the task
                if ray.get(call):
                    self._tell(name)

    def _tell(self, name: str) -> None:
        self._note(f"warning: {title(name)} does not answer, so its process was killed")
