"""Ends this node's part of a Ray cluster within seconds after Ray ended on the head node.

    watch_head.py HEAD:PORT      the address that was passed to `ray start --address`, as an IP address

On a cluster of your own machines `ray down` stops Ray on the head node only. A worker's raylet runs on for a minute,
because it can't tell a head node where Ray has ended from a link that is cut. This script can: while connections time
out it waits, and when the head's machine *refuses* them three times in a row, a second apart, it ends Ray here.

It returns at once and leaves a process behind, which outlives the ssh session. That process watches the raylet that
runs now and ends with it. A raylet that is started later is not its concern; it gets a watch of its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time

import psutil

REFUSALS = 3  # in a row
PERIOD = 1.0  # seconds between attempts to connect
PATIENCE = 2.0  # seconds for processes to end before they are killed


def is_raylet(process: psutil.Process) -> bool:
    """Whether ``process`` is a raylet that runs; False once it has ended."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and os.path.basename(process.cmdline()[0]) == "raylet"
    except (psutil.Error, IndexError):
        return False


def processes_of(address: str) -> list[psutil.Process]:
    """The processes that `ray start` left on this machine for the cluster at ``address``."""
    flag = f"--gcs-address={address}"
    return [process for process in psutil.process_iter(["cmdline"]) if flag in (process.info["cmdline"] or [])]


def refuses(host: str, port: int) -> bool:
    """Whether the machine ``host`` answers that nothing listens on ``port``. False if it does not answer."""
    try:
        socket.create_connection((host, port), timeout=3.0).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def end(processes: list[psutil.Process]) -> None:
    """Terminate the raylets among ``processes``, then the rest and all descendants; kill what does not end."""
    everything = set(processes)
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it may have ended
            everything.update(process.children(recursive=True))
    raylets = {process for process in everything if is_raylet(process)}
    for group in (raylets, everything - raylets):
        for process in group:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, alive = psutil.wait_procs(list(group), timeout=PATIENCE)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()


def watch(address: str) -> None:
    """Return when the raylets of the cluster at ``address`` have ended, or end them when the head refuses."""
    host, port = address.rsplit(":", 1)
    processes = processes_of(address)
    raylets = [process for process in processes if is_raylet(process)]
    refusals = 0
    while any(is_raylet(raylet) for raylet in raylets):
        refusals = refusals + 1 if refuses(host, int(port)) else 0
        if refusals == REFUSALS:
            return end(processes)
        time.sleep(PERIOD)


def detach() -> None:
    """Go on in a process of a session of its own, without the terminal; the caller's process ends here."""
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].rpartition(":")[2].isdecimal():
        sys.exit("watch_head.py: expected HEAD:PORT, for example 10.0.0.1:6379")
    detach()
    watch(sys.argv[1])
