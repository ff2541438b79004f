"""Prefetching: batches come in order, at most `depth` ahead, and failures are raised by `get`."""

from __future__ import annotations

import threading
import time

import pytest

from learner.prefetch import Prefetcher, SynchronousBatches
from rl.errors import RunFault


class Numbers:
    """A `BatchSource` of 0, 1, 2, ... that raises ``fault`` after ``last``. Every third call returns None."""

    def __init__(self, last=10**9, fault=None):
        self.asked, self._next, self._last, self._fault = 0, 0, last, fault

    def sample(self, timeout):
        self.asked += 1
        if self.asked % 3 == 0:
            return None
        if self._next > self._last:
            raise self._fault
        self._next += 1
        return self._next - 1


def settle(source):
    """Wait until ``source`` gets no more calls; returns the number of calls."""
    before = -1
    while before != source.asked:
        before = source.asked
        time.sleep(0.1)
    return before


def test_batches_come_in_order_and_prepared():
    batches = Prefetcher(Numbers(), lambda n: f"batch {n}", depth=3)
    assert [batches.get(5.0) for _ in range(20)] == [(n, f"batch {n}") for n in range(20)]
    batches.close()


@pytest.mark.parametrize("depth", [1, 4])
def test_at_most_depth_batches_are_prepared_ahead(depth):
    prepared = []
    batches = Prefetcher(Numbers(), prepared.append, depth)
    settle(batches._source)
    assert len(prepared) == depth + 1  # the thread holds one more than the queue
    batches.get(5.0)
    settle(batches._source)
    assert len(prepared) == depth + 2
    batches.close()


def test_a_fault_of_the_source_is_raised_after_the_earlier_batches():
    batches = Prefetcher(Numbers(1, RunFault("replay is gone")), str)
    assert [batches.get(5.0)[0] for _ in range(2)] == [0, 1]
    with pytest.raises(RunFault, match="^replay is gone$"):
        batches.get(5.0)
    batches.close()


def test_any_other_exception_is_raised_as_it_is():
    """So a run on Ray can tell a fault of a GPU, after which the learner is started again, from its own RunFault."""
    batches = Prefetcher(Numbers(), lambda n: 1 // n)
    with pytest.raises(ZeroDivisionError, match="division"):
        batches.get(5.0)
    batches.close()


def test_get_returns_none_after_the_timeout():
    class Never:
        def sample(self, timeout):
            time.sleep(0.01)

    batches = Prefetcher(Never(), str)
    assert batches.get(0.1) is None
    batches.close()


def test_close_ends_the_thread_even_if_the_queue_is_full():
    batches = Prefetcher(Numbers(), str, depth=1)
    settle(batches._source)
    batches.close()
    assert not [t for t in threading.enumerate() if t is batches._thread]


def test_synchronous_batches_are_sampled_in_get():
    source = Numbers()
    batches = SynchronousBatches(source, str)
    assert source.asked == 0
    assert [batches.get(0.0) for _ in range(4)] == [(0, "0"), (1, "1"), None, (2, "2")]
