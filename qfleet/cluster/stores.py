"""The board and the weight store of a run, which are beside the learner."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import ray

from qfleet.cluster.board import BOARD, RunBoard
from qfleet.cluster.placement import Placement
from qfleet.cluster.process import Process
from qfleet.cluster.restarts import Restarts
from qfleet.cluster.weights import WEIGHT_STORE, WeightStore

remote: Any = ray.remote  # untyped, because Ray's handles have no typed methods


def make_board(placement: Callable[[], Placement], restarts: Restarts) -> Process:
    """The board, by the placement that the run has then. Raises ValueError if the namespace already has one."""
    return Process(BOARD, partial(_request, RunBoard, BOARD, placement), restarts)


def make_weight_store(placement: Callable[[], Placement], restarts: Restarts) -> Process:
    """The weight store, likewise."""
    return Process(WEIGHT_STORE, partial(_request, WeightStore, WEIGHT_STORE, placement), restarts)


def _request(kind: type, name: str, placement: Callable[[], Placement]) -> Any:
    return remote(kind).options(name=name, **placement().store_options()).remote()
