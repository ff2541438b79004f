"""Presets: their names in the usage, and which have a goal."""

from __future__ import annotations

import re

import pytest

from qfleet.cli.main import COMMANDS, USAGE
from qfleet.presets import PRESETS, preset
from rl.errors import BadInput

BY_ENVIRONMENT = {"atari", "generic"}  # chosen by --env.id when no preset is given


def test_the_usage_lists_the_presets_for_users():
    (named,) = re.findall(r"presets: (.*)", USAGE)
    assert named.split(", ")[0] == "pong (default)"
    assert {name.split()[0] for name in named.split(", ")} == PRESETS.keys() - BY_ENVIRONMENT


def test_the_usage_lists_every_command():
    assert set(re.findall(r"^  qfleet (\w+)", USAGE, re.M)) == COMMANDS.keys()


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(BadInput, match="unknown preset 'cartpol': did you mean 'cartpole'"):
        preset("cartpol")


def test_only_presets_for_one_environment_have_a_goal():
    goals = {name: preset(name).evaluation.goal for name in PRESETS}
    assert {name for name, goal in goals.items() if goal == float("inf")} == BY_ENVIRONMENT
