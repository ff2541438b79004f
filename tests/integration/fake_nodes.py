"""Ray's fake multi-node provider, which starts the nodes of an autoscaler as processes of this machine."""

from __future__ import annotations

import time
from types import SimpleNamespace

import ray._private.node
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class PatientProvider(FakeMultiNodeProvider):
    """Waits up to 5 minutes for a node, not 30 seconds: on a loaded machine Ray would start one after the other."""

    def __init__(self, *args):
        super().__init__(*args)
        slow = SimpleNamespace(monotonic=lambda: time.monotonic() / 10, sleep=time.sleep, time=time.time)
        ray._private.node.time = slow
