"""`qfleet submit`, `logs` and `stop` on a server that answers like Ray's job server."""

from __future__ import annotations

import re
import shlex

import pytest

from qfleet.cli import main as cli
from qfleet.cli.jobs import Place, PlaceOrHere, last_steps, next_steps
from qfleet.cluster import jobs
from qfleet.cluster.jobs import DIRECTORY, RUN
from tests.qfleet.job_server import JobServerStub

SUBMIT = ["--name", "pong", "--detach", "--", "train", "cartpole"]


def test_a_run_that_was_killed_before_its_last_checkpoint_is_no_success(monkeypatch, capsys):
    monkeypatch.setattr(jobs, "STOP_WAIT", 0.3)
    with JobServerStub(stop_seconds=0.5) as stub:
        stub.add("pong-2", **{RUN: "pong", DIRECTORY: "runs/pong"})
        assert cli.main(["stop", "pong", "--jobs", stub.url]) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert re.fullmatch(
            r"qfleet: pong was killed after \d s, and its last checkpoint may be missing: "
            rf"`qfleet logs pong --jobs {stub.url}` shows its log",
            line,
        )


@pytest.mark.parametrize(
    ("directory", "where", "what"),
    [
        ("runs/pong", "~/qfleet/runs/pong on the head node", "pong"),
        ("other/pong", "~/qfleet/other/pong on the head node", "other/pong"),
        ("/data/pong", "/data/pong on the head node", "/data/pong"),
        ("~/data/pong", "~/data/pong on the head node", "'~/data/pong'"),
        ("s3://bucket/pong", "s3://bucket/pong", "s3://bucket/pong"),
    ],
)
def test_a_stop_says_where_the_run_is_and_how_to_go_on(directory, where, what, capsys):
    with JobServerStub() as stub:
        stub.add("pong", **{RUN: "pong", DIRECTORY: directory})
        assert cli.main(["stop", "pong", "--jobs", stub.url]) == 0
        printed = capsys.readouterr()
        assert re.fullmatch(rf"pong has ended after \d s; it is in {re.escape(where)}\n", printed.out)
        assert f"  continue it   qfleet submit --jobs {stub.url} -- train --resume {what}\n" in printed.err
        assert ("fetch it" in printed.err) == ("://" in directory)  # --jobs gives no access to files
    fetch = "qfleet fetch s3://bucket/pong" if "://" in what else f"qfleet fetch {what} --cluster 'my cluster.yaml'"
    assert last_steps("pong", directory, Place(cluster="my cluster.yaml")) == (
        f"  fetch it      {fetch}\n  continue it   qfleet submit --cluster 'my cluster.yaml' -- train --resume {what}"
    )


def test_a_lost_answer_says_that_the_run_may_have_started(capsys):
    with JobServerStub(lose_answer=True, accept=False) as stub:
        assert cli.main(["submit", "--jobs", stub.url, *SUBMIT]) == 1
        assert capsys.readouterr().err == (
            f"qfleet: {stub.url} does not answer; pong may have been submitted all the same: "
            f"`qfleet logs pong --jobs {stub.url}` then shows it\n"
        )


def test_a_submission_says_that_it_waits_for_the_head_node(monkeypatch, capsys):
    monkeypatch.setattr(jobs, "RETRY_PAUSE", 0.05)
    with JobServerStub(busy=3, lose_answer=True) as stub:
        assert cli.main(["submit", "--jobs", stub.url, *SUBMIT]) == 0
        lines = capsys.readouterr().err.splitlines()
        assert lines[:2] == [
            "qfleet: the head node does not accept jobs yet; trying again for 60 s ...",
            "qfleet: pong is submitted as job pong",
        ]
        assert stub.jobs["pong"]["metadata"] == {RUN: "pong", DIRECTORY: "runs/pong"}


def test_without_a_cluster_the_commands_use_the_job_server_of_this_machine(monkeypatch, capsys):
    with JobServerStub() as stub:
        monkeypatch.setattr(jobs, "HERE", stub.url)
        assert cli.main(["submit", *SUBMIT]) == 0
        assert capsys.readouterr().err.splitlines()[1:] == [
            "  watch it      qfleet logs pong",
            "  stop it       qfleet stop pong",
            "  continue it   qfleet submit -- train --resume pong",
        ]
        assert cli.main(["logs", "pong", "--no-follow"]) == 0
        assert capsys.readouterr().out == "a line\n"
        assert cli.main(["stop", "pong"]) == 0
    capsys.readouterr()
    for command in ("logs", "stop"):
        assert cli.main([command, "pong"]) == 2
        assert capsys.readouterr().err.startswith("qfleet: no cluster was named, and no job server answers at http")


@pytest.mark.parametrize("directory", ["runs/pong", "/data/pong", "~/data/pong", "s3://bucket/pong"])
def test_the_job_of_an_upload_writes_to_the_checkout_of_the_head_node(directory, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "qfleet"\n')
    monkeypatch.chdir(tmp_path)
    with JobServerStub() as stub:
        place = ["--jobs", stub.url, "--run-dir", directory, "--upload", "--detach"]
        assert cli.main(["submit", *place, "--", "train", "cartpole"]) == 0
        words = shlex.split(stub.jobs["pong"]["entrypoint"])
    expected = "~/qfleet/runs/pong" if directory == "runs/pong" else directory
    assert words[words.index("--run-dir") + 1] == expected


def test_a_checkout_and_a_name_with_spaces_are_quoted():
    assert next_steps("a b", PlaceOrHere(checkout="~/my qfleet")) == (
        "  watch it      qfleet logs 'a b' --checkout '~/my qfleet'\n"
        "  stop it       qfleet stop 'a b' --checkout '~/my qfleet'"
    )
