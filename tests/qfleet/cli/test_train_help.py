"""`qfleet train --help`: one screen of the most used flags, and every flag with its default as it can be written."""

from __future__ import annotations

import dataclasses
import re
import shlex

import pytest

from qfleet.cli import main as cli
from qfleet.cli.flags import flag_names, parse
from qfleet.cli.train import TrainCommand
from qfleet.cli.train_help import FIRST_SCREEN, help_text
from qfleet.config import TrainConfig
from qfleet.presets import PRESETS, preset


def command(name):
    base = preset(name)
    return TrainCommand(**{f.name: getattr(base, f.name) for f in dataclasses.fields(TrainConfig)})


def help_output(capsys, *words):
    assert cli.main(["train", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", PRESETS)
def test_the_first_screen_fits_a_terminal_and_shows_the_presets_values(capsys, name):
    out = help_output(capsys, name, "--help")
    lines = out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert f"--env.id {preset(name).env.id} " in out
    assert f"{name} (shown)" in lines[1]
    assert len(FIRST_SCREEN) == 10


def test_help_shows_the_flags_that_are_written_and_the_preset_that_they_select(capsys):
    out = help_output(capsys, "--env.id", "Acrobot-v1", "--actors.count", "3", "--help")
    assert "atari, generic (shown)\n" in out
    assert "--env.id Acrobot-v1 " in out
    assert "--actors.count 3 " in out
    assert "values of preset atari\n" in help_output(capsys, "--help", "env", "--env.id", "ALE/Breakout-v5")


def test_help_of_a_group_lists_only_its_flags(capsys):
    out = help_output(capsys, "cartpole", "--help", "learner")
    assert out.startswith("learner: flags, with the values of preset cartpole\n")
    flags = [line.split()[0] for line in out.splitlines() if line.startswith("  --")]
    assert all(flag.startswith("--learner.") for flag in flags)
    assert len(flags) == len(dataclasses.fields(preset("cartpole").learner))
    assert "--learner.batch-size 64\n      Items per batch." in out
    assert "one of: huber, squared" in out
    assert "--learner.double, --learner.no-double (default: on)\n" in out
    assert "--max-minutes" in help_output(capsys, "--help", "run")
    assert help_output(capsys, "cartpole", "--help=learner") == out


def test_an_unknown_group_is_a_one_line_error(capsys):
    assert cli.main(["train", "--help", "lerner"]) == 2
    assert capsys.readouterr().err == "qfleet: --help lerner: unknown group: did you mean 'learner'?\n"


@pytest.mark.parametrize("name", PRESETS)
def test_all_lists_every_flag_and_its_defaults_parse_to_the_same_configuration(name):
    base = command(name)
    lines = [line.strip() for line in help_text(base, "all", name).splitlines() if line.startswith("  --")]
    known = set(flag_names(TrainCommand))
    assert {line.split()[0].rstrip(",") for line in lines} <= known
    assert len(lines) == len({word.replace("no-", "") for word in known})
    both = [m for line in lines if (m := re.fullmatch(r"(--\S+), (--\S+) \(default: (on|off)\)", line))]
    assert {word for m in both for word in m.groups()[:2]} <= known
    switches = [m[1] if m[3] == "on" else m[2] for m in both]
    valued = [x for x in lines if "(default: " not in x and x.split()[1] not in ("TEXT", "NUMBER", "DIRECTORY")]
    words = [word for line in [*valued, *switches] for word in shlex.split(line)]
    other = command("pong" if name != "pong" else "generic")
    selector = dataclasses.replace(other.replay.selector, alpha=base.replay.selector.alpha)  # None is not written
    other = dataclasses.replace(other, replay=dataclasses.replace(other.replay, selector=selector))
    assert parse(TrainCommand, words, other) == base
