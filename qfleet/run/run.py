"""The driver's bookkeeping for a training run, shared by serial and distributed mode.

`Run` owns the run's directory, totals, evaluation scheduler, logs and progress display. The training loop of each mode
reports counts and evaluation results to it, and asks it when to evaluate, to write a checkpoint and to stop.
"""

from __future__ import annotations

import math
import signal
import time
from typing import Any

from learner.checkpoint import Checkpoint
from qfleet.config import TrainConfig, to_data
from qfleet.run.directory import BEST, CHECKPOINTS, STATUS, SUMMARY, RunDir
from qfleet.run.log import RunLog
from qfleet.run.progress import Progress, duration
from qfleet.run.scheduler import Candidate, EvaluationScheduler, Kind
from qfleet.run.stats import OnEpisode, RunStats
from qfleet.run.versions import package_versions
from qfleet.run.writes import Writes
from rl.envs.make import frames_per_step
from rl.errors import RunFault
from rl.evaluation import EvaluationResult, describe_cut_episodes
from rl.exploration import Exploration

LOG_PERIOD = 10.0  # seconds between rows of metrics.csv
STATUS_PERIOD = 2.0  # seconds between writes of status.json
MAX_LOST_EVALUATIONS = 5  # in a row
LOGS = "logs"  # metrics.csv, eval.csv and the files for TensorBoard, in warnings
ACTOR_WARNING_PERIOD = 10.0  # seconds between two warnings about environments of actors
FIRST_SAVE = 30.0  # seconds of training until the first checkpoint is due, from which a learner that fails can go on
SAVE_RETRY = 20.0  # seconds after which a checkpoint that could not be written is due again


class Run:
    """The state of one run in its driver.

        run = Run(config, run_dir, resumed=None)
        while not run.is_finished():
            ...  # act and learn; run.stats.add_actor_report(...), run.stats.add_learner_report(...)
            run.tick()
        summary = run.close()

    ``resumed`` is the checkpoint that a resumed run starts from.
    """

    def __init__(
        self, config: TrainConfig, run_dir: RunDir, resumed: Checkpoint | None, on_episode: OnEpisode | None = None
    ) -> None:
        self.config, self.dir, self.resumed = config, run_dir, resumed
        earlier = dict(resumed.state) if resumed else {}
        self.stats = RunStats(config, earlier, on_episode)
        self.scheduler = EvaluationScheduler(
            config.evaluation, self.stats.steps_or_updates, self._earlier_evaluations()
        )
        # Not updates: a learner that is started again repeats some, and rows before that have more.
        logged = ("updates" if config.offline else "agent_steps", "wall_seconds")
        counters = {n: earlier[n] for n in logged if n in earlier} if resumed else None
        self.log = RunLog(run_dir.path, "updates" if config.offline else "agent_steps", counters)
        title = f"Qfleet {config.env.id}  {run_dir.where}"
        self.progress = Progress(title, self._limits(), config.evaluation.goal, self._on_output_closed)
        self.writes = Writes(str(run_dir.path), self.progress.note)
        run_dir.start(self.progress.note)
        self._environments = 0
        actors = 0 if config.offline else config.actors.count
        self.set_fleet(actors, actors, config.total_environments)
        self._last_log = self._last_status = self._last_save = self._saved = time.monotonic()
        self._next_actor_warning = -math.inf  # time
        self._lost_evaluations = 0  # in a row
        self._best_waiting: tuple[int, Checkpoint] | None = None  # not in best/ yet
        self._logged: tuple[float, float] | None = None  # agent steps and updates of the last row of metrics.csv
        self.last_row: dict[str, Any] = {}
        self.scaling: dict[str, Any] = {}  # entries of status.json for `qfleet scale`
        self.faults: dict[str, Any] = {}  # entries about processes that have failed and were started again
        self.interrupted_by: int | None = None  # number of the signal that ended the run; SIGPIPE: output closed

    def _earlier_evaluations(self) -> dict[str, Any]:
        """The scheduler's state in the checkpoint; weights that best/ got after it keep their rank."""
        if self.resumed is None:
            return {}
        state = dict(self.resumed.state.get("evaluation") or {})
        best = self.dir.best.load_newest()
        if best is not None and best.state["updates"] > self.resumed.state["updates"]:
            state |= {"best_return": best.state["mean_return"], "best_is_full": best.state.get("is_full", False)}
        return state

    def set_fleet(self, living: int, wanted: int, environments: int) -> None:
        """The run has ``living`` of ``wanted`` actors, and ``environments`` environments play.

        With none, epsilon_min and the returns by epsilon stay those of the last ones that did.
        """
        self._actors = {"actors": living, "actors_wanted": wanted}
        if environments and environments != self._environments:
            self._environments = environments
            # of the least exploring environment: its epsilon is logged as epsilon_min
            self._exploration = Exploration(self.config.exploration, environments - 1, 1, environments)
            self.stats.set_environments(environments)

    def warn_of_actor(self, name: str, news: str) -> None:
        """Show a warning with the ``news`` of an actor, at most one in ACTOR_WARNING_PERIOD seconds for all actors."""
        if (now := time.monotonic()) >= self._next_actor_warning:
            self._next_actor_warning = now + ACTOR_WARNING_PERIOD
            self.progress.note(f"warning: {name}: {news}")

    def _on_output_closed(self) -> None:
        """End the run as a signal would, because its standard error is closed."""
        if self.interrupted_by is None:
            self.interrupted_by = signal.SIGPIPE.value

    @property
    def training_minutes(self) -> float:
        """Minutes of training, including those before a resume."""
        return self.stats.wall_seconds / 60.0

    def is_finished(self) -> bool:
        """Whether the run is solved (with `evaluation.stop_when_solved`), has reached a limit, or was interrupted."""
        c = self.config
        if self.interrupted_by is not None or (self.scheduler.solved and c.evaluation.stop_when_solved):
            return True
        if self.stats.agent_steps >= c.max_steps or 0 < c.max_updates <= self.stats.updates:
            return True
        return c.max_minutes > 0 and self.training_minutes >= c.max_minutes

    def tick(self, force: bool = False) -> None:
        """Update the display. Log a row and write status.json, each when its period has passed or with ``force``.

        Without ``force`` it raises RunFault if the run's URL could not be written for minutes.
        """
        now = time.monotonic()
        row = self.stats.row(float(self._exploration.epsilons(self.stats.agent_steps)[0])) | self._actors
        row |= {"restarts": self.faults.get("restarts", 0), "checkpoint_age": now - self._saved}
        self.last_row = row
        self.progress.show(row, self._last_evaluation(), self._seconds_left(row))
        counters = row["agent_steps"], row["updates"]
        if (force and counters != self._logged) or now - self._last_log >= LOG_PERIOD:
            self._last_log, self._logged = now, counters
            with self.writes.attempt(LOGS):
                self.log.metrics(row)
                self.log.returns_by_epsilon(self.stats.agent_steps, self.stats.returns_by_epsilon())
        if force or now - self._last_status >= STATUS_PERIOD:
            self._last_status = now
            with self.writes.attempt(BEST):
                self._save_best()
            with self.writes.attempt(STATUS):
                self.dir.write_status(self.status(row))
            if not force:
                self.dir.check()

    def status(self, row: dict[str, Any]) -> dict[str, Any]:
        """The content of status.json, which `qfleet status` shows; ``row`` comes from `RunStats.row`."""
        finite = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in row.items()}
        return {
            "env": self.config.env.id,
            "time": time.time(),
            **finite,
            **self.scheduler.state(),
            **self.scaling,
            **self.faults,
        }

    def start_clock(self) -> None:
        """Training begins: count its time from now, and let the first checkpoint be due after FIRST_SAVE seconds."""
        self.stats.start_clock()
        self._saved = time.monotonic()
        self._last_save = self._saved - max(0.0, self.config.learner.checkpoint_minutes * 60.0 - FIRST_SAVE)

    def is_checkpoint_due(self) -> bool:
        """Whether `learner.checkpoint_minutes` have passed since the last checkpoint."""
        return time.monotonic() - self._last_save >= self.config.learner.checkpoint_minutes * 60.0

    def checkpoint_extra(self) -> dict[str, Any]:
        """The part of a checkpoint's state that does not come from the learner: totals, evaluations, configuration."""
        evaluation, config = self.scheduler.state(), to_data(self.config)
        return {**self.stats.state(), "evaluation": evaluation, "config": config}

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write ``checkpoint`` to checkpoints/, named after its number of learner updates.

        If that fails, a warning says so, earlier checkpoints stay, and the next one is due after SAVE_RETRY seconds.
        """
        self._last_save = time.monotonic()
        with self.writes.attempt(CHECKPOINTS):
            self._save_best()  # first: the state of a checkpoint names the best return
            self.dir.checkpoints.save(int(checkpoint.state["updates"]), checkpoint)
            self._saved = time.monotonic()
            return
        self._last_save -= max(0.0, self.config.learner.checkpoint_minutes * 60.0 - SAVE_RETRY)

    def record_evaluation(self, kind: Kind, candidate: Candidate, result: EvaluationResult) -> Kind | None:
        """Log the result of an evaluation of ``candidate``, and save its weights to best/ if they are the best so far.

        Returns the kind of evaluation that must follow on the same weights, or None.
        """
        self.stats.evaluation_seconds += result.seconds
        self._lost_evaluations = 0
        if not result.episodes:
            return None
        next_kind, is_best = self.scheduler.record(kind, result)
        if is_best:
            state = {
                "mean_return": result.mean_return,
                "is_full": kind != "quick",
                "agent_steps": candidate.agent_steps,
            }
            state |= {"updates": candidate.updates, "weights_version": candidate.version}
            self._best_waiting = candidate.updates, Checkpoint({"online": dict(candidate.weights)}, state)
            with self.writes.attempt(BEST):
                self._save_best()
        with self.writes.attempt(LOGS):
            self.log.evaluation(
                {
                    "wall_seconds": self.stats.wall_seconds,
                    "agent_steps": candidate.agent_steps,
                    "updates": candidate.updates,
                    "episodes": len(result.episodes),
                    "mean_return": result.mean_return,
                    "std_return": result.std_return,
                    "worst_return": result.worst_return,
                    "epsilon": self.config.evaluation.epsilon,
                    "kind": kind,
                    "weights_version": candidate.version,
                    "seconds": result.seconds,
                }
            )
        cut = describe_cut_episodes(result, self.config.evaluation.max_episode_steps)
        self.progress.note(
            f"[{duration(self.stats.wall_seconds)}] evaluation ({kind}) after {candidate.agent_steps:,} steps, "
            f"{candidate.updates:,} updates: mean return {result.mean_return:.2f} over {len(result.episodes)} episodes "
            f"(worst {result.worst_return:g}) in {result.seconds:.0f} s{cut}"
        )
        return next_kind

    def evaluation_failed(self, why: str) -> None:
        """An evaluation was lost, because of what ``why`` says in a line.

        Raises RunFault if it is the last of MAX_LOST_EVALUATIONS in a row.
        """
        self._lost_evaluations += 1
        if self._lost_evaluations >= MAX_LOST_EVALUATIONS:
            raise RunFault(f"{MAX_LOST_EVALUATIONS} evaluations in a row have failed: {why}")
        self.progress.note(f"warning: lost an evaluation: {why}")

    def _save_best(self) -> None:
        """Write to best/ what waits for it. Raises OSError; it then goes on waiting."""
        if self._best_waiting is not None:
            self.dir.best.save(*self._best_waiting)
            self._best_waiting = None

    def _last_evaluation(self) -> str:
        last = self.scheduler.last_return
        return "-" if last is None else f"{last:.1f}"

    def _limits(self) -> dict[str, int]:
        """The limits that end the run, by metric name."""
        c = self.config
        limits = {"agent_steps": 0 if c.offline else c.max_steps, "updates": c.max_updates}
        return {name: most for name, most in limits.items() if most}

    def _seconds_left(self, row: dict[str, Any]) -> float:
        rates = {"agent_steps": row["steps_per_s"], "updates": row["updates_per_s"]}
        left = min([(most - row[n]) / rates[n] for n, most in self._limits().items() if rates[n] > 0], default=math.inf)
        if self.config.max_minutes > 0:
            left = min(left, self.config.max_minutes * 60.0 - self.stats.wall_seconds)
        return max(left, 0.0)

    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        stats, scheduler = self.stats, self.scheduler
        return {
            "solved": scheduler.solved,
            "env": self.config.env.id,
            "goal": self.config.evaluation.goal if math.isfinite(self.config.evaluation.goal) else None,
            "mean_return": scheduler.last_return,
            "best_return": scheduler.best_return,
            "agent_steps": stats.agent_steps,
            "frames": stats.agent_steps * frames_per_step(self.config.env),
            "updates": stats.updates,
            "wall_seconds": round(stats.wall_seconds, 1),
            "evaluation_seconds": round(stats.evaluation_seconds, 1),
            "episodes": stats.episodes,
            "seed": self.config.seed,
            "run_dir": self.dir.where,
            "versions": package_versions(),
        }

    def close(self) -> dict[str, Any]:
        """Write summary.json and close the logs and the display; returns the summary.

        Raises RunFault if the last files of the run, or its last checkpoint, could not be written.
        """
        self.tick(force=True)
        summary = self.summary()
        with self.writes.attempt(LOGS):
            self.log.close()
        with self.writes.attempt(SUMMARY):
            self.dir.write_json(SUMMARY, summary)
        self.progress.close()
        self.dir.finish()
        if failing := self.writes.failing():
            raise RunFault(
                f"at the end of the run {failing} could not be written in {self.dir.path}: make room there, and continue "
                "the run from its last checkpoint with --resume"
            )
        return summary
