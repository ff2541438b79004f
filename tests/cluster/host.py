"""One host of the cluster test: commands on it, and its processes and files."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from tests.cluster.disks import HOME

ENVIRONMENT = {
    "HOME": HOME,
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/bash",
    "TERM": "dumb",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}


class HostError(Exception):
    """A host, or a command on it, did not do what the test needs; the text says which and shows the last output."""


@dataclass(frozen=True)
class Result:
    """The exit status of a command, and its standard output and standard error together."""

    status: int
    output: str


@dataclass
class Host:
    """One host. ``first`` is its first process, as the machine sees it; ``boot`` started it, unless another test did."""

    name: str
    address: str
    first: psutil.Process | None = None
    boot: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def is_up(self) -> bool:
        """Whether its first process lives."""
        try:
            # is_running compares the start time, too: the machine uses process ids again.
            return self.first is not None and self.first.is_running() and self.first.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    @property
    def pid(self) -> int:
        """The id of its first process, as the machine counts. Raises HostError if the host is down."""
        if self.first is None or not self.is_up:
            raise HostError(f"{self.name} is down")
        return int(self.first.pid)

    def enter(self, command: str) -> list[str]:
        """The command line that runs the shell ``command`` in ~/qfleet of this host, from outside of it."""
        environment = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        shell = ["bash", "--login", "-c", f"cd ~/qfleet && {command}"]
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "-p", "-u", "-i", "env", "-i", *environment, *shell]

    def run(self, command: str, timeout: float = 60.0, check: bool = True) -> Result:
        """Run the shell ``command`` in ~/qfleet, as a login shell does, and wait for it.

        Raises HostError if it takes longer than ``timeout`` seconds, or with ``check`` if its status is not 0.
        """
        # A file, not a pipe: an ssh connection that stays open in the background would keep a pipe open.
        with tempfile.TemporaryFile() as out:
            process = self.start(command, out)
            try:
                status = process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise HostError(
                    f"{self.name}: `{command}` has not ended after {timeout:.0f} s:\n{_tail(out)}"
                ) from None
            finally:
                end(process)
            if check and status != 0:
                raise HostError(f"{self.name}: `{command}` ended with status {status}:\n{_tail(out)}")
            out.seek(0)
            return Result(status, out.read().decode(errors="replace"))

    def start(self, command: str, out: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start the shell ``command`` as `run` does, in its own process group, with its output in the file ``out``."""
        return subprocess.Popen(
            self.enter(command), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )

    def processes(self, name: str = "") -> list[psutil.Process]:
        """The living processes of this host, or those called ``name``; none if the host is down."""
        if not self.is_up:
            return []
        own, found = os.readlink(f"/proc/{self.pid}/ns/pid"), []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                is_here = os.readlink(f"/proc/{process.pid}/ns/pid") == own
                if is_here and name in ("", process.name()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def path(self, path: str) -> Path:
        """The file ``path`` of this host (absolute or ~/...), as the machine outside can open it."""
        return Path(f"/proc/{self.pid}/root{path.replace('~', HOME, 1)}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End ``process``, which `Host.start` started, and what it started in its process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(out: IO[bytes], lines: int = 30) -> str:
    out.seek(0)
    return "\n".join(out.read().decode(errors="replace").splitlines()[-lines:])
