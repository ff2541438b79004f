"""`qfleet bench solve`: how long a preset takes to its goal, over seeds, and how good the weights are that it keeps.

Runs one seed after the other, as `qfleet train PRESET --seed S` does, each into a directory of its own. A seed that is done
is not run again, so that the seeds may be spread over days. Then each run's `best/` plays fresh episodes, at the epsilon of
evaluations and at 0. Report the median and the worst of seeds that nobody tuned to.
"""

from __future__ import annotations

import csv
import json
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import median, roughly
from qfleet.api import load_policy
from qfleet.presets import preset
from report.curves import plot_runs
from rl.bounds import at_least
from rl.envs.make import make_environments
from rl.errors import BadInput, RunFault
from rl.evaluation import evaluate

DONE = "done"  # a file of the runs that went to their end
PLAY_SEED = 777_000  # of the fresh episodes, plus the run's own


@dataclass(frozen=True)
class Command:
    """How long a preset takes to its goal, over seeds, one run at a time."""

    preset: str = "pong"
    """Which preset is trained."""
    seeds: tuple[int, ...] = (21, 22, 23, 24, 25)
    """A run for each."""
    episodes: int = 100
    """Fresh episodes that each run's best weights play."""
    to: str = "runs/solve"
    """Directory of the runs, of figures.jsonl and of curves.png."""
    train: str = ""
    """Further flags of qfleet train: --train="--learner.target-update-period 100"."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "episodes")
        preset(self.preset)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise BadInput("--seeds must name one seed or more, none of them twice")
        for seed in self.seeds:
            run = self.run_dir(seed)
            if run.exists() and not (run / DONE).is_file():
                raise BadInput(
                    f"{run} holds a run that was cut: remove it, as its time would not be that of a whole one"
                )

    def run_dir(self, seed: int) -> Path:
        """The directory of a seed's run."""
        return Path(self.to) / f"{self.preset}-seed{seed}"


def run(c: Command, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train the seeds that are not done and play their best weights; returns the figures."""
    missing = [seed for seed in c.seeds if not c.run_dir(seed).exists()]
    say(f"{len(c.seeds)} runs of {c.preset}, {len(c.seeds) - len(missing)} of them done before")
    for n, seed in enumerate(missing, 1):
        began = time.monotonic()
        _train(c, seed)
        left = (time.monotonic() - began) * (len(missing) - n)
        say(f"seed {seed} is done, run {n} of {len(missing)}" + (f"; about {roughly(left)} left" if left else ""))
    rows = []
    for seed in c.seeds:
        rows.append(_figures(c, seed))
        say(
            f"seed {seed}: best weights at 0.01 and 0: {rows[-1]['fresh_mean']:.2f} and {rows[-1]['fresh_mean_greedy']:.2f}"
        )
    for line in table(rows):
        say(line)
    Path(c.to, "figures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    say(f"{plot_runs([c.run_dir(seed) for seed in c.seeds], Path(c.to, 'curves.png'))}")
    return {"rows": rows, **_over_seeds(rows), "passed": all(row["solved"] for row in rows)}


def _train(c: Command, seed: int) -> None:
    flags = ["--seed", str(seed), "--run-dir", str(c.run_dir(seed)), *shlex.split(c.train)]
    done = subprocess.run([sys.executable, "-m", "qfleet", "train", c.preset, *flags], stdout=subprocess.DEVNULL)
    if done.returncode != 0:
        raise RunFault(f"the run of seed {seed} ended with status {done.returncode}")
    (c.run_dir(seed) / DONE).touch()


def _figures(c: Command, seed: int) -> dict[str, Any]:
    """The steps, updates and time of a run, and the returns of its best weights in fresh episodes."""
    folder = c.run_dir(seed)
    summary = json.loads((folder / "summary.json").read_text())
    with (folder / "eval.csv").open(newline="") as file:
        kinds = [row["kind"] for row in csv.DictReader(file)]
    policy = load_policy(folder)
    played = {}
    for name, epsilon in (("", policy.config.evaluation.epsilon), ("_greedy", 0.0)):
        environments = make_environments(policy.config.env, min(c.episodes, 20))
        result = evaluate(lambda x: policy.act(x), environments, c.episodes, epsilon, PLAY_SEED + seed)
        environments.close()
        played[f"fresh_mean{name}"] = result.mean_return
        played[f"fresh_interval{name}"] = 1.96 * result.std_return / math.sqrt(c.episodes)  # 95%, normal
    names = ("seed", "solved", "agent_steps", "updates", "mean_return", "evaluation_seconds")
    return {
        **{name: summary[name] for name in names},
        "minutes": summary["wall_seconds"] / 60.0,
        "evaluation_share": summary["evaluation_seconds"] / summary["wall_seconds"],
        "quick_evaluations": kinds.count("quick"),
        "full_evaluations": len(kinds) - kinds.count("quick"),
        "fresh_episodes": c.episodes,
        **played,
    }


def _over_seeds(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Median and worst of what a run takes."""
    names = ("minutes", "agent_steps", "updates")
    return {
        f"{how}_{n}": of([row[n] for row in rows]) for n in names for how, of in (("median", median), ("worst", max))
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as lines of Markdown, and a line with the median and the worst."""
    heads = [
        "seed",
        "solved",
        "agent steps",
        "updates",
        "minutes",
        "evaluating",
        "quick, full",
        "best, fresh",
        "at epsilon 0",
    ]
    cells = [heads, ["---"] * len(heads)]
    for r in rows:
        cells.append([f"{r['seed']}", "yes" if r["solved"] else "no", f"{r['agent_steps']:,}", f"{r['updates']:,}"])
        cells[-1] += [f"{r['minutes']:.1f}", f"{r['evaluation_share']:.0%}"]
        cells[-1] += [f"{r['quick_evaluations']}, {r['full_evaluations']}"]
        cells[-1] += [f"{r[f'fresh_mean{at}']:.2f} ± {r[f'fresh_interval{at}']:.2f}" for at in ("", "_greedy")]
    for how in ("median", "worst"):
        steps, updates, minutes = (_over_seeds(rows)[f"{how}_{name}"] for name in ("agent_steps", "updates", "minutes"))
        cells.append([how, "", f"{steps:,.0f}", f"{updates:,.0f}", f"{minutes:.1f}", "", "", "", ""])
    return [f"| {' | '.join(row)} |" for row in cells]
