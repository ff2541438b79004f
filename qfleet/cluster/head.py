"""Reaches the head node of a cluster that `ray up` started, over ssh, with Ray's own commands."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import yaml

from rl.errors import BadInput, RunFault

DASHBOARD_PORT = 8265  # of the head node: Ray's job server
END_TIMEOUT = 5.0  # seconds that ssh has to end before it is killed
# Runs "$@" as the leader of a process group, which is killed at the end of standard input.
WATCHED = 'exec 3<&0; { read -r line <&3; kill -KILL 0; } & exec "$@" 3<&- </dev/null'
# Lines of ssh and Ray that do not say why a command failed.
NOISE = re.compile(
    r"Warning: |Attempting to establish|Shared connection to|Connection to \S+ closed|Loaded cached provider|If you exper"
    r"|Usage: |Pseudo-terminal|Checking |\S+ credentials|ssh_exchange|kex_exchange|Control socket|\d{4}-\d\d-\d\d |$"
)


def cluster_name(file: str) -> str:
    """The name of the cluster in the `ray up` file ``file``. Raises BadInput if it is missing or no such file."""
    try:
        data = yaml.safe_load(Path(file).read_text())
    except OSError as error:
        raise BadInput(f"--cluster {file} cannot be read ({error.strerror}): write the file of `ray up`") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise BadInput(f"--cluster {file} is not YAML{where}: write the file of `ray up`") from error
    if not isinstance(data, dict) or not {"cluster_name", "provider"} <= set(data):
        raise BadInput(f"--cluster {file} has no cluster_name and provider: write the file of `ray up`")
    return str(data["cluster_name"])


class Tunnel:
    """An ssh tunnel from a free port of this machine to the job server of a cluster's head node.

        tunnel = Tunnel("deploy/aws.yaml")
        tunnel.start()  # the server answers at tunnel.url some seconds later; until then ask tunnel.why_ended()
        tunnel.close()

    ``ray dashboard`` opens it, in a process group of its own, so that Ctrl-C in the terminal does not reach it.
    """

    def __init__(self, cluster: str) -> None:
        cluster_name(cluster)
        self._cluster = cluster
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        """Start ssh, after the end of an earlier one."""
        self.close()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        args = ["dashboard", self._cluster, "--port", str(port), "--remote-port", str(DASHBOARD_PORT)]
        self._process = start_ray_command(args, self._output)

    def why_ended(self) -> str | None:
        """Why ssh has ended, in its own words; None while it runs."""
        if self._process is None or self._output is None or self._process.poll() is None:
            return None
        self._output.seek(0)
        return reason(self._output.read().decode(errors="replace"))

    def close(self) -> None:
        """End ssh, if it runs."""
        if self._process is not None:
            end_group(self._process)
            self._process = None
        if self._output is not None:
            self._output.close()


def copy_from_head(cluster: str, source: str, target: Path, timeout: float) -> None:
    """Copy the directory ``source`` of the head node into the existing directory ``target``, by rsync.

    Raises RunFault if it fails, or takes longer than ``timeout`` seconds.
    """
    with tempfile.TemporaryFile() as output:
        process = start_ray_command(["rsync-down", cluster, f"{source}/", f"{target}/"], output)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise RunFault(f"{source} was not copied from the head node within {timeout:g} s: try again") from error
        finally:
            end_group(process)
        if status:
            output.seek(0)
            why = reason(output.read().decode(errors="replace"))
            raise RunFault(f"{source} could not be copied from the head node: {why}")


def start_ray_command(args: list[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the command `ray ARGS` of this environment in a group (`start_group`), with its output in a file."""
    return start_group([sys.executable, "-m", "ray.scripts.scripts", *args], output)


def start_group(command: list[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start ``command`` in a process group of its own, which also ends when this process is killed.

    A watching shell in the group waits for the end of a pipe that this process holds open.
    """
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    words = ["sh", "-c", WATCHED, "sh", *command]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True, env=env)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End ``process``, which leads a process group, and the whole group: with SIGTERM, then with SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT)
    if process.stdin is not None:
        process.stdin.close()


def reason(output: str) -> str:
    """Why a command of Ray failed: the last line of ssh or rsync in its ``output``, else Ray's own message."""
    before, _, failure = output.partition("\nError: ")
    lines = [line.strip() for line in before.splitlines()]
    said = [line for line in lines if line and not NOISE.match(line)]
    exception = failure.partition("The exception is: ")[2] or failure
    own = [line.strip() for line in exception.splitlines() if line.strip() and "Command failed" not in line]
    if said:
        return said[-1]
    return own[0] if own else "it ended without a message"
