"""Runs whose directory is a URL, on an S3 server of its own process: training, kills, resumes, outages, mistakes."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
import time
from dataclasses import replace

import pytest
import s3fs

from learner.checkpoint import Checkpoint, CheckpointStore
from qfleet.api import load_policy, train
from qfleet.run import remote, uploads
from qfleet.run.directory import RunDir
from rl.errors import RunFault
from tests.integration.runs import FAST, run_command, start_qfleet, wait_for_output, wait_until
from tests.integration.s3_server import request, s3_server
from tests.qfleet.configs import short
from tests.qfleet.run.test_directory import check_that_an_unused_run_is_replaced

RUN = ["cartpole", "--serial", *FAST, "--replay.limiter.min-size", "200"]
RUN += ["--evaluation.period", "400", "--evaluation.quick-episodes", "1"]
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as relay:
        yield relay


@pytest.fixture
def s3(server, monkeypatch, tmp_path):
    """The file system of the server; the environment leads every process of the test to it."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # working folders, of other processes
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # and of this one
    s3fs.S3FileSystem.clear_instance_cache()
    yield s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    s3fs.S3FileSystem.clear_instance_cache()


def wait(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not met within {seconds:g} s"
        time.sleep(0.1)


def rows(s3, file):
    """The agent steps in a CSV file of the bucket."""
    header, *lines = s3.cat_file(file).decode().splitlines()
    column = header.split(",").index("agent_steps")
    return [int(line.split(",")[column]) for line in lines]


def killed_run(s3, name):
    """A run that is killed after a checkpoint that follows an evaluation; returns its state in the newest checkpoint."""
    checkpoints = CheckpointStore(f"s3://bucket/{name}/checkpoints")
    evaluated = lambda: rows(s3, f"bucket/{name}/eval.csv")[0]  # noqa: E731
    process = start_qfleet("train", *RUN, "--run-dir", f"s3://bucket/{name}", "--learner.checkpoint-minutes", "0.01")
    try:
        wait_until(process, lambda: s3.glob(f"bucket/{name}/checkpoints/*/MANIFEST.json"), 150)
        wait_until(process, lambda: s3.exists(f"bucket/{name}/eval.csv") and rows(s3, f"bucket/{name}/eval.csv"))
        wait_until(process, lambda: s3.glob(f"bucket/{name}/best/*/MANIFEST.json"))
        wait_until(process, lambda: checkpoints.load_newest().state["agent_steps"] >= evaluated())
    finally:
        process.send_signal(signal.SIGKILL)
        wait_for_output(process, 10)
    return checkpoints.load_newest().state


def test_a_killed_run_is_resumed_on_an_empty_machine(s3, tmp_path, monkeypatch):
    url = "s3://bucket/deep/pong"
    state = killed_run(s3, "deep/pong")
    best = CheckpointStore(f"{url}/best")
    better = {"mean_return": 499.5, "is_full": True, "updates": state["updates"] + 10**6}
    best.save(better["updates"], Checkpoint(best.load_newest().arrays, better))
    evaluations = s3.cat_file("bucket/deep/pong/eval.csv").decode()
    s3.pipe_file("bucket/deep/pong/eval.csv", (evaluations + f"99,{10**6},1,1,9,0,9,0,quick,1,0\n").encode())

    resume = ["train", "--resume", url, "--serial", "--json", "--max-steps", state["agent_steps"] + 800]
    status, output = run_command(*resume)
    assert (status, output.count("\n")) == (2, 1)
    assert f"{url} is being trained by another process (process " in output
    lock = json.loads(s3.cat_file("bucket/deep/pong/.lock"))
    s3.pipe_file("bucket/deep/pong/.lock", json.dumps({**lock, "time": lock["time"] - 31}).encode())

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    status, output = run_command(*resume)
    assert status == 0, output
    summary = json.loads(output.splitlines()[-1])
    assert summary["best_return"] == 499.5 == best.load_newest().state["mean_return"]
    assert summary["run_dir"] == url
    for file in ("metrics.csv", "eval.csv"):
        steps = rows(s3, f"bucket/deep/pong/{file}")
        assert steps == sorted(set(steps)), file
        assert steps[-1] <= summary["agent_steps"]
    assert evaluations.splitlines()[1] in s3.cat_file("bucket/deep/pong/eval.csv").decode()
    assert "max_steps" in json.loads(s3.cat_file("bucket/deep/pong/config.history"))["changed"]
    assert not s3.exists("bucket/deep/pong/.lock")
    assert [p.name for p in elsewhere.iterdir()] == []
    check_commands(url, summary, elsewhere)


def check_commands(url, summary, folder):
    """Every command that takes RUN takes the URL of the run that has ended with ``summary``."""
    assert run_command("status", url, "--json")[1].splitlines()[-1].startswith('{"env": "CartPole-v1"')
    status, output = run_command("eval", url, "--episodes", 2, "--weights", "last", "--video", "--json")
    assert status == 0, output
    figures = json.loads(output.splitlines()[-1])
    assert figures["updates"] == summary["updates"]
    assert [file.split("/")[:2] for file in figures["videos"]] == [["videos", "pong"]]
    assert (folder / figures["videos"][0]).is_file()
    assert run_command("plot", url, "--to", folder / "curves.png")[0] == 0
    assert (folder / "curves.png").stat().st_size > 10_000
    assert load_policy(url, "last").state["updates"] == summary["updates"]
    status, output = run_command("train", "cartpole", "--run-dir", url)
    assert (status, "already holds a run: write another directory" in output) == (2, True)


def test_a_start_that_failed_is_repeated_at_the_same_url(s3):
    check_that_an_unused_run_is_replaced("s3://bucket/unused")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_on_ray_trains_and_resumes_at_a_url(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # the names of Ray's sockets must be short

    def trained(*args):
        process = start_qfleet("train", *args, "--json")
        output = wait_for_output(process, 120)
        assert process.returncode == 0, output
        return json.loads(output.splitlines()[-1])

    url = "s3://bucket/on-ray"
    flags = ["--max-steps", 600, "--replay.limiter.min-size", 200, "--actors.count", 2]
    first = trained("cartpole", *flags, "--run-dir", url)
    assert CheckpointStore(f"{url}/checkpoints").load_newest().state["agent_steps"] == first["agent_steps"] >= 600
    second = trained("--resume", url, "--max-steps", 1200)
    assert second["agent_steps"] >= 1200
    assert second["updates"] > first["updates"] > 0
    assert rows(s3, "bucket/on-ray/metrics.csv")[-1] == second["agent_steps"]
    assert list(tmp_path.glob("qfleet-*")) == []  # no file of the run is left on this machine


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(uploads, "PERIOD", 0.2)
    monkeypatch.setattr(uploads, "RETRY", 0.2)


def config(max_steps):
    made = short(max_steps=max_steps)
    return replace(made, learner=replace(made.learner, checkpoint_minutes=0.001, metrics_period=10))


def after_checkpoint(s3, name, act):
    """A callback of finished episodes, which calls ``act`` once, when the run has written a checkpoint."""
    acted = []

    def on_episode(result):
        if not acted and s3.glob(f"bucket/{name}/checkpoints/*/MANIFEST.json"):
            acted.append(True)
            act()

    return on_episode


def test_a_run_goes_on_when_the_server_is_away_for_a_while(server, s3, capsys, impatient):
    heard = []

    def printed(words):
        heard.append(capsys.readouterr().err)
        return words in "".join(heard)

    def outage():
        server.down()
        wait(lambda: printed("warning: s3://bucket/away cannot be written ("))
        server.up()

    summary = train(
        config(1500), run_dir="s3://bucket/away", serial=True, on_episode=after_checkpoint(s3, "away", outage)
    )
    assert printed("s3://bucket/away is written again, after ")
    state = RunDir.open("s3://bucket/away").newest_checkpoint().state
    assert (state["updates"], state["agent_steps"]) == (summary["updates"], summary["agent_steps"])
    assert rows(s3, "bucket/away/metrics.csv")[-1] == summary["agent_steps"]
    assert json.loads(s3.cat_file("bucket/away/summary.json"))["updates"] == summary["updates"]


def test_a_run_ends_when_the_server_is_gone_for_good(server, s3, monkeypatch, impatient, capsys):
    for name, seconds in {"GIVE_UP": 1.0, "FINISH": 1.0}.items():
        monkeypatch.setattr(uploads, name, seconds)
    for name in ("TIMEOUT", "SAVE_TIMEOUT"):
        monkeypatch.setattr(remote, name, 5.0)

    def gone():
        server.hang()
        monkeypatch.setattr(remote, "TIMEOUT", 1.0)

    started = time.monotonic()
    try:
        with pytest.raises(RunFault, match="^s3://bucket/gone could not be written for 1 s: no answer within [15] s$"):
            train(config(10**6), run_dir="s3://bucket/gone", serial=True, on_episode=after_checkpoint(s3, "gone", gone))
    finally:
        server.up()
    assert time.monotonic() - started < 60
    told = capsys.readouterr().err
    warning = told.split("warning: s3://bucket/gone could not be written at the end of the run: ")[1]
    folder = warning.split("copy the files in ")[1].split(" there")[0]
    assert CheckpointStore(f"{folder}/checkpoints").load_newest() is not None
    for thread in threading.enumerate():  # what it was sending may still arrive, which is not worth a line
        if thread.name == "uploads":
            thread.join(20.0)
    assert "written again" not in told + capsys.readouterr().err


def test_a_run_that_another_process_has_taken_ends(s3, impatient):
    def take(result):  # again and again, as the other process would
        if s3.glob("bucket/taken/checkpoints/*/MANIFEST.json"):
            s3.pipe_file("bucket/taken/.lock", b'{"owner": "x", "where": "process 7 on host-b", "time": 1}')

    with pytest.raises(RunFault, match="s3://bucket/taken is now being trained by process 7 on host-b"):
        train(config(10**6), run_dir="s3://bucket/taken", serial=True, on_episode=take)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            ["train", "cartpole", "--run-dir", "s3://none/x"],
            "cannot be written (The specified bucket does not exist): w",
        ),
        (
            ["train", "cartpole", "--run-dir", "s3://bucket"],
            "names no directory in a bucket: write a URL such as s3://",
        ),
        (["train", "--resume", "s3://bucket/x"], "holds no run (config.yaml is missing): write the directory of a run"),
        (["eval", "s3://bucket/x"], "holds no run (config.yaml is missing)"),
        (["status", "s3://bucket/x"], "holds no run (config.yaml is missing)"),
        (["plot", "s3://bucket/x"], "holds no run (config.yaml is missing)"),
        (["fetch", "s3://bucket/x"], "s3://bucket/x is not a directory: write the directory or the URL of a run"),
        (["fetch", "s3://bucket"], "names no directory in a bucket: write a URL such as s3://"),
        (["scale", "s3://bucket/x", "--shards", "2"], "s3://bucket/x is changed by its name in the cluster where it"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(s3, command, words):
    status, output = run_command(*command)
    assert (status, output.count("\n")) == (2, 1), output
    assert words in output
    assert s3.find("bucket/x") == []


def test_credentials_that_are_missing_or_refused_and_a_server_that_is_away_are_one_line(server, s3, monkeypatch):
    def check_mistakes(reason):
        for done, args in {"written": ["train", "cartpole", "--run-dir"], "read": ["fetch"]}.items():
            s3fs.S3FileSystem.clear_instance_cache()
            status, output = run_command(*args, "s3://bucket/x")
            assert (status, output.count("\n")) == (2, 1), output
            assert f"s3://bucket/x cannot be {done} ({reason}" in output

    request(server.server_port, "/moto-api/reset-auth", "POST", b"0")
    check_mistakes("access is refused: ")
    request(server.server_port, "/moto-api/reset-auth", "POST", b"inf")
    server.down()
    check_mistakes("Could not connect to the endpoint URL: ")
    server.up()
    server.hang()
    monkeypatch.setattr(remote, "TIMEOUT", 1.0)
    check_mistakes("no answer within 1 s")
    server.up()
    monkeypatch.setattr(remote, "TIMEOUT", 30.0)
    for name in KEYS:
        monkeypatch.delenv(name)
    check_mistakes("no credentials were found: set them, for S3 in AWS_ACCESS_KEY_ID and ")
