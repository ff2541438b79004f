"""Bad input gives exit status 2 and one line that says what is wrong, where, and what to write; nothing is started."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import socket
from pathlib import Path

import pytest

from qfleet.api import train
from qfleet.cli import main as cli
from qfleet.config import from_yaml, to_yaml
from qfleet.presets import PRESETS, preset
from qfleet.run.directory import RunDir
from rl.errors import BadInput
from rl.networks import NetworkConfig
from tests.qfleet.configs import short


def cases():
    """{title: (arguments, line)} of mistakes.txt."""
    text = (Path(__file__).parent / "mistakes.txt").read_text()
    blocks = re.findall(r"^# (.*)\n\$ qfleet (.*)\n(qfleet: .*)$", text, re.MULTILINE)
    assert len(blocks) == text.count("\n$ ") == len({title for title, *_ in blocks})
    return {title: (shlex.split(command), line) for title, command, line in blocks}


CASES = cases()


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_status_2(case, places, capsys, monkeypatch):
    def started(*args, **kwargs):
        raise AssertionError("something was started")

    monkeypatch.setattr("qfleet.cluster.supervisor.run_distributed", started)
    monkeypatch.setattr("qfleet.api.run_serial", started)
    monkeypatch.setattr("qfleet.cluster.jobs.HERE", "http://127.0.0.1:1")
    args, line = CASES[case]
    paths = re.compile("|".join(rf"\b{name}\b" for name in places))
    assert cli.main([paths.sub(lambda m: str(places[m[0]]), word) for word in args]) == 2
    printed = capsys.readouterr()
    error = printed.err
    for name, path in places.items():
        error = error.replace(str(path), name)
    assert error == line + "\n"
    assert "Traceback" not in printed.out


def test_an_address_without_a_ray_is_rejected_within_10_seconds(tmp_path, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    assert cli.main(["train", "cartpole", "--address", address, "--run-dir", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert "no Ray answers" in error
    assert address in error
    assert not (tmp_path / "r").exists()


def test_only_one_process_at_a_time_trains_in_a_directory(tmp_path, capsys):
    train(short(max_steps=300), run_dir=tmp_path / "run", serial=True)
    other = RunDir.open(tmp_path / "run")
    other.lock()
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--serial", "--max-steps", "600"]) == 2
    assert "another process" in capsys.readouterr().err
    other.unlock()
    with pytest.raises(BadInput, match="network.hidden") as refused:
        train(short(network=NetworkConfig(kind="mlp", hidden=(3,))), resume=tmp_path / "run", serial=True)
    assert refused.value  # the error is still referenced, and the lock is free nevertheless
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--serial", "--max-steps", "600"]) == 0


def test_flags_override_the_preset_of_an_atari_game(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("qfleet.cli.train.train", lambda config, **_: seen.append(config) or {"interrupted_by": 2})
    monkeypatch.setattr("qfleet.cli.train.print_summary", lambda summary: None)
    assert cli.main(["train", "--env.id", "ALE/Pong-v5", "--env.sticky", "0.25", "--actors.count", "3"]) == 130
    (config,) = seen
    assert (config.env.id, config.env.sticky, config.actors.count) == ("ALE/Pong-v5", 0.25, 3)
    assert config.network.kind == "nature"


def test_an_unknown_setting_in_a_config_file_names_the_nearest(tmp_path):
    text = to_yaml(preset("pong")).replace("n_step", "n_steps")
    with pytest.raises(BadInput, match=r"config.yaml: returns: unknown setting 'n_steps'.*'n_step'"):
        from_yaml(text, "config.yaml")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("alpha: 0.3", "alpha: 2", "replay.selector.alpha is 2: write an exponent from 0 to 1"),
        ("start: 0.4", "start: 4", "beta.start is 4: write an exponent from 0 to 1"),
        ("certificate: ''", "certificate: a.pem", "is given without replay.security.key: write both"),
        (
            "center: true",
            "hidden: [1]",
            "network.layer_norm needs layers of at least 2 units: write a larger network.hid",
        ),
        ("kwargs: '{}'", "kwargs: '{\"max_episode_steps\": 9}'", "write env.max_episode_steps to limit the length"),
        ("  - - 0\n    - 1.0\n", "  - - 0\n", "exploration: knots holds [0]: expected 2 values"),
        ("batch_size: 64", "batch_size: 65537", "learner.batch_size is 65_537: write at most 65_536"),
    ],
)
def test_a_bad_value_in_a_config_file_is_reported_with_its_path(old, new, words):
    text = to_yaml(preset("pong"))
    assert text.count(old) == 1
    with pytest.raises(BadInput) as error:
        from_yaml(text.replace(old, new), "run/config.yaml")
    assert str(error.value).startswith("run/config.yaml: ")
    assert words in str(error.value)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_config_yaml(name):
    assert from_yaml(to_yaml(preset(name)), "config.yaml") == preset(name)


def test_without_a_command_the_usage_is_printed(capsys):
    assert cli.main([]) == 0
    assert capsys.readouterr().out.startswith("usage: qfleet COMMAND")


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"qfleet {importlib.metadata.version('qfleet')}\n"
