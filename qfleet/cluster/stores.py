"""The board and the weight store of a run: starts them, and notices when one of them has died.

Nothing replaces them: without them the run cannot go on.
"""

from __future__ import annotations

from typing import Any

import ray

from qfleet.cluster.board import BOARD, RunBoard
from qfleet.cluster.faults import last_line
from qfleet.cluster.placement import Placement, cluster_nodes
from qfleet.cluster.weights import WEIGHT_STORE, WeightStore
from rl.errors import RunFault

remote: Any = ray.remote  # untyped, because Ray's handles have no typed methods


class Stores:
    """Handles of a run's board and weight store.

        stores = Stores(placement, resume="qfleet train --resume runs/pong --address auto")
        fault = stores.fault()  # repeatedly, from the driver's loop

    ``resume`` is the command that continues the run, for messages. Raises ValueError if the namespace already has a
    board.
    """

    def __init__(self, placement: Placement, resume: str) -> None:
        self._node, self._resume = placement.node, resume
        self.board = remote(RunBoard).options(name=BOARD, **placement.store_options()).remote()
        self.weights = remote(WeightStore).options(name=WEIGHT_STORE, **placement.store_options()).remote()
        self._calls: dict[str, Any] = {}  # in flight, one for each store

    def fault(self, wait: float = 0.0) -> RunFault | None:
        """A RunFault that says which store has died, on which node, and how to resume; None if none is known to.

        Asks both stores; the answers may be those to the previous call. With ``wait``, asks anew and waits up to so
        many seconds for the answers.
        """
        handles = {"the board": self.board, "the weight store": self.weights}
        if wait:
            self._calls.clear()
        for name, handle in handles.items():
            if name not in self._calls:
                self._calls[name] = handle.__ray_ready__.remote()
        ready, _ = ray.wait(list(self._calls.values()), num_returns=len(self._calls), timeout=wait)
        for name, call in list(self._calls.items()):
            if call not in ready:
                continue
            del self._calls[name]
            try:
                ray.get(call)
            except ray.exceptions.ActorUnavailableError:
                continue
            except ray.exceptions.RayActorError as error:
                return RunFault(f"{self._what_died(name, error)}: continue the run with `{self._resume}`")
        return None

    def _what_died(self, store: str, error: ray.exceptions.RayActorError) -> str:
        if self._node is None:
            return f"{store} of the run has died ({last_line(error)})"
        if self._node.id not in {node.id for node in cluster_nodes()}:
            return f"the node {self._node.address} has died, with the learner, the board and the weight store"
        return f"{store} of the run, on the node {self._node.address}, has died ({last_line(error)})"
