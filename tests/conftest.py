"""Segments, fixtures and the order of tests, shared by all tests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the tests also run on small machines

import numpy as np
import pytest
import torch
from xdist.scheduler import LoadFileScheduling

from protos.codec import pack_segment, segment_to_message
from rl.returns import n_step_returns
from rl.types import ObservationSpec, Segment

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent  # the checkout
SMALL = ObservationSpec((2,), "float32", 1)
FRAMES = ObservationSpec((20, 20), "uint8", 4)


def make_segment(rng, spec=SMALL, items=4, n=3, episode=1, first_step=0, td_abs=None, mark=None):
    """A random `Segment` of ``items`` items with ``n``-step returns, of one episode from ``first_step`` on.

    With ``mark``, frame k is filled with the number mark + k, so that a test recognizes it in what was sampled.
    """
    context = 0 if first_step == 0 else spec.stack - 1
    steps = context + items + n - 1
    if mark is None:
        frames = rng.integers(0, 255, (steps + 1, *spec.frame_shape)).astype(spec.dtype)
    else:
        numbers = (mark + np.arange(steps + 1)).reshape(-1, *([1] * len(spec.frame_shape)))
        frames = np.broadcast_to(numbers, (steps + 1, *spec.frame_shape)).astype(spec.dtype)
    rewards = rng.normal(size=steps).astype(np.float32)
    no = np.zeros(steps, np.bool_)
    targets = n_step_returns(rewards[context:], no[context:], items, n, 0.99)
    return Segment(
        episode_id=episode,
        first_step=first_step,
        frames=frames,
        actions=rng.integers(0, 4, steps).astype(np.int32),
        rewards=rewards,
        terminated=no,
        truncated=no,
        lost_life=no,
        versions=np.zeros(steps, np.uint32),
        item_step=np.arange(context, context + items, dtype=np.uint32),
        item_length=targets.length,
        r_t=targets.r_t,
        discount_t=targets.discount_t,
        td_abs=np.full(items, 1.0, np.float32) if td_abs is None else np.asarray(td_abs, np.float32),
    )


def make_message(*args, **kwargs):
    """The protobuf message of a `make_segment`, with the same arguments."""
    return segment_to_message(pack_segment(make_segment(*args, **kwargs)))


RAY_TESTS = ("test_distributed", "test_ray_")  # parts of the names of files whose tests start Ray


class OneRay(LoadFileScheduling):
    """Gives each parallel worker (`make test`) a file at a time, and all files whose tests start Ray to one worker.

    Two Rays at once exceed Ray's timeouts on a small machine.
    """

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return "ray" if any(name in file for name in RAY_TESTS) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return OneRay(config, log)


def pytest_collection_modifyitems(items):
    """Put the long tests first: those that start Ray, then the other integration tests."""
    items.sort(
        key=lambda item: (not any(name in item.path.name for name in RAY_TESTS), "integration" not in item.path.parts)
    )


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def pem(tmp_path_factory):
    """``pem(name)`` is the path of a file that the commands in docs/security.md make, such as shard.key.

    The files under ``stranger/`` are signed by another authority.
    """
    text = (ROOT / "docs" / "security.md").read_text()
    commands = text.split("```sh\n", 1)[1].split("```", 1)[0]
    folder = tmp_path_factory.mktemp("pem")
    (folder / "stranger").mkdir()
    for place in (folder, folder / "stranger"):
        subprocess.run(["bash", "-e"], input=commands, cwd=place, check=True, capture_output=True, text=True)
    return lambda name: str(folder / name)
