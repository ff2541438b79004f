"""What commands make of a run: a line of JSON, a picture, a video."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

from qfleet.cli import main as cli


def test_json_is_the_last_line(places, capsys):
    assert cli.main(["eval", str(places["RUN"]), "--episodes", "2", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["episodes"] == 2
    assert figures["env"] == "CartPole-v1"
    assert cli.main(["status", str(places["RUN"]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["agent_steps"] >= 300


def test_plot_draws_a_picture(places, tmp_path):
    assert cli.main(["plot", str(places["RUN"]), "--to", str(tmp_path / "a" / "curves.png")]) == 0
    assert (tmp_path / "a" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_eval_writes_a_video(places):
    assert cli.main(["eval", str(places["RUN"]), "--episodes", "1", "--video"]) == 0
    videos = list((places["RUN"] / "videos").glob("*.mp4"))
    assert len(videos) == 1
    assert videos[0].stat().st_size > 1000


def eval_of(run, *words, without=""):
    """`qfleet eval` of two episodes in a process of its own, in which importing ``without`` raises ImportError."""
    program = (
        f"import sys\nsys.modules[{without!r}] = None\nfrom qfleet.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "eval", str(run), "--episodes", "2", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_a_video_that_cannot_be_drawn_is_refused_before_anything_is_played(places):
    said = "qfleet: env.id 'CartPole-v1' cannot be rendered: pygame is not installed, run `pip install"
    status, out, err = eval_of(places["RUN"], "--video", without="pygame")
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith(said)
    assert err.endswith("or write --no-video\n")
    assert eval_of(places["RUN"], without="pygame")[0] == 0


def test_a_video_that_cannot_be_kept_is_refused_before_anything_is_played(places, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(places["RUN"], run, ignore=shutil.ignore_patterns("videos"))
    (run / "videos").write_text("")
    status, out, err = eval_of(run, "--video")
    assert (status, out) == (2, "")
    assert err == f"qfleet: {run}/videos cannot be written (Not a directory): write --no-video\n"
