"""Learning curves of runs: the columns that are drawn, and directories that are not runs."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from report import curves
from report.curves import plot_runs
from rl.errors import BadInput


def write(folder, metrics, evaluations):
    folder.mkdir()
    (folder / "metrics.csv").write_text(metrics)
    (folder / "eval.csv").write_text(evaluations)
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """A function that returns the lines of the last picture, which is not closed."""
    kept = []
    monkeypatch.setattr(curves.plt, "close", kept.append)
    yield lambda: [[(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in a.lines] for a in kept[-1].axes]
    monkeypatch.undo()
    plt.close("all")


METRICS = "wall_seconds,agent_steps,updates,greedy_return\n60,{0},10,nan\n120,{1},20,15.5\n"


def test_returns_over_minutes_and_over_agent_steps(tmp_path, drawn):
    run = write(
        tmp_path / "run", METRICS.format(100, 200), "wall_seconds,agent_steps,updates,mean_return\n90,150,15,12.5\n"
    )
    assert plot_runs([run], tmp_path / "deep" / "c.png").is_file()
    (training, evaluated), (training_by_steps, evaluated_by_steps) = drawn()
    assert (training[0], training[1][1]) == ([1.0, 2.0], 15.5)
    assert training[1][0] != training[1][0]  # NaN: no greedy episode yet
    assert evaluated == ([1.5], [12.5])
    assert training_by_steps[0] == [100.0, 200.0]
    assert evaluated_by_steps == ([150.0], [12.5])


def test_returns_of_offline_runs_are_over_updates(tmp_path, drawn):
    run = write(tmp_path / "run", METRICS.format(0, 0), "wall_seconds,agent_steps,updates,mean_return\n90,0,15,12.5\n")
    plot_runs([run], tmp_path / "c.png")
    _, (training, evaluated) = drawn()
    assert training[0] == [10.0, 20.0]
    assert evaluated == ([15.0], [12.5])


def test_a_run_without_rows_is_drawn(tmp_path):
    empty = write(tmp_path / "run", "", "")
    assert plot_runs([empty], tmp_path / "c.png").is_file()


def test_a_directory_that_is_not_a_run_is_rejected(tmp_path):
    with pytest.raises(BadInput, match=r"is not a run's directory \(metrics.csv is missing\): write the directory"):
        plot_runs([tmp_path], tmp_path / "c.png")
