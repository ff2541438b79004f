"""The extra step `pong`: speed, load and traffic of Pong on the cluster, with several numbers of actors."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from tests.cluster.cluster_file import FILE
from tests.cluster.scenario import Figures, Scenario

COUNTS = (1, 2, 4, 8)  # actors
SETTINGS = {
    "limiter as configured": "",
    "limiter off": "--replay.limiter.samples-per-insert 0",
    "2 shards beside the learner": "--replay.shards 2 --placement.shards learner",
    "2 shards spread": "--replay.shards 2 --placement.shards spread",
}
COUNTS_OF_PLACEMENT = (4,)
# Seconds after the first update that are not measured, and that are; with the start a run takes five minutes.
WARM_UP = 45.0
WINDOW = 210.0
START_SECONDS, STOP_SECONDS = 180.0, 120.0
RATES = {  # counters of docs/runs.md: which is divided by the sum of which
    "insert_bytes": ("actor_replay_bytes_sent", ("actor_replay_items_sent",)),
    "sample_bytes": ("learner_replay_bytes_received", ("learner_replay_items_received",)),
    "weights_bytes": (
        "actor_weights_bytes_received",
        ("actor_weights_publications", "actor_weights_target_syncs"),
    ),
}
ROLES = {  # what is in the command line of a process
    "ray::ActorWorker": "actors",
    "ray::LearnerWorker": "learner",
    "ray::ShardWorker": "shards",
    "bin/qfleet train": "driver",
}

# Prints the metrics of Qfleet on all nodes, from the endpoints that Ray lists on the head.
METRICS_QUERY = """
import json, urllib.request as web
for entry in json.load(open("/tmp/ray/prom_metrics_service_discovery.json")):
    for target in entry["targets"]:
        try:
            text = web.urlopen(f"http://{target}/metrics", timeout=20).read().decode()
        except OSError:
            continue
        print("\\n".join(line for line in text.splitlines() if line.startswith("ray_qfleet_")))
"""


def measure(s: Scenario) -> Figures:
    """Run Pong with each of the SETTINGS and numbers of actors; returns a list of rows."""
    rows: list[dict[str, Any]] = []
    for number, (setting, flags) in enumerate(SETTINGS.items()):
        for actors in COUNTS_OF_PLACEMENT if "placement" in flags else COUNTS:
            row = _measure_one(s, f"pong-{number}-{actors}-{int(time.time())}", f"--actors.count {actors} {flags}")
            rows.append({"setting": setting, "actors": actors} | row)
            print("         " + json.dumps(rows[-1]), flush=True)
    return {"runs": rows}


def _measure_one(s: Scenario, name: str, flags: str) -> dict[str, Any]:
    s.start_clock(START_SECONDS)
    s.type(f"qfleet submit --cluster {FILE} --name {name} --detach -- train pong --evaluation.period 0 {flags}")
    s.until("the run makes updates with all actors", lambda: s.status(name)["updates"] and _all_play(s, name), 1.0)
    time.sleep(WARM_UP)
    before, used, sent, started = s.status(name), _cpu_seconds(s), _network_bytes(s), time.monotonic()
    time.sleep(WINDOW)
    after, seconds = s.status(name), time.monotonic() - started
    cores = {role: round((spent - used[role]) / seconds, 2) for role, spent in sorted(_cpu_seconds(s).items())}
    network = {k: round((count - sent[k]) / seconds / 1e6, 2) for k, count in _network_bytes(s).items()}
    counted = _counted_bytes(s, name)
    s.start_clock(STOP_SECONDS)
    s.type(f"qfleet stop {name} --cluster {FILE}")
    passed = after["time"] - before["time"]  # the status is up to two seconds old
    steps, updates = (after[key] - before[key] for key in ("agent_steps", "updates"))
    return {
        "steps_per_s": round(steps / passed, 1),
        "updates_per_s": round(updates / passed, 2),
        "samples_per_insert": round(after["samples_per_insert"], 2),
        "cores": cores,
        "head_mb_per_s": network,
        **counted,
    }


def _all_play(s: Scenario, name: str) -> bool:
    status = s.status(name)
    return bool(status["actors"] == status["actors_wanted"])


def _cpu_seconds(s: Scenario) -> Counter[str]:
    """CPU seconds of all processes of the cluster so far, by role."""
    found: Counter[str] = Counter()
    for host in s.hosts.all[1:]:
        for process in host.processes():
            try:
                times, words = process.cpu_times(), " ".join(process.cmdline())
            except psutil.Error:
                continue
            role = next((role for mark, role in ROLES.items() if mark in words), "Ray and others")
            found[role] += times.user + times.system
    return found


def _network_bytes(s: Scenario) -> dict[str, int]:
    """Bytes that have passed the head's network cable so far, in both directions."""
    lines = Path(f"/proc/{s.hosts.head.pid}/net/dev").read_text().splitlines()
    (fields,) = [line.split()[1:] for line in lines if line.strip().startswith("eth0:")]
    return {"in": int(fields[0]), "out": int(fields[8])}


def _counted_bytes(s: Scenario, run: str) -> dict[str, Any]:
    """Bytes per item, and per publication, that the parts of ``run`` have counted; None where nothing was counted."""
    shown = s.hosts.head.run(f".venv/bin/python -c {shlex.quote(METRICS_QUERY)}", 60).output
    sums: Counter[str] = Counter()
    for metric, labels, value in re.findall(r"^ray_qfleet_(\w+)\{(.*)\} (\S+)$", shown, re.MULTILINE):
        if re.search(rf'run="{run}[/"]', labels):
            sums[metric] += float(value)
    counted = {}
    for name, (top, bottom) in RATES.items():
        count = sum(sums[metric] for metric in bottom)
        counted[name] = round(sums[top] / count, 1) if count else None
    return counted
