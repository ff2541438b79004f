"""`qfleet train --help`: a screen of what people use first, and every flag with a default that can be written."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from qfleet.cli import main as cli
from qfleet.cli.flags import flag_names, parse
from qfleet.cli.train import TrainCommand
from qfleet.cli.train_help import FIRST, screen
from qfleet.config import TrainConfig
from qfleet.presets import PRESETS, preset


def command(name):
    base = preset(name)
    return TrainCommand(**{f.name: getattr(base, f.name) for f in dataclasses.fields(TrainConfig)})


def told(capsys, *words):
    assert cli.main(["train", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", PRESETS)
def test_the_first_screen_fits_a_terminal_and_has_the_presets_own_values(capsys, name):
    out = told(capsys, name, "--help")
    lines = out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert f"--env.id {preset(name).env.id}" in out
    assert len(FIRST) == 10


def test_a_group_has_its_flags_alone(capsys):
    out = told(capsys, "cartpole", "--help", "learner")
    assert out.startswith("learner, each flag as it is by default:\n")
    flags = [line.split()[0] for line in out.splitlines() if line.startswith("  --")]
    assert all(flag.startswith("--learner.") for flag in flags)
    assert len(flags) == len(dataclasses.fields(preset("cartpole").learner))
    assert "--learner.batch-size 64\n      Items per batch." in out
    assert "one of: huber, squared" in out
    assert "--max-minutes" in told(capsys, "--help", "run")


def test_no_group_of_that_name_is_one_line(capsys):
    assert cli.main(["train", "--help", "lerner"]) == 2
    assert capsys.readouterr().err == "qfleet: --help lerner: no such group: did you mean 'learner'?\n"


@pytest.mark.parametrize("name", PRESETS)
def test_all_names_every_flag_with_a_default_that_gives_the_same_configuration(name):
    base = command(name)
    lines = [line.strip() for line in screen(base, "all").splitlines() if line.startswith("  --")]
    known = set(flag_names(TrainCommand))
    assert {line.split()[0] for line in lines} <= known
    assert len(lines) == len({word.replace("no-", "") for word in known})
    switches = [line for line in lines if " " not in line]
    valued = [line for line in lines if " " in line and line.split()[1] not in ("TEXT", "NUMBER", "DIRECTORY")]
    words = [word for line in [*valued, *switches] for word in shlex.split(line)]
    other = command("pong" if name != "pong" else "generic")
    selector = dataclasses.replace(other.replay.selector, alpha=base.replay.selector.alpha)  # None is not written
    other = dataclasses.replace(other, replay=dataclasses.replace(other.replay, selector=selector))
    assert parse(TrainCommand, words, other) == base
