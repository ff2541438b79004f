"""`qfleet classic`: one command learns, evaluates, logs, draws and records; bad input is one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from qfleet.classic_runs import seeds as classic_run
from qfleet.classic_runs.log import EPISODES, table
from qfleet.cli.classic import METHODS
from qfleet.cli.main import main
from rl.evaluation import evaluate
from rl.parameters import from_bytes


def run(capsys, *words):
    """(exit status, standard output, standard error) of a command."""
    status = main(["classic", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out, said.err


def cliff(capsys, folder, *words, seeds=(1, 2)):
    common = ("q-learning", "--env", "CliffWalking-v1", "--episodes", 120, "--run-dir", folder, "--json")
    status, out, err = run(capsys, *common, "--seeds", *seeds, *words)
    assert status == 0, err
    return json.loads(out.splitlines()[-1])


def test_one_command_learns_evaluates_logs_draws_and_records(capsys, tmp_path):
    folder = tmp_path / "cliff"
    figures = cliff(capsys, folder)
    assert {"method", "env", "mean_return", "worst_return", "seeds", "wall_seconds"} <= set(figures)
    assert (figures["method"], figures["env"], figures["seeds"]) == ("q-learning", "CliffWalking-v1", [1, 2])
    assert figures["worst_return"] <= figures["mean_return"] == np.mean(figures["each"]["mean_return"])
    episodes = table(folder / "seed-1" / EPISODES)
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


def test_seeds_that_are_done_are_kept_and_other_settings_are_refused(capsys, tmp_path):
    folder = tmp_path / "cliff"
    first = cliff(capsys, folder, "--no-video", seeds=(1,))
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("format: 0\n", ""))  # of the time before there were numbers
    before = (folder / "seed-1" / "summary.json").stat().st_mtime_ns
    both = cliff(capsys, folder, "--no-video", seeds=(1, 2))
    assert (folder / "seed-1" / "summary.json").stat().st_mtime_ns == before
    assert both["each"]["mean_return"][0] == first["mean_return"]
    assert len(both["each"]["mean_return"]) == 2
    status, _, err = run(capsys, "q-learning", "--env", "CliffWalking-v1", "--run-dir", folder, "--no-video")
    assert status == 2
    assert "holds a run with other settings" in err
    for text, complaint in (("format: 1\n", "is of format 1"), ("- 1\n", "is damaged"), ("a: [", "is damaged")):
        config.write_text(text)
        status, _, err = run(capsys, "q-learning", "--env", "CliffWalking-v1", "--run-dir", folder, "--no-video")
        assert (status, len(err.splitlines())) == (2, 1)
        assert complaint in err


def test_the_list_names_every_method_and_its_environments(capsys):
    status, out, _ = run(capsys)
    assert status == 0
    for name, method in METHODS.items():
        assert name in out
        assert method.settings[0].env.id in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("q-lerning",), "unknown method 'q-lerning': did you mean 'q-learning'?"),
        (("q-learning", "--env", "CartPole-v1"), "a table needs Discrete ones, such as FrozenLake-v1's"),
        (("q-learning", "--env", "Pendulum-v1"), "needs a Discrete action space"),
        (("q-learning", "--env", "FrozenLake-v9"), "did you mean 'FrozenLake-v1'?"),
        (("q-learning", "--alpha", "2"), "--alpha is 2: write a number from 0 to 1"),
        (("q-learning", "--alfa", "0.1"), "unknown flag --alfa: did you mean --alpha?"),
        (("q-learning", "--seeds", "1", "1"), "write one or more different numbers"),
        (("q-learning", "--final-episodes", "0"), "--final-episodes is 0: write a number from 1 to 100000000"),
        (("q-learning", "--env-kwargs", "slippery"), "write a JSON object"),
        (("q-learning", "--env-kwargs", '{"slippery": 1}'), "cannot be made"),
        (("value-iteration", "--env", "qfleet/GridWorld-v0"), "a model counts every (s, a, s')"),
        (("td0", "--env", "Blackjack-v1"), "does not state its model"),
        (("n-step", "--env", "qfleet/GridWorld-v0"), "does not state its model"),
        (("fitted-q", "--regressor", "forrest"), "did you mean 'forest'?"),
        (
            ("fitted-q", "--dataset", "nothing.npz"),
            "--dataset nothing.npz is not there: write --save-dataset nothing.npz",
        ),
        (("neural-fitted-q", "--save-dataset", "no/where.npz"), "its directory is not there"),
        (("fitted-q", "--env", "Pendulum-v1"), "needs a Discrete action space"),
        (("offline-q", "--dataset", "./nothing-v0"), "there is no dataset ./nothing-v0 at"),
        (("continuous", "--env", "CartPole-v1"), "for Discrete actions write dqn or q-learning"),
        (("continuous", "--maximizer", "sgd"), "invalid choice 'sgd'"),
        (("make-dataset", "--env", "CartPole-v1"), "the bot plays BabyAI's levels alone"),
        (("q-learning", "--env-kwargs", '{"map_name": "9x9"}'), "cannot be made: KeyError"),
        (("q-learning", "--env-kwargs", '{"max_episode_steps": 5}'), "the length of episodes is --max-episode-steps"),
        (("q-learning", "--env", "ALE/Pong-v5"), "a table needs Discrete ones"),
        (("dqn", "--preset", "pong"), "--preset pong does not suit CartPole-v1"),
        (("fitted-q", "--save-dataset", "x.npz", "--seeds", "1", "2"), "--save-dataset writes one dataset"),
        (("online-q", "--learning-rate", "nan"), "--learning-rate is nan"),
        (("dqn", "--preset", "pung"), "unknown preset 'pung': did you mean 'pong'?"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(capsys, tmp_path, words, said):
    where = () if words[0] == "make-dataset" else ("--run-dir", tmp_path / "run")
    status, out, err = run(capsys, *words, *where)
    assert status == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not out
    assert not (tmp_path / "run").exists()


def test_evaluation_is_greedy_and_of_episodes_that_training_never_met(tmp_path, monkeypatch):
    asked = []

    def spy(policy, environments, episodes, epsilon, seed):
        asked.append((episodes, epsilon, seed))
        return evaluate(policy, environments, episodes, epsilon, seed)

    monkeypatch.setattr(classic_run, "evaluate", spy)
    words = ("sarsa", "--episodes", "20", "--seeds", "7", "--no-video", "--run-dir", str(tmp_path / "run"))
    assert main(["classic", *words]) == 0
    assert asked == [(10, 0.0, classic_run.TEST_SEED + 7)]
    assert classic_run.TEST_SEED > 1_000_000


def test_a_world_without_a_time_limit_gets_one(capsys, tmp_path):
    words = ("monte-carlo", "--env", "CliffWalking-v1", "--episodes", 3, "--final-episodes", 2, "--no-video")
    status, _, err = run(capsys, *words, "--run-dir", tmp_path / "run")
    assert status == 0, err
    assert "max_episode_steps: 200" in (tmp_path / "run" / "config.yaml").read_text()


def test_what_is_damaged_is_learned_again_or_named(capsys, tmp_path):
    folder = tmp_path / "cliff"
    cliff(capsys, folder, "--no-video", seeds=(1,))
    (folder / "seed-1" / "summary.json").write_text('{"mean_ret')
    assert cliff(capsys, folder, "--no-video", seeds=(1,))["mean_return"] <= -13
    (folder / "seed-1" / EPISODES).write_text("")
    common = ("q-learning", "--env", "CliffWalking-v1", "--episodes", 120, "--run-dir", folder, "--no-video")
    status, _, err = run(capsys, *common, "--seeds", 1)
    assert status == 1
    assert "holds a damaged episodes.csv" in err


def test_a_stopped_seed_of_dqn_begins_anew(capsys, tmp_path):
    left = tmp_path / "dqn" / "seed-1" / "run"
    left.mkdir(parents=True)
    (left / "config.yaml").write_text("seed: 1\n")
    words = ("dqn", "--max-steps", 300, "--final-episodes", 2, "--run-dir", tmp_path / "dqn", "--no-video")
    status, _, err = run(capsys, *words)
    assert status == 0, err


def test_dqn_is_the_last_rung(capsys, tmp_path):
    words = ("dqn", "--max-steps", 1500, "--final-episodes", 5, "--run-dir", tmp_path / "dqn", "--no-video", "--json")
    status, out, err = run(capsys, *words)
    assert status == 0, err
    figures = json.loads(out.splitlines()[-1])
    assert figures["method"] == "dqn"
    assert figures["agent_steps"] >= 1500
    assert (tmp_path / "dqn" / "curves.png").is_file()
