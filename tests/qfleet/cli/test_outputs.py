"""Outputs of the commands on a run: JSON, plots and videos."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

from qfleet.cli import main as cli


def test_json_is_the_last_line_of_output(places, capsys):
    assert cli.main(["eval", str(places["RUN"]), "--episodes", "2", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["episodes"] == 2
    assert figures["env"] == "CartPole-v1"
    assert cli.main(["status", str(places["RUN"]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["agent_steps"] >= 300


def test_plot_writes_a_png(places, tmp_path):
    assert cli.main(["plot", str(places["RUN"]), "--to", str(tmp_path / "a" / "curves.png")]) == 0
    assert (tmp_path / "a" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_eval_writes_a_video(places):
    assert cli.main(["eval", str(places["RUN"]), "--episodes", "1", "--video"]) == 0
    videos = list((places["RUN"] / "videos").glob("*.mp4"))
    assert len(videos) == 1
    assert videos[0].stat().st_size > 1000


def run_eval(run, *flags, without=""):
    """Run `qfleet eval` for two episodes in a new process in which importing ``without`` raises ImportError.

    Returns (exit status, stdout, stderr).
    """
    program = (
        f"import sys\nsys.modules[{without!r}] = None\nfrom qfleet.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "eval", str(run), "--episodes", "2", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_eval_checks_that_it_can_draw_a_video_before_it_plays(places):
    message = "qfleet: no video can be recorded: env.id 'CartPole-v1' cannot be rendered: pygame is not installed, run"
    status, out, err = run_eval(places["RUN"], "--video", without="pygame")
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith(message)
    assert err.endswith("(leave out --video to evaluate only)\n")
    assert run_eval(places["RUN"], without="pygame")[0] == 0


def test_eval_checks_that_it_can_write_a_video_before_it_plays(places, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(places["RUN"], run, ignore=shutil.ignore_patterns("videos"))
    (run / "videos").write_text("")
    status, out, err = run_eval(run, "--video")
    assert (status, out) == (2, "")
    assert err == f"qfleet: {run}/videos cannot be written (Not a directory): make it writable, or leave out --video\n"
