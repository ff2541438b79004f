"""The names that the package `qfleet` exports."""

from __future__ import annotations

import pytest

import qfleet


def test_the_package_exports_exactly_its_public_names():
    assert dir(qfleet) == sorted(qfleet.__all__)
    for name in qfleet.__all__:
        assert getattr(qfleet, name).__module__.startswith("qfleet."), name
    with pytest.raises(AttributeError, match="module 'qfleet' has no attribute 'trian'"):
        qfleet.trian  # noqa: B018
