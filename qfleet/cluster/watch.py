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
from collections.abc import Callable
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qfleet.cluster.process import Where, is_ready
from qfleet.cluster.restarts import title

SILENT_AFTER = 5.0  # seconds without an answer after which a process is looked at on its node
PATIENCE = 10.0  # seconds in which a process that is not stopped must answer there
TASK_TIMEOUT = 60.0  # seconds after which another task is sent


def end_if_it_hangs(handle: Any, pid: int) -> bool:
    """Kill process ``pid`` of this node, whose Ray actor is ``handle``, if it hangs. Returns whether it did."""
    call, deadline = handle.where.remote(), time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if end_if_stopped(pid):
            return True
        if ray.wait([call], timeout=0.5)[0]:
            return False
    return _end(pid)


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
    """Looks at silent processes, each with one task at a time.

    watch = Watch(note)
    watch.look_at("shard-0", handle, where)  # it has not answered for SILENT_AFTER seconds
    watch.heard("shard-0")  # it has answered
    watch.advance()  # repeatedly
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._node = note, ray.get_runtime_context().get_node_id()
        self._task: Any = ray.remote(num_cpus=0, max_retries=0)(end_if_it_hangs)
        self._calls: dict[str, tuple[Any, float]] = {}  # in flight, with the times at which they were sent

    def look_at(self, name: str, handle: Any, where: Where) -> None:
        """Process ``name`` is silent."""
        if where.node == self._node and end_if_stopped(where.pid):
            self._tell(name)
        elif name not in self._calls:
            there = NodeAffinitySchedulingStrategy(where.node, soft=False)
            call = self._task.options(scheduling_strategy=there).remote(handle, where.pid)
            self._calls[name] = call, time.monotonic()

    def heard(self, name: str) -> None:
        """Process ``name`` has answered, or has died."""
        if name in self._calls:
            ray.cancel(self._calls.pop(name)[0], force=True)

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
        self._note(f"warning: {title(name)} did not answer for {SILENT_AFTER:g} s, so its process was killed")
