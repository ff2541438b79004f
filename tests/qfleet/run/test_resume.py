"""What a run may be resumed as: of the same environment, network and optimizer; else nothing of it is touched."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from qfleet.run.directory import RunDir
from qfleet.run.resume import resume_run
from rl.errors import BadInput
from tests.conftest import ROOT


@pytest.fixture
def run(tmp_path):
    path = shutil.copytree(ROOT / "tests" / "fixtures" / "format-0" / "run", tmp_path / "run")
    (path / "summary.json").write_text("{}")
    return path


def test_it_goes_on_as_the_configuration_says_and_holds_the_lock(run):
    config = replace(RunDir.open(run).config(), max_steps=99_999)
    directory, checkpoint = resume_run(config, run)
    assert checkpoint.state["updates"] == 1305
    assert RunDir.open(run).config() == config
    assert not (run / "summary.json").exists()
    with pytest.raises(BadInput, match="is being trained by another process"):
        resume_run(config, run)
    directory.unlock()


CHANGES = {
    "another environment": (
        lambda c: replace(c, env=replace(c.env, id="CartPole-v1")),
        "env.id is CartPole-v1, but .* is a run of ",
    ),
    "another network": (lambda c: replace(c, network=replace(c.network, hidden=(7,))), "weights of another network"),
    "another optimizer": (lambda c: replace(c, learner=replace(c.learner, optimizer="rmsprop")), "not of RMSProp"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_suit_its_checkpoint_is_refused_and_the_lock_let_go(run, change):
    config = RunDir.open(run).config()
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    changed, words = CHANGES[change]
    with pytest.raises(BadInput, match=words):
        resume_run(changed(config), run)
    assert {file: file.read_bytes() for file in before} == before
    directory, _ = resume_run(config, run)
    directory.unlock()
