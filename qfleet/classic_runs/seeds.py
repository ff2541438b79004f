"""One seed of a classic method: learn, evaluate, save, draw, record, and write the summary; the summary over seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from classic.interface import Learned, Method, Setting
from classic.scores import scores
from qfleet.classic_runs.log import ClassicLog
from qfleet.classic_runs.pictures import draw_pictures
from qfleet.run.directory import SUMMARY, RunDir
from qfleet.run.versions import package_versions
from rl.envs.make import make_environments
from rl.envs.recording import record
from rl.errors import BadInput, RunFault
from rl.evaluation import evaluate
from rl.parameters import to_bytes

TEST_SEED = 1_000_003  # added to the seed for the evaluation, so that its episodes are not those of training
MAX_ENVIRONMENTS = 100  # parallel environments of an evaluation, at most


@dataclass(frozen=True)
class Job:
    """A method with its settings, and the directory for its results."""

    name: str
    method: Method
    setting: Setting
    folder: Path
    video: bool

    @property
    def title(self) -> str:
        """Method and environment, for titles and messages."""
        return f"{self.name} on {self.setting.env.id}"

    def seed_folder(self, seed: int) -> Path:
        """The directory of one seed's results."""
        return self.folder / f"seed-{seed}"

    def summary(self, seed: int) -> dict[str, Any] | None:
        """The content of a finished seed's summary.json; None if the file does not exist or cannot be read."""
        try:
            return RunDir(self.seed_folder(seed)).read_json(SUMMARY)
        except (OSError, BadInput):
            return None


def learn_seed(job: Job, seed: int) -> dict[str, Any]:
    """Learn with one seed, evaluate, and write all files of `job.seed_folder(seed)`; summary.json is the last.

    Returns the content of summary.json. Raises RunFault if the directory cannot be written, and what the method raises.
    """
    folder = job.seed_folder(seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFault(f"{folder} cannot be written: {error.strerror}") from error
    log = ClassicLog(folder, f"{job.title}, seed {seed}", int(getattr(job.setting.config, "episodes", 0)))
    start_time, cpu = time.monotonic(), time.process_time()
    try:
        learned = job.method.learn(job.setting.config, job.setting.env, seed, log)
        seconds, cpu = time.monotonic() - start_time, time.process_time() - cpu
        metrics = _evaluate(job, learned, seed)
        metrics |= {
            **scores(learned.policy, job.setting.env, job.method.space_kind, TEST_SEED + seed),
            **learned.metrics,
        }
        log.evaluation(metrics["mean_return"])
    finally:
        log.close()
    if learned.arrays:
        (folder / "values.safetensors").write_bytes(to_bytes({k: np.asarray(v) for k, v in learned.arrays.items()}))
    draw_pictures(learned, job.setting.env, job.method.space_kind, folder, f"{job.title}, seed {seed}")
    if job.video:
        record(learned.policy, job.setting.env, folder / "videos", 1, 0.0, seed, job.method.space_kind, gif=True)
    summary = {
        "method": job.name,
        "env": job.setting.env.id,
        "seed": seed,
        "wall_seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "agent_steps": log.agent_steps,
        **metrics,
        "versions": package_versions(),
    }
    # JSON has no NaN or infinity
    summary = {k: None if isinstance(x, float) and not math.isfinite(x) else x for k, x in summary.items()}
    RunDir(folder).write_json(SUMMARY, summary)
    return summary


def _evaluate(job: Job, learned: Learned, seed: int) -> dict[str, Any]:
    """Evaluate the policy on episodes that training has not played; returns statistics of the undiscounted return."""
    episodes = job.setting.episodes
    environments = make_environments(job.setting.env, min(episodes, MAX_ENVIRONMENTS), space_kind=job.method.space_kind)
    try:
        result = evaluate(learned.policy, environments, episodes, 0.0, TEST_SEED + seed)
    finally:
        environments.close()
    return {
        "mean_return": result.mean_return,
        "std_return": result.std_return,
        "worst_return": result.worst_return,
        "final_episodes": episodes,
    }


def summarize_seeds(job: Job, summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the summary over seeds: the mean of each metric, the worst mean return, and the metrics of each seed.

    A method that can fail to solve its environment also has `solved`: whether every seed solved it.
    """
    returns = [float(s["mean_return"]) for s in summaries]
    numbers = [
        k
        for k, v in summaries[0].items()
        if type(v) in (int, float) and k not in ("seed", "mean_return", "worst_return")
    ]
    each = {
        k: [s[k] for s in summaries]
        for k in ("mean_return", *numbers)
        if all(type(s.get(k)) in (int, float) for s in summaries)
    }
    return {
        "method": job.name,
        "env": job.setting.env.id,
        "mean_return": float(np.mean(returns)),
        "worst_return": min(returns),
        "seeds": [s["seed"] for s in summaries],
        **({"solved": all(s["solved"] for s in summaries)} if "solved" in summaries[0] else {}),
        **{k: float(np.mean(each[k])) for k in numbers if k in each},
        "each": each,
        "run_dir": str(job.folder),
    }
