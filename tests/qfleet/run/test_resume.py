"""Resuming a run: which settings may change, and that a rejected change leaves the run untouched."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from dataclasses import replace

import pytest

from qfleet.api import train
from qfleet.cli import main as cli
from qfleet.config import TrainConfig, from_data, to_data, to_yaml
from qfleet.run.directory import HISTORY, RunDir, checkpoint_config
from qfleet.run.resume import changed_settings, resume_run, rules_table, settings
from rl.errors import BadInput, BadSetting
from rl.resuming import MAY, STAYS
from tests.conftest import ROOT
from tests.qfleet.configs import short

OTHER = {  # another valid value for settings that cannot simply be incremented or negated
    "env.id": "CartPole-v1",
    "env.kwargs": '{"mode": 1}',
    "env.sticky": 0.25,
    "network.kind": "nature",
    "network.hidden": (7,),
    "learner.optimizer": "rmsprop",
    "offline": "some/data-v0",
}


@pytest.fixture
def run(tmp_path):
    """A run of an older Qfleet, whose checkpoint holds no configuration."""
    path = shutil.copytree(ROOT / "tests" / "fixtures" / "format-0" / "run", tmp_path / "run")
    (path / "summary.json").write_text("{}")
    return path


@pytest.fixture
def own(run):
    """The same run as the current Qfleet would save it."""
    directory = RunDir.open(run)
    checkpoint = directory.newest_checkpoint()
    state = {**checkpoint.state, "config": to_data(directory.config())}
    directory.checkpoints.save(1305, replace(checkpoint, state=state))
    return run


def files(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != ".lock"}


def with_value(config, path, value):
    head, _, rest = path.partition(".")
    if not rest:
        return replace(config, **{head: value})
    return replace(config, **{head: with_value(getattr(config, head), rest, value)})


def configurations(cls=TrainConfig):
    yield cls
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(f.default_factory):
            yield from configurations(f.default_factory)


@pytest.mark.parametrize("cls", configurations())
def test_every_setting_has_a_rule_and_every_rule_a_setting(cls):
    own = {f.name for f in dataclasses.fields(cls) if not dataclasses.is_dataclass(f.default_factory)}
    assert own == set(cls.on_resume)
    for rule in cls.on_resume.values():
        assert rule in (MAY, STAYS) or len(rule.split()) > 3


def test_a_setting_without_a_rule_raises():
    """Shows that the test above can fail."""

    @dataclasses.dataclass(frozen=True)
    class More(TrainConfig):
        more: int = 1

    with pytest.raises(KeyError, match="more"):
        list(settings(More()))


def test_docs_and_help_contain_the_current_table():
    assert f"```\n{rules_table()}\n```" in (ROOT / "docs" / "resume.md").read_text()
    names = {name for name, _, _ in settings(TrainConfig())}
    assert names == {word.strip(",:") for word in rules_table().split() if word.strip(",:") in names}


def test_changed_settings_lists_each_difference_with_its_rule():
    old = TrainConfig()
    new = replace(old, max_steps=7, replay=replace(old.replay, capacity=90_000, shards=3))
    assert [c[:3] for c in changed_settings(old, new)] == [
        ("replay.capacity", 200_000, 90_000),
        ("replay.shards", 1, 3),
        ("max_steps", 2_000_000, 7),
    ]
    lines = [str(c) for c in changed_settings(old, new)]
    consequence = "transitions restored from snapshots that do not fit are dropped, the oldest first"
    assert lines[0] == f"replay.capacity changes from 200_000 to 90_000: {consequence}"
    assert lines[2] == "max_steps changes from 2_000_000 to 7"


@pytest.mark.parametrize("of", ["run", "own"])
def test_a_resume_applies_the_new_configuration_locks_the_run_and_logs_the_changes(of, request):
    run = request.getfixturevalue(of)
    before = RunDir.open(run).config()
    config = replace(before, max_steps=99_999, returns=replace(before.returns, n_step=before.returns.n_step + 1))
    directory, checkpoint, changes = resume_run(config, run)
    assert checkpoint.state["updates"] == 1305
    assert [c.name for c in changes] == ["returns.n_step", "max_steps"]
    assert RunDir.open(run).config() == config
    assert not (run / "summary.json").exists()
    with pytest.raises(BadInput, match="is being trained by another process"):
        resume_run(config, run)
    directory.unlock()
    directory, _, _ = resume_run(replace(config, max_steps=100_000), run)
    directory.unlock()
    first, second = map(json.loads, (run / HISTORY).read_text().splitlines())
    assert first["changed"]["max_steps"] == [before.max_steps, 99_999]
    assert (first["updates"], first["agent_steps"]) == (1305, checkpoint.state["agent_steps"])
    was = before if of == "own" else config  # for a checkpoint without a configuration, config.yaml's is taken
    assert second["changed"]["max_steps"] == [was.max_steps, 100_000]


@pytest.mark.parametrize("name", [name for name, _, rule in settings(TrainConfig()) if rule == STAYS])
@pytest.mark.parametrize("of", ["run", "own"])
def test_a_setting_that_cannot_change_is_rejected_and_nothing_is_written(of, name, request):
    run = request.getfixturevalue(of)
    config = RunDir.open(run).config()
    (was,) = (value for other, value, _ in settings(config) if other == name)
    value = OTHER[name] if name in OTHER else not was if isinstance(was, bool) else was + 1
    before, other = files(run), {"max_updates": 9} if name == "offline" else {}
    with pytest.raises(BadSetting, match="was trained with .*: leave it out, or start a new run") as refused:
        resume_run(with_value(replace(config, **other), name, value), run)
    assert refused.value.field == name
    assert files(run) == before
    directory, *_ = resume_run(config, run)
    directory.unlock()


def test_a_network_edited_in_config_yaml_is_rejected(run):
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("  - 8\n", "  - 9\n"))
    with pytest.raises(BadInput, match="weights of another network"):
        resume_run(RunDir.open(run).config(), run)


def test_a_missing_config_is_read_from_the_checkpoint(own):
    config = RunDir.open(own).config()
    (own / "config.yaml").unlink()
    assert RunDir.open(own).config() == config
    directory, checkpoint, changes = resume_run(config, own)
    directory.unlock()
    assert (changes, checkpoint_config(checkpoint)) == ([], config)
    assert (own / "config.yaml").is_file()


def test_a_missing_config_without_a_copy_in_the_checkpoint_is_rejected(run):
    (run / "config.yaml").unlink()
    with pytest.raises(BadInput, match=r"config.yaml is missing, and an older Qfleet wrote this run's checkpoints"):
        RunDir.open(run).config()


def test_a_configuration_survives_json():
    config = replace(TrainConfig(), evaluation=replace(TrainConfig().evaluation, goal=float("inf")))
    assert from_data(json.loads(json.dumps(to_data(config))), "here") == config


def test_help_with_resume_ends_with_the_table(run, capsys):
    assert cli.main(["train", "--resume", str(run), "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: qfleet train")
    assert out.rstrip().endswith(rules_table())
    assert cli.main(["train", "--help"]) == 0
    assert rules_table() not in capsys.readouterr().out


def test_a_run_resumed_twice_prints_the_changes_and_logs_each_step_once(tmp_path, capsys):
    """The run is killed in between, after it logged rows beyond the last checkpoint."""
    path = tmp_path / "run"
    train(short(max_steps=600), run_dir=path, serial=True)
    rows = (path / "metrics.csv").read_text()
    last = rows.splitlines()[-1].split(",")
    for most, batch in ((900, 32), (1200, 48)):
        beyond = ["9999.0", "88888", *last[2:3], "77777", *last[4:]]  # agent steps and updates that were lost
        with (path / "metrics.csv").open("a") as file:
            file.write(",".join(beyond) + "\n")
        config = RunDir.open(path).config()
        more = replace(config, max_steps=most, learner=replace(config.learner, batch_size=batch))
        capsys.readouterr()
        assert train(more, resume=path, serial=True)["agent_steps"] >= most
        printed = " ".join(capsys.readouterr().err.split())
        assert f"learner.batch_size changes from {config.learner.batch_size} to {batch}: schedules continue" in printed
        assert f"max_steps changes from {config.max_steps} to {most}" in printed
    with (path / "metrics.csv").open() as file:
        steps = [int(row["agent_steps"]) for row in csv.DictReader(file)]
    assert steps == sorted(steps)
    assert 88888 not in steps
    assert len((path / HISTORY).read_text().splitlines()) == 2


@pytest.mark.parametrize("left", ["checkpoints", "best", "metrics.csv"])
def test_a_new_run_does_not_start_among_the_files_of_another(own, left):
    for path in own.iterdir():
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = files(own)
    with pytest.raises(BadInput, match="already holds a run"):
        RunDir.create(own, TrainConfig())
    assert files(own) == before


def test_an_empty_config_is_read_from_the_checkpoint(own):
    expected = RunDir.open(own).config()
    (own / "config.yaml").write_text("\n")
    assert RunDir.open(own).config() == expected


@pytest.mark.parametrize("content", [b"\xff\xfe", b"env: [", b"env: {id: 3}\n"])
def test_a_damaged_config_is_one_line_that_names_the_copy(own, content, capsys):
    (own / "config.yaml").write_bytes(content)
    before = files(own)
    assert cli.main(["train", "--resume", str(own), "--serial"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("(or delete the file: the newest checkpoint has a copy)")
    assert files(own) == before


def test_a_checkpoint_without_an_optimizer_is_rejected(own):
    """As in best/, from where somebody may copy it."""
    directory = RunDir.open(own)
    checkpoint = directory.newest_checkpoint()
    weights = {"online": checkpoint.arrays["online"]}
    directory.checkpoints.save(2_000, replace(checkpoint, arrays=weights))
    with pytest.raises(BadInput, match=f"newest checkpoint in {own} has no optimizer, target"):
        resume_run(directory.config(), own)


def test_what_cannot_be_written_is_one_line_and_the_lock_is_free(own):
    directory = RunDir.open(own)
    config = directory.config()
    (own / HISTORY).mkdir()
    with pytest.raises(BadInput, match="cannot be written .* make it writable, or remove what is in the way"):
        resume_run(config, own)
    directory.lock()
    directory.unlock()
    (own / HISTORY).rmdir()
    shutil.rmtree(own / "tensorboard", ignore_errors=True)
    (own / "tensorboard").write_text("")
    with pytest.raises(BadInput, match="remove what is in the way"):
        train(replace(config, replay=replace(config.replay, snapshot_minutes=0.0)), resume=own, serial=True)
    directory.lock()


def test_a_log_with_stray_bytes_loses_only_the_damaged_row(tmp_path):
    run = tmp_path / "run"
    train(short(max_steps=300), run_dir=run, serial=True)
    rows = len((run / "metrics.csv").read_text().splitlines())
    with (run / "metrics.csv").open("ab") as file:
        file.write(b"1,\xff\x00")
    train(short(max_steps=400), resume=run, serial=True)
    content = (run / "metrics.csv").read_text().splitlines()
    assert len(content) >= rows
    assert len({len(line.split(",")) for line in content}) == 1
    seconds = [float(line.split(",")[0]) for line in content[1:]]
    assert seconds == sorted(seconds)


def test_of_repeated_flags_the_last_one_counts(own, tmp_path, capsys):
    other = shutil.copytree(own, tmp_path / "other")
    config = RunDir.open(other).config()
    RunDir(other).write("config.yaml", to_yaml(replace(config, max_updates=777)))
    assert cli.main(["train", "--resume", str(other), "--resume", str(own), "--help", "run"]) == 0
    assert f"run: flags, with the values of {own}" in (out := capsys.readouterr().out)
    assert "777" not in out


def test_weights_that_best_got_after_the_checkpoint_keep_their_rank(own):
    directory = RunDir.open(own)
    config = directory.config()
    config = replace(config, max_steps=1, replay=replace(config.replay, snapshot_minutes=0.0))
    checkpoint = directory.newest_checkpoint()
    assert checkpoint.state["evaluation"]["best_return"] < 496.5
    state = {"mean_return": 496.5, "is_full": True, "updates": checkpoint.state["updates"] + 1}
    directory.best.save(state["updates"], replace(checkpoint, state=state))
    summary = train(config, resume=own, serial=True)
    assert summary["best_return"] == 496.5
    assert RunDir.open(own).newest_checkpoint().state["evaluation"]["best_is_full"]
