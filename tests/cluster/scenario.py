"""What the steps of the cluster test share: a user's keyboard, deadlines, and what Ray and the run say of themselves."""

from __future__ import annotations

import csv
import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.cluster.host import Host, HostError, Result
from tests.cluster.hosts import Hosts

RUN = "cluster-test"  # the name of the run
LOG_LINES = 25  # lines of each log that are shown when a step fails
T = TypeVar("T")
Figures = dict[str, Any]

# Prints what Ray's state API says of $1: nodes, or actors.
STATE_QUERY = """
import pathlib, sys, urllib.request as web
token = pathlib.Path.home() / ".ray" / "auth_token"
headers = {"Authorization": "Bearer " + token.read_text().strip()} if token.exists() else {}
url = f"http://127.0.0.1:8265/api/v0/{sys.argv[1]}?limit=1000&detail=1"
print(web.urlopen(web.Request(url, headers=headers), timeout=20).read().decode())
"""


class StepFailed(Exception):
    """A step did not reach what it waits for; the text says what that is and what was seen last."""


@dataclass(frozen=True)
class Step:
    """A step of the scenario; ``seconds`` is its deadline, ``run`` returns figures to report."""

    name: str
    run: Callable[[Scenario], Figures | None]
    seconds: float

    @property
    def meaning(self) -> str:
        """The first line of the function's docstring."""
        return (self.run.__doc__ or "").split("\n")[0]


@dataclass
class Scenario:
    """The hosts, and the clock of the present step. ``patience`` multiplies all deadlines, for a busy machine."""

    hosts: Hosts
    patience: float = 1.0
    _until: float = field(default=0.0, repr=False)

    def do(self, step: Step) -> dict[str, Any]:
        """Do ``step``; returns its name, seconds, deadline and figures. Raises StepFailed."""
        started = time.monotonic()
        self.start_clock(step.seconds)
        try:
            figures = step.run(self) or {}
        except HostError as error:
            raise StepFailed(str(error)) from error
        seconds = time.monotonic() - started
        return {
            "step": step.name,
            "seconds": round(seconds, 1),
            "deadline": step.seconds * self.patience,
            "figures": figures,
        }

    def start_clock(self, seconds: float) -> None:
        """From now on `type` and `until` have ``seconds``, times `patience`."""
        self._until = time.monotonic() + seconds * self.patience

    def left(self) -> float:
        """Seconds until the deadline of the present step, at least 1."""
        return max(self._until - time.monotonic(), 1.0)

    def type(self, command: str, check: bool = True) -> Result:
        """What ``command``, typed on the laptop in ~/qfleet with the environment activated, prints."""
        return self.hosts.laptop.run(f". .venv/bin/activate && {command}", self.left(), check)

    def until(self, what: str, look: Callable[[], T], period: float = 2.0) -> T:
        """What ``look`` returns, once that is true; it raises AssertionError to say what it sees instead.

        Raises StepFailed at the deadline of the step.
        """
        started = time.monotonic()
        while True:
            try:
                if seen := look():
                    return seen
                saw = repr(seen)
            except (AssertionError, HostError) as error:
                saw = str(error)
            if time.monotonic() > self._until:
                raise StepFailed(f"waited {time.monotonic() - started:.0f} s until {what}; last seen: {saw}")
            time.sleep(min(period, self.left()))

    def ray_state(self, kind: str) -> list[dict[str, Any]]:
        """The ``kind`` ("nodes", "actors") of the cluster, as the head's state API lists them. Raises AssertionError."""
        result = self.hosts.head.run(
            f".venv/bin/python -c {shlex.quote(STATE_QUERY)} {kind}", min(self.left(), 60), check=False
        )
        assert result.status == 0, f"the state API on the head does not answer: {result.output.strip()[-300:]}"
        found: list[dict[str, Any]] = json.loads(result.output)["data"]["result"]["result"]
        return found

    def ray_status(self) -> str:
        """What `ray status` prints on the head."""
        return self.hosts.head.run(".venv/bin/ray status", self.left()).output

    def nodes(self) -> dict[str, str]:
        """{id: name of the host} of all living nodes."""
        names = {host.address: host.name for host in self.hosts.all}
        return {n["node_id"]: names[n["node_ip"]] for n in self.ray_state("nodes") if n["state"] == "ALIVE"}

    def places(self) -> dict[str, list[str]]:
        """{class: names of the hosts on which living Ray actors of this class are}, one for each Ray actor, sorted."""
        nodes, found = self.nodes(), dict[str, list[str]]()
        for actor in self.ray_state("actors"):
            if actor["state"] == "ALIVE":
                found.setdefault(actor["class_name"], []).append(nodes.get(actor["node_id"], "a dead node"))
        return {name: sorted(places) for name, places in found.items()}

    def status(self, run: str = RUN) -> dict[str, Any]:
        """The status.json of ``run`` on the head. Raises AssertionError if there is none yet."""
        try:
            figures: dict[str, Any] = json.loads(self.hosts.head.path(f"~/qfleet/runs/{run}/status.json").read_text())
        except (OSError, ValueError):
            raise AssertionError("the run has no status yet") from None
        return figures

    def evaluations(self) -> list[dict[str, str]]:
        """The rows of the run's eval.csv on the head."""
        file = self.hosts.head.path(f"~/qfleet/runs/{RUN}/eval.csv")
        if not file.exists():
            return []
        with file.open(newline="") as opened:
            return list(csv.DictReader(opened))

    def evidence(self) -> str:
        """The last lines of the logs that say why a step failed."""
        ray = "/tmp/ray/session_latest/logs"
        parts = [self._last_lines(self.hosts.head, f"{ray}/{name}") for name in ("job-driver-*.log", "monitor.err")]
        for host in self.hosts.all[1:]:
            parts.append(self._last_lines(host, f"{ray}/raylet.err"))
        return "\n".join(part for part in parts if part)

    def _last_lines(self, host: Host, pattern: str) -> str:
        """The last lines of the newest file with this name on ``host``, under a title; "" if there are none."""
        if not host.is_up:
            return f"--- {host.name} is down"
        # Without the frames of C++ stacks, each a line of a path and an address.
        find = f'file=$(ls -t {pattern} 2>/dev/null | head -n 1) && [ -s "$file" ]'
        newest = f"{find} && grep -v '(+0x' \"$file\" | tail -n {LOG_LINES}"
        try:
            shown = host.run(newest, 10, check=False).output.rstrip()
        except HostError as error:
            shown = str(error)
        return f"--- {host.name}: {pattern}\n{shown}" if shown else ""
