"""Hosts as Linux network namespaces: a laptop, a head and workers, each with its own address and sshd.

    with Hosts(workers=3) as hosts:
        print(hosts.laptop.run(".venv/bin/ray up -y deploy/local.yaml", timeout=120).output)
        hosts.cut(hosts.workers[0])

All of it lies inside one outer set of namespaces, the *site*: its network has the switch between the hosts, its mount
namespace a tmpfs with their disks, its process ids all their processes. The site's first process reads a pipe whose other
end only the test holds. When the test ends in any way, also by SIGKILL, that process ends, and the kernel ends every
process and removes every mount, link and file of the site. Nothing of it is visible to the machine outside.

A host has its own process ids, network, mounts, hostname, home, /tmp, /run and /dev/shm. It shares the machine's
programs, and the environment of this Python, which it finds at ~/qfleet/.venv as if it had been installed there.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.cluster.disks import BOOT, DISKS, SITE, copy_command, make_site
from tests.cluster.host import ENVIRONMENT, Host, HostError

NETWORK = "10.77.0"  # the first three numbers of all addresses; no other network can be reached from the hosts
UNSHARE = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
START_SECONDS = 30.0  # for the site, or a host, to start
END_SECONDS = 30.0  # for the kernel to end all processes of the site


class Hosts:
    """A laptop, a head and ``workers`` workers in one network. Use it in a ``with`` statement.

    Raises HostError if a host does not start, and at the end if something is left.
    """

    def __init__(self, workers: int = 3) -> None:
        self._names = ["laptop", "head", *(f"worker-{i + 1}" for i in range(workers))]
        self._site: subprocess.Popen[bytes] | None = None
        self._namespaces: dict[str, int] = {}  # an open file for each, so that the kernel does not use its name again
        self.site_pid = 0
        self._hosts: dict[str, Host] = {}

    @classmethod
    def attach(cls, site_pid: int) -> Hosts:
        """The running hosts whose site has the first process ``site_pid``. `close` leaves them as they are."""
        hosts = cls(0)
        hosts.site_pid = site_pid
        try:
            records = json.loads((hosts._disks / "hosts.json").read_text())
        except OSError:
            raise HostError(f"no hosts have the site {site_pid}") from None
        for record in records:
            first = None  # the host is down
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(record["pid"])
                if process.create_time() == record["created"]:  # else another process has its id now
                    first = process
            hosts._hosts[record["name"]] = Host(record["name"], record["address"], first)
        return hosts

    def __enter__(self) -> Hosts:
        if self.site_pid:  # attached
            return self
        try:
            self._start_site()
            for number, name in enumerate(self._names):
                self._hosts[name] = Host(name, f"{NETWORK}.{10 + number}")
            make_site(self._disks, {h.name: h.address for h in self.all})
            self.copy_checkout(self.laptop)
            for host in self.all:
                self.boot(host)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def all(self) -> list[Host]:
        """All hosts: the laptop, the head, and the workers."""
        return list(self._hosts.values())

    @property
    def laptop(self) -> Host:
        """The host on which the user types."""
        return self._hosts["laptop"]

    @property
    def head(self) -> Host:
        """The cluster's head."""
        return self._hosts["head"]

    @property
    def workers(self) -> list[Host]:
        """The other hosts of the cluster."""
        return self.all[2:]

    @property
    def _disks(self) -> Path:
        return Path(f"/proc/{self.site_pid}/root{DISKS}")

    def _start_site(self) -> None:
        command = [*UNSHARE, "bash", "-ec", SITE, "site", f"{NETWORK}.1/24"]
        self._site = _start(command)
        self.site_pid = _first_process(self._site, depth=1, what="the hosts' network").pid
        self._remember(self.site_pid)

    def boot(self, host: Host) -> None:
        """Start ``host``, which is down, with the disk that it had. Raises HostError if it does not start."""
        arguments = [host.name, host.address, f"{NETWORK}.1"]
        host.boot = _start([*self._enter_site("-m", "-p"), *UNSHARE, "bash", "-ec", BOOT, *arguments])
        host.first = _first_process(host.boot, depth=2, what=host.name)
        self._remember(host.pid)
        link = _link(host)
        self._ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        self._ip("link", "set", link, "master", "switch", "up")
        assert host.boot.stdin is not None
        host.boot.stdin.write(b"go\n")
        host.boot.stdin.flush()
        until = time.monotonic() + START_SECONDS
        while b"listening" not in _read(host.path("/run/sshd.log")):
            if time.monotonic() > until or not host.is_up:
                raise HostError(f"{host.name}: its sshd does not listen:\n{_read(host.path('/run/sshd.log')).decode()}")
            time.sleep(0.05)
        # `Hosts.attach` reads it.
        records = [
            {"name": h.name, "address": h.address, "pid": h.first.pid, "created": h.first.create_time()}
            for h in self.all
            if h.first is not None
        ]
        (self._disks / "hosts.json").write_text(json.dumps(records))

    def copy_checkout(self, host: Host) -> None:
        """Bring ~/qfleet of ``host`` up to date with this checkout."""
        subprocess.run([*self._enter_site("-m"), *copy_command(host.name)], check=True)

    def kill(self, host: Host) -> None:
        """Switch ``host`` off, as if its power failed: its peers hear nothing more from it. Its disk stays."""
        self.cut(host)
        if host.first is not None:
            with suppress(psutil.NoSuchProcess):
                host.first.kill()
        _await(lambda: not host.is_up, f"{host.name} is down")
        with suppress(HostError):  # the kernel removes it, too, but later
            self._ip("link", "del", _link(host))
        if host.boot is not None:
            host.boot.wait(END_SECONDS)

    def cut(self, host: Host) -> None:
        """Pull the network cable of ``host``; its addresses and processes stay."""
        self._ip("link", "set", _link(host), "down")

    def mend(self, host: Host) -> None:
        """Put the network cable of ``host`` back."""
        self._ip("link", "set", _link(host), "up")

    def close_ports(self, host: Host, first: int, last: int) -> None:
        """Drop what arrives at these TCP ports of ``host`` without an answer, as a firewall does."""
        # The table of local addresses is asked first, so it must come after the rule that drops.
        for rule in ("add pref 9 lookup local", "del pref 0"):
            self._ip("-4", "rule", *rule.split(), inside=host)
        drop = f"add pref 8 iif eth0 ipproto tcp dport {first}-{last} blackhole"
        self._ip("-4", "rule", *drop.split(), inside=host)

    def open_ports(self, host: Host) -> None:
        """Undo `close_ports`."""
        for rule in ("add pref 0 lookup local", "del pref 8", "del pref 9"):
            self._ip("-4", "rule", *rule.split(), inside=host)

    def _enter_site(self, *namespaces: str) -> list[str]:
        return ["nsenter", "-t", str(self.site_pid), *namespaces]

    def _ip(self, *args: str, inside: Host | None = None) -> None:
        enter = self._enter_site("-n") if inside is None else ["nsenter", "-t", str(inside.pid), "-n"]
        done = subprocess.run([*enter, "ip", *args], capture_output=True, text=True)
        if done.returncode != 0:
            raise HostError(f"`ip {shlex.join(args)}`: {done.stderr.strip()}")

    def _remember(self, pid: int) -> None:
        for file in (f"/proc/{pid}/ns/{kind}" for kind in ("pid", "mnt", "net")):
            self._namespaces[os.readlink(file)] = os.open(file, os.O_RDONLY)

    def close(self) -> None:
        """End everything, and check that no process is left. Raises HostError if one is."""
        if self._site is None:
            return
        with suppress(ProcessLookupError):
            os.kill(self.site_pid or self._site.pid, signal.SIGKILL)
        self._site.wait(END_SECONDS)
        for host in self.all:
            if host.boot is not None:
                host.boot.wait(END_SECONDS)
        self._site = None
        try:
            _await(lambda: not self.left(), "no process of the hosts is left", self.left)
        finally:
            for file in self._namespaces.values():
                os.close(file)
            self._namespaces = {}

    def left(self) -> list[str]:
        """Command lines of processes that live in one of the hosts' namespaces.

        A namespace, and the mounts and links in it, live as long as a process that is in it.
        """
        found = []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                own = {os.readlink(f"/proc/{process.pid}/ns/{kind}") for kind in ("pid", "mnt", "net")}
                if own & self._namespaces.keys():
                    found.append(shlex.join(process.cmdline()))
        return found


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start ``command``, whose script writes a line and then reads its input; Ctrl-C does not reach it."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=ENVIRONMENT,
    )


def _first_process(process: subprocess.Popen[bytes], depth: int, what: str) -> psutil.Process:
    """The descendant ``depth`` generations below ``process``, once it has printed its first line."""
    assert process.stdout is not None
    assert process.stderr is not None
    if process.stdout.readline() != b"ready\n":
        process.wait(START_SECONDS)
        raise HostError(f"{what} did not start: {process.stderr.read().decode()}")
    found = psutil.Process(process.pid)
    for _ in range(depth):
        (found,) = found.children()
    return found


def _link(host: Host) -> str:
    """The end of the host's cable at the switch; the kernel allows 15 characters."""
    return f"v-{host.name}"


def _await(condition: Callable[[], bool], what: str, last: Callable[[], object] = str) -> None:
    until = time.monotonic() + END_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise HostError(f"waited {END_SECONDS:.0f} s until {what} {last()}")
        time.sleep(0.05)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
