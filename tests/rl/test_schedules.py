"""Schedules: expected values, written out."""

from __future__ import annotations

import pytest

from rl.schedules import decayed, linear, piecewise


def test_linear_reaches_its_end_and_stays():
    assert [linear(1.0, 0.1, 100, t) for t in (0, 50, 100, 1000)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_piecewise_goes_through_its_knots():
    knots = ((0, 1.0), (10, 0.5), (20, 0.0))
    assert [piecewise(knots, t) for t in (-5, 0, 5, 10, 15, 30)] == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.25, 0.0])


def test_linear_has_its_first_value_before_step_0():
    assert linear(0.5, 1.0, 10, -3) == 0.5


def test_decay_stops_at_its_end_and_never_rises_to_it():
    assert [decayed(1.0, 0.2, 0.5, t) for t in (0, 1, 2, 3)] == pytest.approx([1.0, 0.5, 0.25, 0.2])
    assert [decayed(0.1, 0.2, 0.5, t) for t in (0, 1)] == pytest.approx([0.1, 0.1])
