"""`qfleet bench chaos`: does a run survive the death of any of its parts, without losing what replay has acknowledged?

It starts a run with three actors and two shards in a child process, lets it warm up, measures its speed, and then causes
one fault after another, in an order that follows from --seed: SIGKILL and SIGSTOP of every kind of part, and changed
bytes in the newest checkpoint or in a shard's newest snapshot before the learner or that shard is killed. The next fault
comes once the run has recovered from the last one, or after 60 s (`not_recovered`). A run has recovered when the part's
new process works (`chaos_faults.works`), and the run makes 90% of the fault-free median of updates in a second. Seconds
to recovery are measured in these bins of a second, so they are whole numbers. The speed of a small machine drifts: if
the lines of the faults say that a part works long before the recovery, compare with a run with more --fault-free.

Figures about the data:

- `lost`, `lost_within_snapshot_bound`, `duplicates`: items of the audit at the end of the run (`chaos_audit.Audit`). A
  shard that dies loses what it stored after its last snapshot: only that is within the bound. If that snapshot was
  damaged, the one before it counts. Items that no shard had acknowledged when their actor died are not counted.
- `regressions`: agent steps or the weights' version that fell, as status.json shows them once a second; updates that
  fell without a fault of the learner, or below its last undamaged checkpoint. `updates_lost` is the sum of all falls.
- `leftover_processes`: those that live 20 s after the run has ended by Ctrl-C.
- `solved`: the weights of the last checkpoint, written after the last fault, reach the goal in 30 episodes (for Pong,
  which needs longer: true or null).

The exit status is 1 if one of lost, duplicates, regressions, not_recovered and leftover_processes is not 0. Not tested
here are faults of connections, a full disk, and the death of the driver or of Ray's own processes.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.chaos_audit import Audit, compare, read_acknowledged, read_stored
from benchmarks.chaos_faults import PARTS, Struck, await_recovery, strike
from benchmarks.chaos_recovery import find_regressions, median_rate, summarize
from benchmarks.chaos_run import ChaosRun
from benchmarks.chaos_schedule import CLASSES, schedule
from rl.bounds import at_least, positive
from rl.errors import BadInput, RunFault

STEPS_PER_S = 6_000  # more agent steps/s than the run makes: so many items must fit, because the audit needs all
GOALS = {"cartpole": 475.0, "pong": 19.0}
SHORT: dict[str, list[str]] = {  # evaluations of a few seconds, every few seconds
    "cartpole": ["--evaluation.period", "1500", "--evaluation.quick-episodes", "3"],
    "pong": ["--evaluation.period", "500", "--evaluation.quick-episodes", "1", "--evaluation.max-episode-steps", "300"],
}
FAILING = ("lost", "duplicates", "regressions", "not_recovered", "leftover_processes")


@dataclass(frozen=True)
class Command:
    """Kill, freeze and damage the parts of a run, and check that it recovers and loses nothing."""

    preset: tyro.conf.Positional[Literal["cartpole", "pong"]] = "cartpole"
    """Preset to train."""
    minutes: float = 10.0
    """Minutes of faults, which come after `warm_up` and `fault_free`."""
    seed: int = 0
    """Seed of the faults and of the run."""
    warm_up: float = 60.0
    """Seconds of training before the speed is measured; it falls while the replay fills and the episodes become longer."""
    fault_free: float = 30.0
    """Seconds in which the speed is measured."""
    to: str = ""
    """New folder for the run and its output; by default a temporary one, which is deleted."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        positive(self, "minutes", unit="minutes")
        at_least(self, 0, "seed", "warm_up")
        at_least(self, 5, "fault_free", unit="seconds")
        if self.to and Path(self.to).exists():
            raise BadInput(f"--to is {self.to}, which exists: write the path of a new folder")


def run(c: Command, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Cause faults for ``c.minutes``; returns the figures by name, with ``passed``. Raises RunFault if the run ends."""
    with contextlib.ExitStack() as stack:
        folder = Path(c.to or stack.enter_context(tempfile.TemporaryDirectory(prefix="qfleet-chaos-")))
        chaos_run = ChaosRun(folder, _flags(c))
        stack.callback(chaos_run.close)
        log(f"starting {c.preset} with {PARTS['actor']} actors and {PARTS['shard']} shards in {folder}")
        chaos_run.await_training()
        chaos_run.wait(c.warm_up)
        since = time.time()
        chaos_run.wait(c.fault_free)
        fault_free = median_rate(chaos_run.samples, since)
        log(f"{fault_free:.0f} updates/s without faults (median of {c.fault_free:g} bins of a second)")
        struck = _cause_faults(c, chaos_run, fault_free, log)
        left = chaos_run.end()
        figures = _figures(struck, chaos_run, left, log)
        figures |= {"solved": _solved(c, chaos_run.directory), "seed": c.seed, "minutes": c.minutes}
        figures["fault_free_updates_per_s"] = round(fault_free, 1)
        figures["passed"] = not any(figures[name] for name in FAILING)
    for line in _table(struck):
        log(line)
    log(_summary_line(figures))
    return figures


def _flags(c: Command) -> list[str]:
    capacity = int(STEPS_PER_S * (c.minutes * 60 + c.warm_up + c.fault_free + 120)) if c.preset == "cartpole" else 10**6
    return [
        *(c.preset, "--seed", str(c.seed), "--max-steps", str(10**9), "--evaluation.goal", "inf", *SHORT[c.preset]),
        *("--actors.count", str(PARTS["actor"]), "--replay.shards", str(PARTS["shard"])),
        *(
            "--replay.capacity",
            str(capacity),
            "--replay.snapshot-minutes",
            "0.1",
            "--learner.checkpoint-minutes",
            "0.2",
        ),
    ]


def _cause_faults(c: Command, run: ChaosRun, fault_free: float, log: Callable[[str], None]) -> list[Struck]:
    """Cause one fault after another for ``c.minutes``; returns all. Raises RunFault if the run ends."""
    began, found = time.monotonic(), list[Struck]()
    for fault in schedule(c.seed):
        run.wait(fault.pause)
        if time.monotonic() - began >= c.minutes * 60:
            break
        struck = strike(run, fault)
        found.append(struck)
        await_recovery(run, struck, fault_free)
        seconds = f"{struck.seconds:5.1f} s" if struck.seconds is not None else f"NOT RECOVERED: {struck.why_not}"
        works = f", works after {struck.works_at - struck.at:.1f} s" if struck.works_at is not None else ""
        log(f"{time.monotonic() - began:6.1f} s  {fault.how:<7}  {struck.part:<12}  {seconds}{works}")
    return found


def _figures(
    struck: Sequence[Struck], run: ChaosRun, left: Sequence[str], log: Callable[[str], None]
) -> dict[str, Any]:
    """The figures of the faults and of the audit."""
    deaths = [s.death for s in struck if s.fault.kind == "shard"]
    audit: Audit = compare(read_acknowledged(run.log), read_stored(run.directory), deaths)
    regressions, updates_lost = find_regressions(run.samples, [s.floor for s in struck if s.floor is not None])
    for line in [*regressions, *(f"still runs: {line}" for line in left)]:
        log(line)
    by_kind: dict[str, Counter[str]] = {kind: Counter() for kind in CLASSES}
    for s in struck:
        by_kind[s.fault.kind][s.fault.how] += 1
    return {
        "faults": len(struck),
        "by_kind": {kind: dict(counts) for kind, counts in by_kind.items()},
        "not_recovered": sum(s.seconds is None for s in struck),
        **audit._asdict(),
        "regressions": len(regressions),
        "updates_lost": updates_lost,
        "leftover_processes": len(left),
        "recovery_seconds": recovery_seconds(struck),
        "restarts_by_kind": run.status.get("restarts_by_kind", {}),
    }


def recovery_seconds(struck: Sequence[Struck]) -> dict[str, dict[str, dict[str, float] | None]]:
    """Median and worst seconds to recovery, by kind of part and kind of fault; None for those without a recovery."""
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for s in struck:
        if s.seconds is not None:
            seconds[s.fault.kind, s.fault.how].append(s.seconds)
    hows = {kind: ["kill", "freeze"] + ["corrupt"] * (kind in ("learner", "shard")) for kind in CLASSES}
    return {kind: {how: summarize(seconds[kind, how]) for how in own} for kind, own in hows.items()}


def _solved(c: Command, directory: Path) -> bool | None:
    """Whether the last weights reach the goal; None for Pong if they do not. Raises RunFault if they cannot be played."""
    command = [
        sys.executable,
        "-m",
        "qfleet",
        "eval",
        str(directory),
        "--weights",
        "last",
        "--episodes",
        "30",
        "--json",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200.0)
    except subprocess.TimeoutExpired as error:
        raise RunFault("the last weights were not evaluated within 20 minutes") from error
    if done.returncode:
        raise RunFault(f"the last weights could not be evaluated: {done.stderr.strip()[-500:]}")
    solved = bool(json.loads(done.stdout.splitlines()[-1])["mean_return"] >= GOALS[c.preset])
    return solved or (None if c.preset == "pong" else False)


def _table(struck: Sequence[Struck]) -> list[str]:
    """Faults, recoveries and seconds by kind of part and kind of fault, as lines of a Markdown table."""
    counts = Counter((s.fault.kind, s.fault.how) for s in struck)
    lines = ["| part | fault | faults | median s | worst s |", "|---|---|---|---|---|"]
    for kind, own in recovery_seconds(struck).items():
        for how, seconds in own.items():
            cells = ("-", "-") if seconds is None else (f"{seconds['median']:g}", f"{seconds['worst']:g}")
            lines.append(f"| {kind.replace('_', ' ')} | {how} | {counts[kind, how]} | {' | '.join(cells)} |")  # type: ignore[index]
    return lines


def _summary_line(f: dict[str, Any]) -> str:
    return (
        f"{f['faults']} faults, {f['not_recovered']} not recovered; {f['acknowledged']:,} items acknowledged, {f['lost']:,} "
        f"lost, {f['lost_within_snapshot_bound']:,} lost with the shards that had not saved them, {f['duplicates']:,} "
        f"stored twice; {f['regressions']} regressions, {f['updates_lost']:,} updates lost; {f['leftover_processes']} "
        f"processes left; the last weights {'reach' if f['solved'] else 'do not reach'} the goal; "
        f"{'passed' if f['passed'] else 'NOT PASSED'}"
    )
