"""The commands `qfleet ...` for clusters, in deploy/, README.md and docs/, have flags that exist."""

from __future__ import annotations

import re
import shlex

import pytest

from qfleet.cli.main import main
from tests.conftest import ROOT

UNKNOWN = "--no-such-flag"


def commands():
    """{command: a file with it}, for each `qfleet COMMAND ...` in the comments of the cluster files and on the pages.

    The cluster files are alike, so their commands are listed once, with the name of one of them.
    """
    found = {}
    pages = [ROOT / "docs" / "cluster.md", ROOT / "docs" / "jobs.md", ROOT / "README.md"]
    for path in [*sorted((ROOT / "deploy").glob("*.yaml")), *pages]:
        text = path.read_text()
        if path.name == "README.md":
            text = text.partition("## On a cluster")[2].partition("\n## ")[0]
        block = re.findall(r"^(?:#  | {7}| {4}|)\s*(?:\$ )?(qfleet .+)$", text, re.M)  # in comments and blocks
        inline = re.findall(r"`(qfleet \w+ [^`]*)`", text)
        for command in (*block, *inline):
            command = re.split(r" {2,}#", " ".join(command.split("\n")))[0]
            found[re.sub(r"deploy/\w+\.yaml", "deploy/local.yaml", command)] = path.name
    return found


def with_an_unknown_flag(command):
    """The words of ``command`` with an unknown flag, on each side of `--` if there is one."""
    words = [word for word in shlex.split(command)[1:] if word != "..."]
    if words[0] in ("status", "scale") and "--cluster" in words:  # the other flags are parsed on the cluster
        at = words.index("--cluster")
        del words[at : at + 2]
        words[1:] = words[1:] or ["pong"]  # `status --cluster FILE` lists all runs
    if "--" not in words:
        return [[*words, UNKNOWN]]
    at = words.index("--")
    return [[*words[:at], UNKNOWN, *words[at:]], [*words, UNKNOWN]]


@pytest.mark.parametrize("command", commands())
def test_all_flags_of_a_documented_command_exist(command, capsys):
    for words in with_an_unknown_flag(command):
        assert main(words) == 2
        assert f"unknown flag {UNKNOWN}" in capsys.readouterr().err  # it is the first unknown one


def test_the_commands_are_found():
    assert {"local.yaml", "cluster.md", "jobs.md", "README.md"} <= set(commands().values())
    assert {"submit", "logs", "status", "scale", "stop", "fetch", "eval"} <= {shlex.split(c)[1] for c in commands()}
