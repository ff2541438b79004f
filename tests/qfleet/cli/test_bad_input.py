"""Bad input gives exit status 2 and one line that says what is wrong, where, and what to write; nothing is started."""

from __future__ import annotations

import socket

import pytest

from qfleet.api import train
from qfleet.cli import main as cli
from qfleet.config import from_yaml, to_yaml
from qfleet.presets import PRESETS, preset
from qfleet.run.directory import RunDir
from rl.errors import BadInput
from rl.networks import NetworkConfig
from tests.qfleet.configs import short

CASES = {
    "unknown command": (["trian"], "'train'"),
    "unknown preset": (["train", "pongg"], "'pong'? (for another environment write --env.id)"),
    "unknown environment": (["train", "--env.id", "CartPol-v1"], "CartPole-v"),
    "unknown flag": (["train", "--actors.cuont", "3"], "--actors.count"),
    "unknown switch": (["train", "--learner.no-dubble"], "--learner.no-double"),
    "stray word": (["train", "pong", "fast"], "'fast'"),
    "not a number": (["train", "--actors.count", "many"], "--actors.count"),
    "missing value": (["train", "--seed"], "--seed"),
    "bad choice": (["train", "--network.kind", "resnet"], "'resnet'"),
    "continuous actions": (["train", "--env.id", "Pendulum-v1"], "Discrete action space"),
    "dict observations": (["train", "--env.id", "Blackjack-v1"], "Box or Discrete"),
    "zero actors": (["train", "--actors.count", "0"], "at least 1"),
    "negative shards": (["train", "--replay.shards", "-1"], "at least 1"),
    "zero steps": (["train", "--max-steps", "0"], "--max-steps is 0: write at least 1 agent step"),
    "negative minutes": (["train", "--max-minutes", "-3"], "--max-minutes is -3: write 0 (no limit) or more"),
    "a goal that is not a number": (
        ["train", "--evaluation.goal", "nan"],
        "--evaluation.goal is nan: write a finite number",
    ),
    "an infinite ratio": (
        ["train", "--replay.limiter.samples-per-insert", "inf"],
        "--replay.limiter.samples-per-insert",
    ),
    "a learning rate that is not a number": (["train", "--learner.learning-rate", "nan"], "--learner.learning-rate"),
    "a seed too large": (["train", "--seed", "99999999999999999999999"], "--seed"),
    "bfloat16 actors without pixels": (
        ["train", "cartpole", "--actors.precision", "bfloat16"],
        "--actors.precision float32",
    ),
    "bfloat16 actors without convolutions": (
        ["train", "pong", "--network.kind", "mlp", "--actors.precision", "bfloat16"],
        "--actors.precision float32",
    ),
    "a run directory in /proc": (["train", "cartpole", "--run-dir", "/proc/self"], "/proc/self"),
    "an unknown image format": (["plot", "RUN", "--to", "curves.xyz"], "curves.xyz"),
    "a negative seed": (["eval", "RUN", "--seed", "-1"], "--seed"),
    "batch above capacity": (["train", "cartpole", "--learner.batch-size", "50001"], "at most 50000"),
    "batch above a request": (["train", "pong", "--learner.batch-size", "65537"], "at most 65536"),
    "min_size above capacity": (["train", "cartpole", "--replay.limiter.min-size", "60000"], "at most 50000"),
    "a capacity beyond memory": (["train", "cartpole", "--replay.capacity", "100000000000000"], "at most 100000000"),
    "memory for index rows only": (["train", "cartpole", "--replay.capacity-bytes", "2000000"], "alone take 2050000"),
    "memory below 0": (["train", "cartpole", "--replay.capacity-bytes", "-1"], "0 for no bound"),
    "segments above the limit of a shard": (["train", "pong", "--actors.segment-items", "9994"], "write at most 9993"),
    "a token file that is missing": (
        ["train", "cartpole", "--replay.security.token-file", "NOWHERE"],
        "cannot be read",
    ),
    "a certificate without an authority": (
        ["train", "pong", "--replay.security.certificate", "a.pem", "--replay.security.key", "a.key"],
        "must be set together",
    ),
    "an epsilon above 1": (["train", "cartpole", "--exploration.knots", "0", "1.5"], "from 0 to 1"),
    "a ready timeout of 0": (["train", "cartpole", "--ready-timeout", "0"], "--ready-timeout is 0"),
    "an empty run directory": (["train", "cartpole", "--run-dir", ""], "is '' or '.'"),
    "a benchmark without items": (["bench", "replay", "--items", "0"], "--items is 0"),
    "a benchmark without actors": (["bench", "actors", "--counts", "0"], "from 1 on"),
    "status of a missing run": (["status", "NOWHERE"], "neither a directory here"),
    "impossible ratio": (["train", "cartpole", "--replay.limiter.slack", "10"], "at least"),
    "a CNN on CartPole": (["train", "cartpole", "--network.kind", "nature"], "--network.kind mlp"),
    "no such device": (["train", "cartpole", "--learner.device", "cuda:7"], "cuda:7"),
    "no device at all": (["train", "cartpole", "--learner.device", "tpu9"], "tpu9"),
    "resume of a missing run": (["train", "--resume", "NOWHERE"], "is not a directory"),
    "resume of an empty directory": (["train", "--resume", "EMPTY"], "config.yaml is missing"),
    "resume without checkpoint": (["train", "--resume", "FRESH"], "no complete checkpoint"),
    "resume of another environment": (
        ["train", "--resume", "RUN", "--env.id", "Acrobot-v1"],
        "--env.id is 'Acrobot-v1', but",
    ),
    "resume of another network": (
        ["train", "--resume", "RUN", "--network.hidden", "32"],
        "--network.hidden is (32,), but",
    ),
    "resume with a preset": (["train", "pong", "--resume", "RUN"], "leave out 'pong'"),
    "run directory in use": (["train", "cartpole", "--run-dir", "RUN"], "already holds a run"),
    "run directory is a file": (["train", "cartpole", "--run-dir", "RUN/config.yaml"], "file"),
    "serial on a cluster": (["train", "cartpole", "--serial", "--address", "auto"], "cannot be combined"),
    "address without a port": (["train", "cartpole", "--address", "nonsense"], "host:port"),
    "eval of a missing run": (["eval", "NOWHERE"], "is not a directory"),
    "eval of another network": (["eval", "OTHER"], "another network"),
    "eval without episodes": (["eval", "RUN", "--episodes", "0"], "--episodes"),
    "plot of a missing run": (["plot", "NOWHERE"], "metrics.csv"),
    "unknown benchmark": (["bench", "pipelin"], "'pipeline'"),
    "an unknown system to compare with": (["bench", "replay", "--vs", "acme"], "acme"),
    "a benchmark of empty batches": (["bench", "replay", "--batch-sizes", "0"], "--batch-sizes"),
    "a benchmark without shards": (["bench", "shards", "--shards", "0"], "numbers of shards from 1 on"),
    "a benchmark without writers": (["bench", "shards", "--writers", "1", "-2"], "numbers of writers from 1 on"),
    "a benchmark of 0 seconds": (["bench", "shards", "--seconds", "0"], "--seconds is 0"),
    "a picture in a missing directory": (
        ["bench", "shards", "--to", "NOWHERE/shards.png"],
        "a directory that is there",
    ),
    "a benchmark's picture in another format": (["bench", "soak", "--to", "soak.jpg"], "a .png file"),
    "a soak benchmark that is too short": (["bench", "soak", "--minutes", "1"], "at least 10 readings"),
    "a benchmark of an empty shard": (["bench", "memory", "--items", "0"], "--items is 0"),
    "sizing without actors": (["bench", "sizing", "--actors", "0"], "numbers of actors from 1 on"),
    "sizing without steps": (["bench", "sizing", "--steps", "0"], "--steps is 0"),
    "an exponent of the importance weights in train": (
        ["train", "--beta.start", "2"],
        "--beta.start is 2: write an exponent from 0 to 1",
    ),
    "a priority exponent in train": (
        ["train", "--replay.selector.alpha", "2"],
        " --replay.selector.alpha is 2: write an exponent from 0 to 1",
    ),
    "a priority exponent of a shard": (
        ["replay", "serve", "--selector.alpha", "2"],
        " --selector.alpha is 2: write an exponent from 0 to 1",
    ),
    "a step limit in the environment's arguments in train": (
        ["train", "cartpole", "--env.kwargs", '{"max_episode_steps": 9}'],
        "--env.kwargs contains max_episode_steps: leave it out (write --env.max-episode-steps to limit the length of",
    ),
    "a step limit in the environment's arguments in classic": (
        ["classic", "q-learning", "--env-kwargs", '{"max_episode_steps": 9}'],
        "--env-kwargs contains max_episode_steps: leave it out (write --max-episode-steps to limit the length of",
    ),
    "a certificate without a key in train": (
        ["train", "cartpole", "--replay.security.certificate", "a.pem"],
        " --replay.security.certificate is given without --replay.security.key: write both",
    ),
    "a certificate without a key of a shard": (
        ["replay", "serve", "--security.certificate", "a.pem"],
        " --security.certificate is given without --security.key: write both",
    ),
    "a client's token file that is missing": (
        ["replay", "info", "localhost:1", "--security.token-file", "NOWHERE"],
        " --security.token-file ",
    ),
    "a shard on all addresses without a token": (
        ["replay", "serve", "--host", "0.0.0.0", "--port", "0"],
        "or write --security.no-require-token",
    ),
    "too few replay shards": (["train", "--replay.capacity", "100000000000000"], "or more --replay.shards"),
    "as many elites as samples": (
        ["classic", "continuous", "--elites", "50"],
        "--elites is 50: write at most --samples, which is",
    ),
    "an unknown environment in classic": (
        ["classic", "q-learning", "--env", "FrozenLak-v1"],
        " --env 'FrozenLak-v1' is not",
    ),
    "an unknown environment of a dataset": (
        ["classic", "make-dataset", "--env", "BabyAI-Nothing-v0"],
        " --env 'BabyAI-Nothing-v0' is not",
    ),
    "centering without pixels": (["train", "cartpole", "--network.center"], "write --network.no-center"),
    "unknown replay command": (["replay", "serv"], "'serve'"),
    "a port above 65535": (["replay", "serve", "--port", "70000"], "0 to 65535"),
    "frames of dtype object": (["replay", "serve", "--dtype", "object"], "uint8 or float32"),
    "frames of an unknown dtype": (["replay", "serve", "--dtype", "pixels"], "uint8 or float32"),
    "snapshots without a directory": (["replay", "serve", "--snapshot-minutes", "1"], "--snapshots"),
    "snapshots in /proc": (["replay", "serve", "--port", "0", "--snapshots", "/proc/self"], "/proc/self"),
    "a snapshot without an address": (["replay", "snapshot"], "host:port"),
    "a shard's address without a port": (["replay", "snapshot", "localhost"], "'localhost'"),
    "a negative time between snapshots": (
        ["train", "cartpole", "--replay.snapshot-minutes", "-1"],
        "--replay.snapshot-minutes",
    ),
    "snapshots of a serial run": (
        ["train", "cartpole", "--serial", "--replay.snapshot-minutes", "1"],
        "needs a run on Ray, but this run is serial or --offline",
    ),
    "a shard without capacity": (["replay", "serve", "--capacity", "0"], "--capacity is 0"),
    "a shard without memory": (["replay", "serve", "--capacity-bytes", "1000"], "--capacity-bytes is 1000"),
    "a frame side of 0": (["replay", "serve", "--frame-shape", "0", "84"], "at least 1"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_status_2(case, places, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("training was started")

    monkeypatch.setattr("qfleet.cluster.supervisor.run_distributed", fail)
    monkeypatch.setattr("qfleet.api.run_serial", fail)
    args, words = CASES[case]
    args = [a.replace(k, str(v)) if a.startswith(k) else a for a in args for k, v in [_place(a, places)]]
    assert cli.main(args) == 2
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("qfleet: ")
    assert words in lines[0]
    assert "Traceback" not in printed.out + printed.err


def _place(word, places):
    return next(((k, v) for k, v in places.items() if word.startswith(k)), ("", ""))


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
        ("batch_size: 64", "batch_size: 65537", "learner.batch_size is 65537: write at most 65536"),
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
