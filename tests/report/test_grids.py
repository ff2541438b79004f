"""Plots of values: unknown values stay blank, and all panels share one scale."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from report import learning
from report.grids import Panel, plot_surface, plot_values


@pytest.fixture
def drawn(monkeypatch):
    """The drawn figures, which are not closed."""
    kept = []
    monkeypatch.setattr(learning.plt, "close", kept.append)
    yield kept
    monkeypatch.undo()
    plt.close("all")


def panel(values):
    values = np.asarray(values, float)
    return Panel("p", values, np.full(values.shape, ">"), np.full(values.shape, "S"))


def test_all_panels_share_the_scale_of_the_known_values(tmp_path, drawn):
    plot_values([panel([[1.0, np.nan]]), panel([[-3.0, 0.5]])], "t", tmp_path / "v.png")
    (figure,) = drawn
    images = [image for axis in figure.axes for image in axis.images]
    assert [image.get_clim() for image in images] == [(-3.0, 1.0)] * 2
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert [t for t in texts if t not in (">", "S")] == ["1.00", "", "-3.00", "0.50"]


def test_a_panel_without_known_values_is_drawn(tmp_path):
    assert plot_values([panel([[np.nan, np.nan]])], "t", tmp_path / "v.png").is_file()


def test_a_surface_has_one_colour_per_action_and_a_continuous_scale_for_numbers(tmp_path, drawn):
    layers = [("action", np.array([[0, 2], [1, 0]])), ("value", np.array([[0.0, 2.5], [1.0, 0.0]]))]
    plot_surface(np.arange(2), np.arange(2), layers, ("x", "y"), "t", tmp_path / "s.png")
    actions, numbers = (axis.collections[0] for axis in drawn[0].axes[:2])
    assert (actions.get_cmap().N, numbers.get_cmap().N) == (3, 256)
