"""The package's own names."""

from __future__ import annotations

import pytest

import qfleet


def test_every_name_is_there_and_no_other_is_listed():
    assert dir(qfleet) == sorted(qfleet.__all__)
    for name in qfleet.__all__:
        assert getattr(qfleet, name).__module__.startswith("qfleet."), name
    with pytest.raises(AttributeError, match="module 'qfleet' has no attribute 'trian'"):
        qfleet.trian  # noqa: B018
