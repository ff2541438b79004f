"""`qfleet status` and `qfleet scale` on a run's directory; a thread of the test plays the driver of the run."""

from __future__ import annotations

import contextlib
import json
import threading
import time

import pytest

from qfleet.cli import main as cli
from qfleet.cli import runs
from qfleet.run.directory import SCALE, STATUS, SUMMARY, RunDir
from tests.qfleet.configs import short

FIGURES = {"agent_steps": 2_000, "frames": 2_000, "updates": 30, "wall_seconds": 90.0, "last_return": None}


@pytest.fixture
def run(tmp_path):
    made = RunDir.create(tmp_path / "run", short())
    yield made
    made.unlock()


def command(*args):
    return cli.main([str(a) for a in args])


def write_status(run, shards=1, **changes):
    scaling = {"scale_request": None, "scale_news": "", "scale_taken": None, "actors": 2, "actors_wanted": 2}
    run.write_json(STATUS, {"time": time.time(), "shards": shards, **scaling, **FIGURES, **changes})


@contextlib.contextmanager
def driver(run, answer):
    """Plays the driver: reports 1 shard and 2 actors, and ``answer`` once others are requested.

    ``answer`` may be a function of the request.
    """
    ended = threading.Event()

    def drive():
        while not ended.is_set():
            request = run.read_json(SCALE)
            changes = {}
            if request is not None:
                taken = {"scale_request": request, "scale_taken": request["number"]}
                changes = taken | (answer(request) if callable(answer) else answer)
            write_status(run, **changes)
            ended.wait(0.05)

    write_status(run)
    thread = threading.Thread(target=drive)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_status_before_and_after_a_run(run, capsys):
    assert command("status", run.path) == 0
    assert "the run has no status yet" in capsys.readouterr().out
    summary = {
        **FIGURES,
        "solved": True,
        "goal": 475.0,
        "mean_return": 480.5,
        "best_return": 490.0,
        "run_dir": str(run.path),
    }
    run.write_json(SUMMARY, summary)
    assert command("status", run.path, "--json") == 0
    line, last = capsys.readouterr().out.splitlines()
    assert line.startswith("solved: mean return 480.50 (best 490.00) after 2,000 agent steps (2,000 frames), 30 upd")
    assert json.loads(last) == summary


def test_status_of_a_classic_run_is_rejected(run, capsys):
    run.write_json(SUMMARY, {"method": "sarsa"})
    assert command("status", run.path) == 2
    assert "is a run of qfleet classic" in capsys.readouterr().err


def test_scale_waits_until_the_run_has_its_shards(run, capsys):
    with driver(run, {"shards": 3, "scale_news": "added replay shard-2"}):
        assert command("scale", f"file://{run.path}", "--shards", 3, "--json") == 0
    out = capsys.readouterr().out.splitlines()
    assert json.loads(out[-1]) == {"shards": 3}
    assert out[-2].endswith("3 replay shard(s)")
    assert run.read_json(SCALE)["shards"] == 3


def test_scale_waits_until_the_run_has_its_actors_and_says_how_many_there_are(run, capsys):
    living = iter([2, 3, 3, 4, 4, 6])
    answers = lambda request: {"actors": next(living, 6), "actors_wanted": request["actors"]}  # noqa: E731
    with driver(run, answers):
        assert command("scale", run.path, "--actors", 6, "--json") == 0
    out = capsys.readouterr().out.splitlines()
    assert json.loads(out[-1]) == {"actors": 6}
    assert out[-2] == f"{run.path}: 6 actor(s)"
    assert all(line.endswith(" of 6 actors") for line in out[:-2])
    request = run.read_json(SCALE)
    assert (request["shards"], request["actors"]) == (None, 6)


def test_actors_without_room_are_reported_after_the_timeout_and_the_request_stays(run, capsys):
    with driver(run, {"actors": 3, "actors_wanted": 6}):
        assert command("scale", run.path, "--actors", 6, "--timeout", 0.7) == 1
    assert capsys.readouterr().err == (
        f"qfleet: {run.path} has 3 of 6 actors after 0.7 s: the rest waits for nodes with free CPUs, and the request "
        "stays\n"
    )
    assert run.read_json(SCALE)["actors"] == 6


def test_shards_and_actors_can_be_scaled_at_once(run, capsys):
    with driver(run, lambda r: {"shards": r["shards"], "actors": r["actors"], "actors_wanted": r["actors"]}):
        assert command("scale", run.path, "--shards", 2, "--actors", 1, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"shards": 2, "actors": 1}


def test_two_commands_at_the_same_instant_both_get_what_they_want(run, capsys):
    """The driver looks only now and then, so that the second request replaces the first one in the file."""
    wanted, done, taken = {"shards": 1, "actors": 2}, [], set()

    def grant(request):
        if request["number"] not in taken and (len(done) or time.monotonic() > start + 1.0):
            taken.add(request["number"])
            wanted.update({k: v for k, v in request.items() if k in wanted and v is not None})
        granted = {"scale_taken": request["number"]} if request["number"] in taken else {"scale_taken": None}
        return {"shards": wanted["shards"], "actors": wanted["actors"], "actors_wanted": wanted["actors"], **granted}

    start = time.monotonic()
    with driver(run, grant):
        both = [
            threading.Thread(target=lambda a=args: done.append(command("scale", run.path, *a, "--timeout", 20)))
            for args in (("--shards", 3), ("--actors", 5))
        ]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
    assert done == [0, 0], capsys.readouterr()
    assert wanted == {"shards": 3, "actors": 5}


def test_another_command_for_another_number_of_actors_ends_the_wait(run, capsys):
    with driver(run, {"actors": 3, "actors_wanted": 9}):
        assert command("scale", run.path, "--actors", 6) == 1
    assert capsys.readouterr().err == "qfleet: another `qfleet scale` has asked for 9 actors since\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--shards and --actors are missing: write at least one of them"),
        (("--actors", 0), "--actors is 0: write a number from 1 to 16_777_215"),
        (("--actors", 2**24), "--actors is 16_777_216: write a number from 1 to 16_777_215"),
    ],
)
def test_scale_rejects_numbers_before_it_looks_for_the_run(run, flags, words, capsys):
    assert command("scale", run.path, *flags) == 2
    assert capsys.readouterr().err == f"qfleet: {words}\n"
    assert run.read_json(SCALE) is None


def test_status_shows_the_actors_and_shards_of_a_run_on_ray(run, capsys):
    rates = {"steps_per_s": 1.0, "updates_per_s": 1.0, "samples_per_insert": 8.0, "epsilon_min": 0.1}
    write_status(run, actors=12, actors_wanted=64, train_return=None, greedy_return=None, **rates)
    assert command("status", run.path) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "actors 12 of 64" in first
    assert second == "12 of 64 actors, 1 replay shard(s)"


def test_status_shows_what_has_failed_and_how_old_the_last_checkpoint_is(run, capsys):
    rates = {"steps_per_s": 1.0, "updates_per_s": 1.0, "samples_per_insert": 8.0, "epsilon_min": 0.1}
    rates |= {"train_return": None, "greedy_return": None}
    faults = {
        "restarts": 3,
        "restarts_by_kind": {"actor": 2, "weight store": 1},
        "last_fault": "actor-1 has failed (why)",
    }
    write_status(run, **rates, **faults, last_fault_time=time.time() - 90, checkpoint_age=61.4)
    assert command("status", run.path) == 0
    assert capsys.readouterr().out.splitlines()[2] == (
        "3 failure(s) of processes (actor 2, weight store 1), last 0:01:30 ago: actor-1 has failed (why); the last "
        "checkpoint is 0:01:01 old"
    )


def test_two_equal_requests_are_told_apart(run):
    requests = []
    for _ in range(2):
        with driver(run, {"shards": 2}):
            assert command("scale", run.path, "--shards", 2) == 0
        requests.append(run.read_json(SCALE))
    assert requests[0] != requests[1]


def test_a_request_that_the_driver_rejects_fails_with_its_reason(run, capsys):
    with driver(run, {"scale_news": "warning: the run keeps 1 replay shard(s): no CPU is free"}):
        assert command("scale", run.path, "--shards", 2) == 1
    assert capsys.readouterr().err == "qfleet: the run keeps 1 replay shard(s): no CPU is free\n"


def test_the_answer_to_another_request_is_ignored(run, capsys):
    with driver(run, {"scale_request": {"shards": 9, "number": "x"}, "scale_news": "warning: 9 are too many"}):
        assert command("scale", run.path, "--shards", 2, "--timeout", 0.7) == 1
    assert "has 1 replay shard(s) after 0.7 s, not 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "ended", "words"),
    [
        (None, False, "it has not started yet, is a --serial run, or was killed"),
        ({"time": time.time() - 2 * runs.STATUS_MAX_AGE}, False, "was killed"),
        ({}, True, "it has ended"),
    ],
)
def test_scale_rejects_a_run_that_is_not_training(run, capsys, status, ended, words):
    if status is not None:
        write_status(run, **status)
    if ended:
        run.write_json(SUMMARY, {"solved": False})
    assert command("scale", run.path, "--shards", 2) == 2
    assert words in capsys.readouterr().err
    assert run.read_json(SCALE) is None


def test_scale_rejects_an_invalid_number_before_it_requests_it(run, capsys):
    write_status(run)
    assert command("scale", run.path, "--shards", 300) == 2
    assert "slack" in capsys.readouterr().err
    assert run.read_json(SCALE) is None


def test_a_run_without_a_goal_is_not_called_unsolved(run, capsys):
    summary = {**FIGURES, "solved": False, "goal": None, "mean_return": 5.0, "best_return": 5.0, "run_dir": "r"}
    run.write_json(SUMMARY, summary)
    assert command("status", run.path) == 0
    assert capsys.readouterr().out.startswith("ended (no goal): mean return 5.00 after 2,000 agent steps")


def test_status_of_a_killed_run_gives_the_age_of_its_figures(run, capsys):
    write_status(
        run, time=time.time() - 75, steps_per_s=1.0, updates_per_s=1.0, samples_per_insert=8.0, epsilon_min=0.1
    )
    figures = run.read_json(STATUS)
    run.write_json(STATUS, {**figures, "train_return": None, "greedy_return": None})
    assert command("status", run.path) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("not updated for 0:01:15: the run was probably killed")


@pytest.mark.parametrize("name", [STATUS, SUMMARY])
def test_status_of_a_damaged_file_is_one_line(run, name, capsys):
    (run.path / name).write_text('{"updates"')
    assert command("status", run.path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"qfleet: {run.path / name} is damaged (")
