"""The device work of an update, recorded once and replayed as one CUDA graph.

An update launches some 300 short kernels. Launching them from Python takes ten times as long as running them
(docs/results, "On an H200"); a replay launches all of them in one call (decisions/0016).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from learner.batch import Batch

Outputs = tuple[Tensor, dict[str, Tensor]]
WARM_UP = 3  # updates without a graph, in which the optimizer and the libraries allocate what they keep


class GraphedStep:
    """Calls ``step`` for the first WARM_UP batches, then records it with the next one, and replays it from there on.

        step = GraphedStep(step, device)
        td_abs, metrics = step(batch)  # on the CUDA device; valid until the next call
        step.forget()  # after replacing a tensor that the step uses

    All batches must have the same shapes and dtypes. What ``step`` does in Python happens only while it is recorded.
    """

    def __init__(self, step: Callable[[Batch], Outputs], device: torch.device) -> None:
        self._step, self._device = step, device
        self.forget()

    def forget(self) -> None:
        """Drop the recording, and start again with WARM_UP calls."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    def __call__(self, batch: Batch) -> Outputs:
        """Return the outputs of ``step`` for ``batch``."""
        with torch.cuda.device(self._device):  # else a graph of cuda:1 would record nothing
            return self._call(batch)

    def _call(self, batch: Batch) -> Outputs:
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._step(batch)
        if self._graph is None:
            self._record(batch)
            assert self._graph is not None
        for static, tensor in zip(_tensors(self._inputs), _tensors(batch), strict=True):
            static.copy_(tensor)
        self._graph.replay()
        return self._outputs

    def _record(self, batch: Batch) -> None:
        """Record the step on a copy of ``batch``. This computes nothing."""
        self._inputs = Batch(*(tensor.clone() for tensor in _tensors(batch)))
        graph = torch.cuda.CUDAGraph()
        # "thread_local": the prefetch thread allocates memory meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._outputs = self._step(self._inputs)
        self._graph = graph


def _tensors(batch: Batch) -> list[Tensor]:
    return [x for f in fields(batch) if (x := getattr(batch, f.name)) is not None]
