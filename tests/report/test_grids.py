"""Maps of values: what is not known stays blank, and all panels share one scale."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from report import learning
from report.grids import Panel, plot_surface, plot_values


@pytest.fixture
def drawn(monkeypatch):
    """The figures drawn, which are not forgotten."""
    kept = []
    monkeypatch.setattr(learning.plt, "close", kept.append)
    yield kept
    monkeypatch.undo()
    plt.close("all")


def panel(values):
    values = np.asarray(values, float)
    return Panel("p", values, np.full(values.shape, ">"), np.full(values.shape, "S"))


def test_all_panels_share_one_scale_of_what_is_known(tmp_path, drawn):
    plot_values([panel([[1.0, np.nan]]), panel([[-3.0, 0.5]])], "t", tmp_path / "v.png")
    (figure,) = drawn
    images = [image for axis in figure.axes for image in axis.images]
    assert [image.get_clim() for image in images] == [(-3.0, 1.0)] * 2
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert [t for t in texts if t not in (">", "S")] == ["1.00", "", "-3.00", "0.50"]


def test_where_nothing_is_known_a_map_is_drawn_all_the_same(tmp_path):
    assert plot_values([panel([[np.nan, np.nan]])], "t", tmp_path / "v.png").is_file()


def test_a_surface_of_actions_has_a_colour_for_each_and_one_of_numbers_a_scale(tmp_path, drawn):
    layers = [("action", np.array([[0, 2], [1, 0]])), ("value", np.array([[0.0, 2.5], [1.0, 0.0]]))]
    plot_surface(np.arange(2), np.arange(2), layers, ("x", "y"), "t", tmp_path / "s.png")
    actions, numbers = (axis.collections[0] for axis in drawn[0].axes[:2])
    assert (actions.get_cmap().N, numbers.get_cmap().N) == (3, 256)
