"""Faults on Ray: error messages shortened to one line, and a start that the user ended."""

from __future__ import annotations

import re

import ray

OWN = re.compile(r"^rl\.errors\.\w+: ")  # Python's name of our errors, before their message

# Ray writes "(pid=7, ip=10.0.0.2, ..." or, on a line of its own, "ip: 10.0.0.2".
NODE = re.compile(r"\bip[=:]\s*([^\s,)]+)")
# How Ray describes that a process has died; some 600 characters about possible causes follow.
PROCESS_DIED = re.compile(r"^The actor is dead because its worker process has died\. Worker exit type: (\w+)")
KILLED = "The actor is dead because it was killed by `ray.kill`."
# What a call of a Ray actor raises that will not come back, beside ActorUnavailableError, which is a RayActorError, too.
# OutOfMemoryError: Ray's memory monitor has killed the process.
DIED = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ActorUnschedulableError,
    ray.exceptions.RuntimeEnvSetupError,
)


class StoppedDuringStart(Exception):
    """The user ended the run while its processes were starting."""


def last_line(error: Exception) -> str:
    """The last non-empty line of an error's message, or its repr if the message is empty.

    For an error raised in a worker, the last line is the error itself; the lines before it are its traceback.
    """
    line = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), repr(error))
    if line == KILLED:
        return "its process was killed"
    if died := PROCESS_DIED.match(line):
        return "its process has died" + ("" if died[1] == "SYSTEM_ERROR" else f": {died[1]}")
    return OWN.sub("", line)


def first_line(error: Exception) -> str:
    """The first non-empty line of an error's message, or its repr if the message is empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def reason(error: Exception) -> str:
    """One line about an error that a call of a Ray actor has raised, without the actor's traceback.

    The first line about an actor that has died says no more than that.
    """
    told_last = (ray.exceptions.RayTaskError, ray.exceptions.ActorDiedError, ray.exceptions.RuntimeEnvSetupError)
    return last_line(error) if isinstance(error, told_last) else first_line(error)


def where(error: Exception) -> str:
    """ " on the node 10.0.0.2" if Ray's message says where the process was, else ""."""
    found = NODE.search(str(error))
    return f" on the node {found[1]}" if found else ""
