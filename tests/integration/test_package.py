"""The package for its users: which libraries an import loads, and the wheel without the checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT

OURS = ("rl", "protos", "replay", "actors", "learner", "report", "classic", "qfleet", "benchmarks")
TINY = ["--serial", "--max-steps", "300", "--learner.device", "cpu", "--evaluation.period", "0"]

LOADED = """
import contextlib, io, sys
import qfleet
assert not {"torch", "gymnasium", "ray"} & sys.modules.keys(), "import qfleet loads a large library"
from qfleet.cli.main import main
for args in COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as output:
        try:
            status = main(args)
        except SystemExit as stop:
            status = stop.code or 0
    loaded = [name for name in ("torch", "gymnasium", "ray") if name in sys.modules]
    print(" ".join(args[:2]), status, loaded, output.getvalue())
"""


def python(*args, **kwargs):
    """The finished process of this Python with ``args``, its output captured."""
    kwargs.setdefault("cwd", ROOT)
    return subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, timeout=200, **kwargs)


def test_commands_import_only_the_libraries_that_they_need(tmp_path):
    """All commands run in one process, so each one's list includes what the commands before it imported."""
    run = str(tmp_path / "run")
    learning = ["torch", "gymnasium"]
    commands = {
        ("--help",): (0, []),
        ("replay", "serve", "--help"): (0, []),
        ("replay", "info", "127.0.0.1:1", "--timeout", "0.5"): (1, []),  # no shard listens there
        ("classic",): (0, learning),
        ("train", "cartpole", *TINY, "--run-dir", run): (0, learning),
        ("eval", run, "--episodes", "1"): (0, learning),
    }
    done = python("-c", LOADED.replace("COMMANDS", repr([list(args) for args in commands])))
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if re.search(r" \d \[.*\] ", line)]
    for line, (args, (status, loaded)) in zip(lines, commands.items(), strict=True):
        assert line.startswith(f"{' '.join(args[:2])} {status} {loaded}"), done.stdout


def test_processes_that_do_not_learn_or_act_load_no_torch():
    """Each process of torch takes 170 MB of memory, and 3 seconds of a slow core at its start."""
    modules = "qfleet.cluster.board, qfleet.cluster.weights, qfleet.cluster.shard_worker"
    done = python("-c", f"import sys, {modules}; assert not {{'torch', 'gymnasium'}} & sys.modules.keys()")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of a wheel built from the tracked files."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # pip builds in the source tree: a copy keeps the checkout as it is
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        if not name.startswith(("docs/", "tests/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = ["-m", "pip", "--disable-pip-version-check", "wheel", source, "--no-deps", "--no-build-isolation"]
    done = python(*pip, "-w", folder, cwd=folder)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("qfleet-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """(site directory, environment, empty directory): with this environment Python imports Qfleet from the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    done = python("-m", "pip", "install", "-q", "--no-deps", "--target", folder / "site", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "empty").mkdir()
    return folder / "site", {**os.environ, "PYTHONPATH": str(folder / "site")}, folder / "empty"


def test_the_wheel_contains_every_package_and_its_types(wheel):
    with zipfile.ZipFile(wheel) as file:
        held = set(file.namelist())
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    ours = {name for name in tracked.split() if not name.startswith(("tests/", "docs/", "deploy/", "."))}
    assert {"qfleet/__main__.py", "benchmarks/registry.py"} <= ours
    assert not ours - held
    assert {"protos/replay.proto", "protos/replay_pb2.pyi", *(f"{name}/py.typed" for name in OURS)} <= held
    assert not [name for name in held if name.startswith("tests/")]


def test_the_installed_package_runs_without_the_checkout(installed):
    site, env, empty = installed
    where = python("-c", "import qfleet, benchmarks; print(qfleet.__file__, benchmarks.__file__)", env=env, cwd=empty)
    assert [name.startswith(str(site)) for name in where.stdout.split()] == [True, True], where.stderr
    assert python("-m", "qfleet", "--help", env=env, cwd=empty).stdout.startswith("usage: qfleet COMMAND")
    trained = python("-m", "qfleet", "train", "cartpole", *TINY, "--json", env=env, cwd=empty)
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout.splitlines()[-1])["agent_steps"] >= 300


USER_CODE = """
import qfleet
reveal_type(qfleet.train)
reveal_type(qfleet.preset("pong"))
reveal_type(qfleet.preset("pong").learner.batch_size)
reveal_type(qfleet.preset("pong").env.id)
qfleet.trian
"""


def test_a_type_checker_sees_its_types(installed):
    """Without py.typed, mypy would treat everything in the package as Any."""
    _, env, empty = installed
    (empty / "mypy.ini").write_text(
        "[mypy]\nfollow_imports = skip\n" + "".join(f"[mypy-{name}.*]\nfollow_imports = silent\n" for name in OURS)
    )  # this saves a minute
    (empty / "user.py").write_text(USER_CODE)
    out = python("-m", "mypy", "--cache-dir", os.devnull, "user.py", env=env, cwd=empty).stdout
    revealed = re.findall(r'Revealed type is "(.*)"', out)
    assert len(revealed) == 4, out
    assert revealed[0].startswith("def (config: ")
    assert [name.removeprefix("builtins.") for name in revealed[1:]] == ["qfleet.config.TrainConfig", "int", "str"]
    assert 'Module has no attribute "trian"' in out
