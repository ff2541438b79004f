"""The distributed system for real: Ray, shards, actors and learner in processes of their own, through the command."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from protos.replay_pb2 import InfoRequest
from protos.replay_pb2_grpc import ReplayStub
from replay.links import open_channel
from replay.security import Access, SecurityConfig, make_token_file

FAST = ["--learner.device", "cpu", "--learner.threads", "1"]


def qfleet(*args, **kwargs):
    command = [sys.executable, "-m", "launch.cli", *map(str, args)]
    kwargs.setdefault("stdout", subprocess.PIPE)
    return subprocess.Popen(command, stderr=subprocess.STDOUT, text=True, **kwargs)


def finish(process, seconds):
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still running after {seconds} s:\n{process.communicate()[0]}") from None
    return output


def processes_with(word):
    """Processes other than this one whose environment or command line names ``word``."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if word.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return [f for f in found if f.strip()]


def rows(file):
    with file.open() as opened:
        return list(csv.DictReader(opened))


@pytest.mark.timeout(400)
def test_two_actors_and_two_shards_solve_cartpole_and_leave_nothing_behind(tmp_path):
    run, mark = tmp_path / "run", f"qfleet-test-{os.getpid()}-{time.time_ns()}"
    args = ["train", "cartpole", "--actors.count", 2, "--replay.shards", 2, "--run-dir", run, "--json", *FAST]
    process = qfleet(*args, env={**os.environ, "QFLEET_TEST_MARK": mark})
    output = finish(process, 360)
    assert process.returncode == 0, output
    summary = json.loads(output.splitlines()[-1])
    assert summary["solved"], output
    assert summary["mean_return"] >= 475
    assert summary["updates"] > 100
    evaluations = rows(run / "eval.csv")
    assert [e["kind"] for e in evaluations[-2:]] == ["full", "confirm"]
    assert int(evaluations[-1]["episodes"]) == 30
    deadline = time.monotonic() + 20
    while (left := processes_with(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    check = finish(qfleet("eval", run, "--episodes", 20, "--json"), 60)
    assert json.loads(check.splitlines()[-1])["mean_return"] >= 450


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_stop_or_kill_and_resume_goes_on_from_the_counters(tmp_path, how):
    run = tmp_path / "run"
    common = ["--actors.count", 1, *FAST, "--learner.checkpoint-minutes", 0.05]
    process = qfleet("train", "cartpole", "--run-dir", run, *common)
    wait_for_checkpoint(process, run)
    process.send_signal(how)
    output = finish(process, 90)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), output
    before = newest_state(run)
    if how == signal.SIGINT:
        assert json.loads((run / "summary.json").read_text())["updates"] == before["updates"]
    goal = before["agent_steps"] + 3000
    rows_before = rows(run / "metrics.csv")
    resumed = qfleet("train", "--resume", run, "--max-steps", goal, "--evaluation.goal", 1000, "--json")
    output = finish(resumed, 120)
    assert resumed.returncode == 0, output
    summary = json.loads(output.splitlines()[-1])
    assert summary["agent_steps"] >= goal
    assert summary["updates"] > before["updates"]
    assert newest_state(run)["target_syncs"] >= before["target_syncs"]
    after = rows(run / "metrics.csv")[len(rows_before) :]
    assert after
    assert all(int(r["agent_steps"]) >= before["agent_steps"] and int(r["updates"]) >= before["updates"] for r in after)
    # no more new steps and updates than this part of the run made: the rest was carried over
    assert summary["agent_steps"] < goal + 3000
    assert summary["wall_seconds"] > before["wall_seconds"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_after_ctrl_c_and_resume_the_policy_is_as_good_as_before(tmp_path):
    run = tmp_path / "run"
    fading = ["--learner.learning-rate-updates", 4000, "--learner.learning-rate-end", 1e-4]
    process = qfleet("train", "cartpole", "--run-dir", run, "--evaluation.goal", 1000, *fading, *FAST)
    deadline = time.monotonic() + 150
    while not (run / "eval.csv").exists() or all(float(r["mean_return"]) < 200 for r in rows(run / "eval.csv")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no evaluation of 200 within 150 s"
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    finish(process, 90)
    before, state = evaluation(run), newest_state(run)
    resumed = qfleet("train", "--resume", run, "--max-steps", state["agent_steps"] + 2000)
    output = finish(resumed, 120)
    assert resumed.returncode == 0, output
    after = evaluation(run)
    assert after["updates"] > before["updates"] >= state["updates"]
    assert before["mean_return"] >= 100
    assert after["mean_return"] >= 0.6 * before["mean_return"], (before, after)


def evaluation(run):
    output = finish(qfleet("eval", run, "--weights", "last", "--episodes", 20, "--json"), 60)
    return json.loads(output.splitlines()[-1])


def wait_for_checkpoint(process, run):
    deadline = time.monotonic() + 100
    while not list(run.glob("checkpoints/*/MANIFEST.json")) or newest_state(run)["updates"] < 50:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint within 100 s"
        time.sleep(0.2)


def newest_state(run):
    newest = sorted(p for p in (run / "checkpoints").iterdir() if p.name.isdigit())[-1]
    return json.loads((newest / "state.json").read_text())


@pytest.fixture
def two_nodes():
    """A Ray of two nodes of 4 CPUs, started here."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    cluster.add_node(num_cpus=4)
    yield cluster
    cluster.shutdown()


def refusal(address, security):
    """How a shard answers who has the certificates and not the token."""
    with open_channel(address, Access(security)) as channel, pytest.raises(grpc.RpcError) as caught:
        ReplayStub(channel).Info(InfoRequest(), timeout=10.0)
    return caught.value.code()


@pytest.mark.timeout(240)
def test_joining_a_cluster_of_two_nodes(tmp_path, two_nodes, pem):
    """With mutual TLS, and a token that nothing but its file ever holds."""
    run, said, token = tmp_path / "joined", tmp_path / "said", tmp_path / "token"
    make_token_file(str(token))
    files = {"certificate": "shard.pem", "key": "shard.key", "authority": "authority.pem"}
    security = SecurityConfig(**{k: pem(v) for k, v in files.items()}, name="shard.qfleet")
    flags = [f"--replay.security.{k}={pem(v)}" for k, v in files.items()]
    flags += [
        "--replay.security.mutual",
        "--replay.security.name=shard.qfleet",
        f"--replay.security.token-file={token}",
    ]
    args = ["train", "cartpole", "--address", two_nodes.address, "--actors.count", 2, "--replay.shards", 2, *FAST]
    with said.open("w") as output:
        process = qfleet(
            *(*args, *flags, "--run-dir", run, "--max-steps", 4000, "--json"),
            stdout=output,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    status, refused = None, []
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (
            (run / "status.json").exists()
            and json.loads((run / "status.json").read_text())["updates"] > 10
            and not status
        ):
            shards = re.findall(r"[\d.]+:\d+", said.read_text().partition("learner on")[0])
            refused = [refusal(address, security) for address in shards]
            status = finish(qfleet("status", "joined", "--address", two_nodes.address, "--json"), 60)
        time.sleep(0.2)
    finish(process, 60)
    output = said.read_text()
    assert process.returncode == 0, output
    assert json.loads(output.splitlines()[-1])["agent_steps"] >= 4000
    assert refused == [grpc.StatusCode.UNAUTHENTICATED] * 2
    logs = Path(two_nodes.head_node.get_session_dir_path())
    places = [p for folder in (run, logs) for p in folder.rglob("*") if p.is_file()]
    assert run / "config.yaml" in places
    assert not [p for p in [said, *places] if token.read_bytes().strip() in p.read_bytes()]
    assert status is not None
    assert json.loads(status.splitlines()[-1])["env"] == "CartPole-v1"


@pytest.mark.timeout(120)
def test_what_does_not_fit_a_cluster_is_named(tmp_path, two_nodes):
    args = ["train", "cartpole", "--address", two_nodes.address, "--actors.count", "40", "--ready-timeout", "8"]
    process = qfleet(*args, "--run-dir", tmp_path / "r", *FAST)
    last = finish(process, 100).strip().splitlines()[-1]
    assert process.returncode == 1
    assert "not ready after 8 s" in last
    assert "actor-" in last
    assert "--actors.count" in last


@pytest.mark.timeout(200)
def test_a_killed_actor_comes_back_and_a_killed_learner_ends_the_run_with_its_reason(tmp_path):
    run = tmp_path / "run"
    process = qfleet("train", "cartpole", "--run-dir", run, *FAST, "--learner.checkpoint-minutes", 0.05)
    wait_for_checkpoint(process, run)
    steps = newest_state(run)["agent_steps"]
    child(process, "ActorWorker").kill()
    deadline = time.monotonic() + 60
    while newest_state(run)["agent_steps"] < steps + 2000:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the actor did not come back"
        time.sleep(0.2)
    child(process, "LearnerWorker").kill()
    output = finish(process, 120)
    assert process.returncode == 1
    assert "learner: the process ended" in output.splitlines()[-1]
    assert (run / "summary.json").exists()


@pytest.mark.timeout(300)
def test_shards_join_and_leave_a_run(tmp_path):
    """`qfleet scale` up and down while it trains; what was stored moves along, and the run goes on to its end."""
    run = tmp_path / "run"
    args = [
        "--actors.count",
        1,
        "--replay.shards",
        1,
        "--evaluation.goal",
        "inf",
        "--max-steps",
        1_000_000,
        "--run-dir",
        run,
    ]
    process = qfleet("train", "cartpole", *args, *FAST)

    def status():
        return json.loads((run / "status.json").read_text()) if (run / "status.json").exists() else {}

    try:
        deadline = time.monotonic() + 120
        while "shards" not in status() or status()["updates"] < 200:
            assert time.monotonic() < deadline, "the run did not begin"
            time.sleep(0.5)
        assert "2 replay shard(s)" in finish(qfleet("scale", run, "--shards", 2), 60)
        assert "shards: 2" in (run / "config.yaml").read_text()
        down = finish(qfleet("scale", run, "--shards", 1), 60)
        assert re.search(r"shard-1 has left, its [\d,]+ transitions moved", down + status()["fleet_news"])
        refused = qfleet("scale", run, "--shards", 300)
        words = finish(refused, 60)
        assert (refused.returncode, "slack" in words) == (2, True), words
        before = status()["updates"]
        while status()["updates"] < before + 200:
            assert time.monotonic() < deadline + 60, "the run does not go on"
            time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGINT)
        output = finish(process, 60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    over = qfleet("scale", run, "--shards", 2)
    assert "not being trained" in finish(over, 60)
    assert over.returncode == 2


@pytest.mark.timeout(300)
def test_a_killed_shard_comes_back_with_its_content_and_so_does_a_resumed_run(tmp_path):
    run = tmp_path / "run"
    args = ["--replay.snapshot-minutes", 0.02, "--learner.checkpoint-minutes", 0.05, "--evaluation.goal", 1000]
    process = qfleet("train", "cartpole", "--run-dir", run, *args, *FAST)
    wait_for_checkpoint(process, run)
    wait_until(process, lambda: saved_state(run)["end_key"] > 2000)
    child(process, "ShardWorker").kill()
    before = saved_state(run)
    updates = newest_state(run)["updates"]
    wait_until(process, lambda: saved_state(run)["end_key"] > before["end_key"] + 500)
    wait_until(process, lambda: newest_state(run)["updates"] > updates + 100)
    process.send_signal(signal.SIGINT)
    words = " ".join(finish(process, 90).split())
    assert process.returncode == 130, words
    assert re.search(
        r"replay shard-0 restarted at 127.0.0.1:\d+: restored [\d,]+ transitions of a snapshot \d+ sec", words
    )
    saved, more = saved_state(run), newest_state(run)["agent_steps"] + 2000
    resumed = qfleet("train", "--resume", run, "--max-steps", more, "--replay.snapshot-minutes", 10)
    words = " ".join(finish(resumed, 120).split())
    assert resumed.returncode == 0, words
    items = saved["end_key"] - saved["first_key"]
    assert f"replay shard-0 restored {items:,} transitions of a snapshot" in words
    assert saved_state(run)["end_key"] >= saved["end_key"] + 1000  # the last snapshot, at the end


def child(process, name):
    import psutil

    children = psutil.Process(process.pid).children(recursive=True)
    return next(
        (c for c in children if c.name().startswith(f"ray::{name}"[:15]) and name in "".join(c.cmdline())), None
    )


def wait_until(process, condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"did not come about within {seconds} s"
        time.sleep(0.1)


def saved_state(run):
    manifest = json.loads((run / "replay" / "shard-0" / "MANIFEST.json").read_text())
    return manifest["snapshot"]["state"] or {"end_key": 0}  # none was written yet
