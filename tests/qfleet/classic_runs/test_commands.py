"""`qfleet classic`: a command learns, evaluates, logs, draws and records; bad input gives a message of one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from qfleet.classic_runs import seeds as classic_run
from qfleet.classic_runs.log import EPISODES, read_episodes
from qfleet.cli.classic import METHODS
from qfleet.cli.main import main
from rl.evaluation import evaluate
from rl.parameters import from_bytes


def run(capsys, *words):
    """Run a command; return its exit status, standard output and standard error."""
    status = main(["classic", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def cliff(capsys, folder, *words, seeds=(1, 2)):
    common = ("q-learning", "--env", "CliffWalking-v1", "--episodes", 120, "--run-dir", folder, "--json")
    status, out, err = run(capsys, *common, "--seeds", *seeds, *words)
    assert status == 0, err
    return json.loads(out.splitlines()[-1])


def test_one_command_learns_evaluates_logs_draws_and_records(capsys, tmp_path):
    folder = tmp_path / "cliff"
    metrics = cliff(capsys, folder)
    assert {"method", "env", "mean_return", "worst_return", "seeds", "wall_seconds"} <= set(metrics)
    assert (metrics["method"], metrics["env"], metrics["seeds"]) == ("q-learning", "CliffWalking-v1", [1, 2])
    assert metrics["worst_return"] <= metrics["mean_return"] == np.mean(metrics["each"]["mean_return"])
    episodes = read_episodes(folder / "seed-1" / EPISODES)
    assert len(episodes["return"]) == 120
    assert (np.diff(episodes["agent_steps"]) == episodes["length"][1:]).all()
    assert from_bytes((folder / "seed-1" / "values.safetensors").read_bytes())["q"].shape == (48, 4)
    assert Image.open(folder / "curves.png").size[0] > 800
    assert (folder / "seed-1" / "videos" / "rl-video-episode-0.mp4").stat().st_size > 1_000
    with Image.open(folder / "seed-1" / "videos" / "rl-video-episode-0.gif") as gif:
        assert gif.n_frames > 5
    assert not (folder / "seed-2" / "videos").exists()
    (events,) = (folder / "seed-1" / "tensorboard").iterdir()
    content = events.read_bytes()
    for tag in (b"train/return", b"train/length", b"evaluation/mean_return"):
        assert tag in content


def test_finished_seeds_are_not_repeated_and_other_settings_are_rejected(capsys, tmp_path):
    folder = tmp_path / "cliff"
    first = cliff(capsys, folder, "--no-video", seeds=(1,))
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("format: 0\n", ""))  # as written before formats had numbers
    before = (folder / "seed-1" / "summary.json").stat().st_mtime_ns
    both = cliff(capsys, folder, "--no-video", seeds=(1, 2))
    assert (folder / "seed-1" / "summary.json").stat().st_mtime_ns == before
    assert both["each"]["mean_return"][0] == first["mean_return"]
    assert len(both["each"]["mean_return"]) == 2
    status, _, err = run(capsys, "q-learning", "--env", "CliffWalking-v1", "--run-dir", folder, "--no-video")
    assert status == 2
    assert "has a run with other settings" in err
    for text, complaint in (("format: 1\n", "has format 1"), ("- 1\n", "is damaged"), ("a: [", "is damaged")):
        config.write_text(text)
        status, _, err = run(capsys, "q-learning", "--env", "CliffWalking-v1", "--run-dir", folder, "--no-video")
        assert (status, len(err.splitlines())) == (2, 1)
        assert complaint in err


def test_the_usage_text_has_every_method_and_its_environments(capsys):
    status, out, _ = run(capsys)
    assert status == 0
    for name, method in METHODS.items():
        assert name in out
        assert method.settings[0].env.id in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("q-lerning",), "unknown method 'q-lerning': did you mean 'q-learning'?"),
        (("q-learning", "--env", "CartPole-v1"), "a table needs Discrete ones, such as FrozenLake-v1's"),
        (("q-learning", "--env", "Pendulum-v1"), "write an environment with Discrete actions"),
        (("q-learning", "--env", "FrozenLake-v9"), "did you mean 'FrozenLake-v1'?"),
        (("q-learning", "--alpha", "2"), "--alpha is 2: write a number from 0 to 1"),
        (("q-learning", "--alfa", "0.1"), "unknown flag --alfa: did you mean --alpha?"),
        (("q-learning", "--seeds", "1", "1"), "write one or more different numbers"),
        (("q-learning", "--final-episodes", "0"), "--final-episodes is 0: write a number from 1 to 100_000_000"),
        (("q-learning", "--env-kwargs", "slippery"), "write a JSON object"),
        (("q-learning", "--env-kwargs", '{"slippery": 1}'), "cannot be created"),
        (("value-iteration", "--env", "qfleet/GridWorld-v0"), "a model needs Discrete ones"),
        (("td0", "--env", "Blackjack-v1"), "has no table P of its transitions"),
        (("n-step", "--env", "qfleet/GridWorld-v0"), "has no table P of its transitions"),
        (("fitted-q", "--regressor", "forrest"), "did you mean 'forest'?"),
        (
            ("fitted-q", "--dataset", "nothing.npz"),
            "--dataset nothing.npz does not exist: write an existing file, or --save-dataset nothing.npz",
        ),
        (("neural-fitted-q", "--save-dataset", "no/where.npz"), "in a directory that does not exist"),
        (("fitted-q", "--env", "Pendulum-v1"), "write an environment with Discrete actions"),
        (("offline-q", "--dataset", "./nothing-v0"), "there is no dataset ./nothing-v0 at"),
        (("continuous", "--env", "CartPole-v1"), "for Discrete actions use dqn or q-learning"),
        (("continuous", "--maximizer", "sgd"), "--maximizer is sgd: write one of cem, naf, ddpg"),
        (
            ("make-dataset", "--env", "CartPole-v1"),
            "a BabyAI level, such as BabyAI-Pickup-v0; the bot plays no others",
        ),
        (("q-learning", "--env-kwargs", '{"map_name": "9x9"}'), "cannot be created: KeyError"),
        (("q-learning", "--env-kwargs", '{"max_episode_steps": 5}'), "write --max-episode-steps to limit the length"),
        (("q-learning", "--env", "ALE/Pong-v5"), "a table needs Discrete ones"),
        (("dqn", "--preset", "pong"), "--preset pong does not suit CartPole-v1"),
        (
            ("fitted-q", "--save-dataset", "x.npz", "--seeds", "1", "2"),
            "--save-dataset saves the transitions of one seed",
        ),
        (("online-q", "--learning-rate", "nan"), "--learning-rate is nan"),
        (("dqn", "--preset", "pung"), "unknown preset 'pung': did you mean 'pong'?"),
    ],
)
def test_bad_input_gives_one_line_before_anything_starts(capsys, tmp_path, words, message):
    where = () if words[0] == "make-dataset" else ("--run-dir", tmp_path / "run")
    status, out, err = run(capsys, *words, *where)
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not out
    assert not (tmp_path / "run").exists()


def test_evaluation_is_greedy_and_has_other_seeds_than_training(tmp_path, monkeypatch):
    calls = []

    def spy(policy, environments, episodes, epsilon, seed):
        calls.append((episodes, epsilon, seed))
        return evaluate(policy, environments, episodes, epsilon, seed)

    monkeypatch.setattr(classic_run, "evaluate", spy)
    words = ("sarsa", "--episodes", "20", "--seeds", "7", "--no-video", "--run-dir", str(tmp_path / "run"))
    assert main(["classic", *words]) == 0
    assert calls == [(10, 0.0, classic_run.TEST_SEED + 7)]
    assert classic_run.TEST_SEED > 1_000_000


def test_an_environment_without_a_time_limit_gets_one(capsys, tmp_path):
    words = ("monte-carlo", "--env", "CliffWalking-v1", "--episodes", 3, "--final-episodes", 2, "--no-video")
    status, _, err = run(capsys, *words, "--run-dir", tmp_path / "run")
    assert status == 0, err
    assert "max_episode_steps: 200" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_damaged_summary_is_repeated_and_a_damaged_log_is_an_error(capsys, tmp_path):
    folder = tmp_path / "cliff"
    cliff(capsys, folder, "--no-video", seeds=(1,))
    (folder / "seed-1" / "summary.json").write_text('{"mean_ret')
    assert cliff(capsys, folder, "--no-video", seeds=(1,))["mean_return"] <= -13
    (folder / "seed-1" / EPISODES).write_text("")
    common = ("q-learning", "--env", "CliffWalking-v1", "--episodes", 120, "--run-dir", folder, "--no-video")
    status, _, err = run(capsys, *common, "--seeds", 1)
    assert status == 1
    assert "an episodes.csv or progress.csv in" in err


def test_an_interrupted_seed_of_dqn_starts_again(capsys, tmp_path):
    left = tmp_path / "dqn" / "seed-1" / "run"
    left.mkdir(parents=True)
    (left / "config.yaml").write_text("seed: 1\n")
    words = ("dqn", "--max-steps", 300, "--final-episodes", 2, "--run-dir", tmp_path / "dqn", "--no-video")
    status, _, err = run(capsys, *words)
    assert status == 0, err


def test_dqn_runs_as_a_classic_method(capsys, tmp_path):
    words = ("dqn", "--max-steps", 1500, "--final-episodes", 5, "--run-dir", tmp_path / "dqn", "--no-video", "--json")
    status, out, err = run(capsys, *words)
    assert status == 0, err
    metrics = json.loads(out.splitlines()[-1])
    assert metrics["method"] == "dqn"
    assert metrics["agent_steps"] >= 1500
    assert (tmp_path / "dqn" / "curves.png").is_file()


def test_a_method_that_does_not_solve_its_environment_says_so(capsys, tmp_path):
    words = (
        "value-iteration",
        "--max-iterations",
        2,
        "--run-dir",
        tmp_path / "v",
        "--no-video",
        "--final-episodes",
        10,
    )
    status, out, _ = run(capsys, *words, "--json")
    summary, figures = out.splitlines()[-2:]
    assert (status, json.loads(figures)["solved"]) == (0, False)
    assert summary.startswith("value-iteration on FrozenLake-v1: not solved; ")
