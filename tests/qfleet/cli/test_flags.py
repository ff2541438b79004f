"""Flags made from dataclasses, and the messages for wrong flags."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import tyro

from qfleet.cli.flags import flag_names, flag_value, parse
from rl.errors import BadInput


@dataclass(frozen=True)
class Inner:
    learning_rate: float = 0.1
    """Step size."""
    double: bool = True
    """Double DQN."""


@dataclass(frozen=True)
class Outer:
    """A command."""

    learner: Inner = field(default_factory=Inner)
    """Learner."""
    max_steps: int = 5
    """Steps."""
    json: bool = False
    """JSON."""


@dataclass(frozen=True)
class Named:
    """A command over a run."""

    run: tyro.conf.Positional[str]
    """The run."""
    shards: int
    """Shards."""


def test_every_field_is_one_flag_and_a_boolean_two():
    assert flag_names(Outer) == [
        *("--learner.learning-rate", "--learner.double", "--learner.no-double"),
        *("--max-steps", "--json", "--no-json"),
    ]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], Outer()),
        (["--learner.no-double", "--max-steps", "7"], Outer(Inner(double=False), 7)),
        (["--learner.learning-rate=0.5", "--json"], Outer(Inner(0.5), json=True)),
    ],
)
def test_flags_fill_the_dataclass(args, expected):
    assert parse(Outer, args, Outer()) == expected


@pytest.mark.parametrize(
    ("cls", "args", "message"),
    [
        (
            Outer,
            ["--learner.lerning-rate", "1"],
            "unknown flag --learner.lerning-rate: did you mean",
        ),
        (Outer, ["--learner.lerning-rate=1"], "did you mean --learner.learning-rate?"),
        (Outer, ["--zzz"], "unknown flag --zzz: see qfleet x --help"),
        (Outer, ["seven"], "unexpected word 'seven'"),
        (Outer, ["--max-steps", "seven"], "--max-steps"),
        (Named, [], "missing RUN, --shards"),
        (Named, ["r"], "missing --shards"),
    ],
)
def test_an_error_is_one_line(cls, args, message):
    with pytest.raises(BadInput) as caught:
        parse(cls, args, prog="qfleet x")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_help_is_printed_and_exits_with_status_0(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Outer, ["--help"], prog="qfleet x")
    assert not stop.value.code
    assert "Step size." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "value"),
    [
        (["--env.id", "CartPole-v1"], "CartPole-v1"),
        (["--seed", "3", "--env.id=ALE/Pong-v5"], "ALE/Pong-v5"),
        (["--env.id="], ""),
        (["--env.id"], None),
        (["--env.idx", "3"], None),
        ([], None),
    ],
)
def test_flag_value_reads_unparsed_arguments(args, value):
    assert flag_value(args, "--env.id") == value
