"""`qfleet bench solve`: time to reach a preset's goal over several seeds, and the return of the best weights.

Trains one seed after the other with `qfleet train PRESET --seed S`, each in its own directory. A seed that has been
trained is not trained again, so the seeds can be spread over several days. Then each run's `best/` weights play new
episodes, with the epsilon of evaluations and with epsilon 0. The median and the worst over the seeds are only
meaningful for seeds that no setting was tuned on.
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

from benchmarks.measure import format_duration, median
from qfleet.api import load_policy
from qfleet.presets import preset
from report.curves import plot_runs
from rl.bounds import at_least, require
from rl.envs.make import make_environments
from rl.errors import BadInput, RunFault
from rl.evaluation import evaluate

DONE = "done"  # an empty file in the directory of a run that has finished
FRESH_SEED = 777_000  # seed of the new episodes; the run's seed is added


@dataclass(frozen=True)
class Command:
    """How long a preset takes to reach its goal, over several seeds."""

    preset: str = "pong"
    """Preset to train."""
    seeds: tuple[int, ...] = (21, 22, 23, 24, 25)
    """Seeds; one run each, one after the other."""
    episodes: int = 100
    """New episodes to play with each run's best weights, once per epsilon."""
    to: str = "runs/solve"
    """Directory for the runs, figures.jsonl and curves.png."""
    train: str = ""
    """More flags for qfleet train, for example --train="--learner.target-update-period 100"."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "episodes")
        preset(self.preset)
        require(
            bool(self.seeds) and len(set(self.seeds)) == len(self.seeds), self, "seeds", "one or more seeds, each once"
        )
        for seed in self.seeds:
            run = self.run_dir(seed)
            if run.exists() and not (run / DONE).is_file():
                raise BadInput(
                    f"{run} holds an unfinished run, whose training time cannot be measured: remove the directory"
                )

    def run_dir(self, seed: int) -> Path:
        """The directory of a seed's run."""
        return Path(self.to) / f"{self.preset}-seed{seed}"


def run(c: Command, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Train the seeds that are missing, then play the best weights of all; returns the figures.

    They are ``rows`` (one dictionary per seed), the median and the worst over the seeds, and ``passed`` (all are
    solved). Raises RunFault if a training run fails.
    """
    missing = [seed for seed in c.seeds if not c.run_dir(seed).exists()]
    log(f"{len(c.seeds)} runs of {c.preset}, {len(c.seeds) - len(missing)} of them already finished")
    for n, seed in enumerate(missing, 1):
        began = time.monotonic()
        _train(c, seed)
        left = (time.monotonic() - began) * (len(missing) - n)
        log(
            f"seed {seed} finished, run {n} of {len(missing)}"
            + (f"; about {format_duration(left)} left" if left else "")
        )
    rows = []
    for seed in c.seeds:
        rows.append(_figures(c, seed))
        log(
            f"seed {seed}: mean return of the best weights {rows[-1]['fresh_mean']:.2f}, "
            f"{rows[-1]['fresh_mean_greedy']:.2f} at epsilon 0"
        )
    for line in table(rows):
        log(line)
    Path(c.to, "figures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log(f"{plot_runs([c.run_dir(seed) for seed in c.seeds], Path(c.to, 'curves.png'))}")
    return {"rows": rows, **_over_seeds(rows), "passed": all(row["solved"] for row in rows)}


def _train(c: Command, seed: int) -> None:
    """Train one seed and mark its run as finished. Raises RunFault if the training fails."""
    flags = ["--seed", str(seed), "--run-dir", str(c.run_dir(seed)), *shlex.split(c.train)]
    done = subprocess.run([sys.executable, "-m", "qfleet", "train", c.preset, *flags], stdout=subprocess.DEVNULL)
    if done.returncode != 0:
        raise RunFault(f"qfleet train with seed {seed} ended with status {done.returncode}: see its output above")
    (c.run_dir(seed) / DONE).touch()


def _figures(c: Command, seed: int) -> dict[str, Any]:
    """Play new episodes with the best weights of a run; returns their returns and the run's steps and time."""
    folder = c.run_dir(seed)
    summary = json.loads((folder / "summary.json").read_text())
    with (folder / "eval.csv").open(newline="") as file:
        kinds = [row["kind"] for row in csv.DictReader(file)]
    policy = load_policy(folder)
    returns = {}
    for name, epsilon in (("", policy.config.evaluation.epsilon), ("_greedy", 0.0)):
        environments = make_environments(policy.config.env, min(c.episodes, 20))
        result = evaluate(lambda x: policy.act(x), environments, c.episodes, epsilon, FRESH_SEED + seed)
        environments.close()
        returns[f"fresh_mean{name}"] = result.mean_return
        returns[f"fresh_interval{name}"] = (
            1.96 * result.std_return / math.sqrt(c.episodes)
        )  # 95% confidence interval of the mean, normal approximation
    names = ("seed", "solved", "agent_steps", "updates", "mean_return", "evaluation_seconds")
    return {
        **{name: summary[name] for name in names},
        "minutes": summary["wall_seconds"] / 60.0,
        "evaluation_share": summary["evaluation_seconds"] / summary["wall_seconds"],
        "quick_evaluations": kinds.count("quick"),
        "full_evaluations": len(kinds) - kinds.count("quick"),
        "fresh_episodes": c.episodes,
        **returns,
    }


def _over_seeds(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Median and worst (largest) minutes, agent steps and updates over the runs."""
    names = ("minutes", "agent_steps", "updates")
    return {
        f"{how}_{n}": of([row[n] for row in rows]) for n in names for how, of in (("median", median), ("worst", max))
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as lines of a Markdown table, and one line each for the median and the worst."""
    heads = [
        "seed",
        "solved",
        "agent steps",
        "updates",
        "minutes",
        "evaluating",
        "evaluations: quick, full",
        "best/, new episodes",
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
