"""The progress display of a run: the plain line, the live table, and `qfleet status`."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from qfleet.cli import main as cli
from qfleet.run.directory import CONFIG, STATUS
from qfleet.run.progress import Progress, plain_line

NAN = math.nan
ROW = {
    "wall_seconds": 61.0,
    "agent_steps": 1_200,
    "frames": 1_200,
    "updates": 300,
    "steps_per_s": 82.4,
    "updates_per_s": 20.6,
    "samples_per_insert": 8.0,
    "epsilon_min": 0.5,
    "train_return": 9.0,
    "greedy_return": NAN,
}
WITHOUT_RATES = {**ROW, "steps_per_s": NAN, "updates_per_s": NAN}  # in the first second


@pytest.mark.parametrize(
    ("row", "left", "line"),
    [
        (ROW, 5068.0, "steps 1,200 (82/s) updates 300 (20.6/s) | at most 1:24:28 left"),
        (ROW, math.inf, "steps 1,200 (82/s) updates 300 (20.6/s) |"),
        (WITHOUT_RATES, NAN, "steps 1,200 (-/s) updates 300 (-/s) |"),
        ({**ROW, "steps_per_s": None}, NAN, "steps 1,200 (-/s) updates 300 (20.6/s) |"),
    ],
)
def test_the_plain_line(row, left, line):
    rates, end = line.split("|")
    assert plain_line(row, "9.0", left) == (
        f"[0:01:01] {rates}samples/insert 8.00 eps 0.5 return 9.0 greedy - eval 9.0{end}"
    )


def test_the_plain_line_shows_the_actors_when_some_are_missing():
    assert " greedy - actors 3 of 6 eval " in plain_line({**ROW, "actors": 3, "actors_wanted": 6}, "9.0", NAN)
    assert "actors" not in plain_line({**ROW, "actors": 6, "actors_wanted": 6}, "9.0", NAN)


@pytest.mark.parametrize(("row", "rates"), [(ROW, ["82", "20.6"]), (WITHOUT_RATES, ["-", "-"])])
def test_the_table_shows_a_dash_for_an_unknown_rate(row, rates):
    out = io.StringIO()
    progress = Progress("a run", {"agent_steps": 50_000}, 475.0)
    table = progress._table(row, "-", math.inf)
    progress.close()
    Console(file=out, width=120).print(table)
    (line,) = [line.split() for line in out.getvalue().splitlines() if "steps/s" in line]
    assert line == ["steps/s", rates[0], "updates/s", rates[1]]


def test_status_of_a_run_without_rates(tmp_path, capsys):
    (tmp_path / CONFIG).write_text("")
    figures = {name: None if isinstance(x, float) and math.isnan(x) else x for name, x in WITHOUT_RATES.items()}
    (tmp_path / STATUS).write_text(json.dumps({**figures, "last_return": None}))
    assert cli.main(["status", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "steps 1,200 (-/s) updates 300 (-/s)" in printed
    assert printed.endswith(" greedy - eval -\n")


def test_an_offline_run_shows_neither_steps_nor_epsilon():
    row = {**ROW, "agent_steps": 0, "steps_per_s": NAN}
    assert plain_line(row, "9.0", 5.0) == "[0:01:01] updates 300 (20.6/s) eval 9.0 at most 0:00:05 left"
    progress, out = Progress("a run", {"updates": 600}, 475.0), io.StringIO()
    Console(file=out, width=120).print(progress._table(row, "9.0", 5.0))
    progress.close()
    shown = out.getvalue()
    assert "updates/s" in shown
    assert not [word for word in ("agent steps", "frames", "epsilon", "training return", "samples") if word in shown]
