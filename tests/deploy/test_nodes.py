"""The scripts that the cluster files run on each node: deploy/setup.sh and deploy/watch_head.py."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from tests.conftest import ROOT

SETUP, WATCH = ROOT / "deploy" / "setup.sh", ROOT / "deploy" / "watch_head.py"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@pytest.fixture
def home(tmp_path):
    """A home directory with ~/qfleet, in which `make` only shows its environment."""
    checkout = tmp_path / "qfleet"
    checkout.mkdir()
    (checkout / ".venv").symlink_to(sys.prefix)  # made before by the same version of Python
    (checkout / "Makefile").write_text(
        ".PHONY: .venv/.installed\n.venv/.installed:\n\t@echo $(PYTHON) $$PIP_EXTRA_INDEX_URL\n"
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / ".bashrc").write_text("case $- in *i*) ;; *) return ;; esac\n")
    return tmp_path


def script(home, name, body):
    path = home / "bin" / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def set_up(home, python=sys.executable, **env):
    path = f"{home / 'bin'}:/usr/bin:/bin"
    env = {"HOME": str(home), "PATH": path, "PIP_CONFIG_FILE": os.devnull, **env}
    return subprocess.run(["bash", SETUP, python], env=env, capture_output=True, text=True, timeout=60)


def test_setup_takes_the_cpu_build_of_pytorch_where_there_is_no_gpu_and_no_other_setting(home, tmp_path):
    assert set_up(home).stdout.split() == [sys.executable, CPU_INDEX]
    settings = tmp_path / "pip.conf"
    more = "".join(f"option{i} = {'x' * 1000}\n" for i in range(200))  # more than a pipe holds
    settings.write_text(f"[global]\nindex-url = http://127.0.0.1/simple\n{more}")
    assert set_up(home, PIP_CONFIG_FILE=str(settings)).stdout.split() == [sys.executable]
    script(home, "nvidia-smi", "exit 0")
    assert set_up(home).stdout.split() == [sys.executable]


def test_setup_puts_the_environment_on_the_path_of_each_shell_once(home):
    set_up(home)
    set_up(home)
    lines = (home / ".bashrc").read_text().splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("# qfleet")  # before the line that ends shells that are not interactive
    show = ["bash", "-c", "source ~/.bashrc; echo $PATH $RAY_AUTH_MODE"]
    out = subprocess.run(
        show, env={"HOME": str(home), "PATH": "/bin"}, capture_output=True, text=True, check=True
    ).stdout
    assert out == f"{home}/qfleet/.venv/bin:/bin token\n"
    before = (home / ".bashrc").stat()
    set_up(home)
    after = (home / ".bashrc").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not list(home.glob(".bashrc.*"))


def test_setup_makes_the_environment_again_when_another_python_made_it(home):
    environment = home / "qfleet" / ".venv"
    environment.unlink()
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(sys.executable)  # as after an upgrade of the system, in place
    (environment / "pyvenv.cfg").write_text("version = 3.9.1\n")
    (environment / ".installed").touch()
    assert set_up(home).returncode == 0
    assert not (environment / ".installed").exists()


def test_setup_rejects_a_python_that_is_missing_or_too_old(home):
    done = set_up(home, "python4")
    assert done.returncode == 1
    assert "has no python4: install it" in done.stderr
    script(home, "python3.10", 'case "$2" in *exit*) exit 1 ;; *) echo 3.10 ;; esac')
    done = set_up(home, "python3.10")
    assert done.returncode == 1
    assert "is Python 3.10, Qfleet needs 3.11 or newer" in done.stderr


def module():
    spec = importlib.util.spec_from_file_location("watch_head", WATCH)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def fake_raylet(address):
    """A process that looks like the raylet of the cluster at ``address`` and, like one whose head is gone, does not end
    when it is asked to; with a child."""
    code = "import signal, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    code += "subprocess.Popen(['sleep', '60']); time.sleep(60)"
    arguments = ["/ray/raylet", "-c", code, f"--gcs-address={address}"]
    return subprocess.Popen(arguments, executable=sys.executable)


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not within time"
        time.sleep(0.05)


def watches(address):
    """The processes that watch ``address``."""
    return [
        p
        for p in psutil.process_iter(["cmdline"])
        if str(WATCH) in (p.info["cmdline"] or []) and address in p.info["cmdline"]
    ]


def test_a_worker_ends_when_its_head_refuses_connections_and_not_before():
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        raylet, other = fake_raylet(address), fake_raylet("127.0.0.1:1")
        try:
            wait_until(lambda: psutil.Process(raylet.pid).children())
            child = psutil.Process(raylet.pid).children()[0]
            subprocess.run([sys.executable, WATCH, address], check=True, timeout=20)  # returns
            time.sleep(3.5)  # the head answers
            assert raylet.poll() is None
            assert len(watches(address)) == 1
            head.close()
            assert raylet.wait(20) != 0
            wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
            wait_until(lambda: not watches(address))
            assert other.poll() is None  # of another cluster
        finally:
            for process in (raylet, other):
                for descendant in psutil.Process(process.pid).children() if process.poll() is None else []:
                    descendant.kill()
                process.kill()
                process.wait()


def test_a_watch_ends_with_its_raylet():
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        raylet = subprocess.Popen(
            ["/ray/raylet", "-c", "import time; time.sleep(60)", f"--gcs-address={address}"], executable=sys.executable
        )
        subprocess.run([sys.executable, WATCH, address], check=True, timeout=20)
        wait_until(lambda: watches(address))
        raylet.kill()
        raylet.wait()
        wait_until(lambda: not watches(address))


def test_a_head_that_does_not_answer_does_not_refuse():
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen(0)
        host, port = head.getsockname()
        waiting = [socket.socket() for _ in range(4)]  # fill the queue: further attempts time out, as on a cut link
        for s in waiting:
            s.setblocking(False)
            s.connect_ex((host, port))
        assert not module().refuses(host, port)
        for s in waiting:
            s.close()
    assert module().refuses(host, port)
