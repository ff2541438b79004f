"""Curves over seeds: the moving average, and the range in which all seeds have values."""

from __future__ import annotations

import numpy as np
import pytest

from report.learning import mean_and_range, plot_compared, plot_learning, plot_progress, smoothed


def test_a_smoothed_value_is_the_mean_of_the_last_values():
    assert smoothed(np.array([1.0, 3.0, 8.0, 0.0]), 2).tolist() == [1.0, (1 + 3) / 2, (3 + 8) / 2, (8 + 0) / 2]
    assert smoothed(np.array([1.0, 3.0, 8.0]), 10).tolist() == [1.0, (1 + 3) / 2, (1 + 3 + 8) / 3]
    y = np.array([4.0, 2.0])
    assert smoothed(y, 1).tolist() == y.tolist()


def test_the_curves_end_where_the_first_seed_ends():
    """Two lines, y = x from 0 to 10 and y = 3 x from 2 to 20: over 2 to 10 the mean is 2 x."""
    one, two = np.arange(0.0, 11.0), np.arange(2.0, 21.0)
    at, mean, low, high = mean_and_range([(one, one), (two, 3 * two)], points=5)
    assert at.tolist() == [2, 4, 6, 8, 10]
    assert mean == pytest.approx(2 * at)
    assert low == pytest.approx(at)
    assert high == pytest.approx(3 * at)


def test_seeds_without_a_common_range_are_drawn_at_the_last_start():
    at, mean, _, _ = mean_and_range(
        [(np.array([0.0, 1.0]), np.array([5.0, 7.0])), (np.array([4.0, 6.0]), np.array([1.0, 2.0]))], 3
    )
    assert at.tolist() == [4.0] * 3
    assert mean == pytest.approx([(7 + 1) / 2] * 3)


def test_long_curves_are_smoothed_over_a_fortieth_of_their_length():
    x = np.arange(400.0)
    _, mean, _, _ = mean_and_range([(x, x % 2)], points=50)
    assert mean[5:] == pytest.approx([0.5] * 45)


def test_pictures_are_written_to_the_given_paths(tmp_path):
    columns = {"episode": np.arange(9), "return": np.arange(9.0), "length": np.arange(9)}
    curve = (np.arange(5.0), np.ones(5))
    for picture in (
        plot_learning([columns] * 2, "t", tmp_path / "a" / "learning.png"),
        plot_progress([{"error": curve, "of one seed": curve}, {"error": curve}], "t", tmp_path / "progress.png"),
        plot_compared({"one": [curve], "two": [curve, curve]}, ("x", "y"), "t", tmp_path / "compared.png"),
    ):
        assert picture.read_bytes()[:4] == b"\x89PNG"
