"""Skips the cluster tests where they cannot run."""

from __future__ import annotations

import pytest

from tests.cluster.requirements import missing


@pytest.fixture(scope="session", autouse=True)
def _possible():
    if reason := missing():
        pytest.skip(f"cluster tests cannot run here: {reason}")
