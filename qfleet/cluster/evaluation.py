"""The evaluations of a distributed run, as its driver sees them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import ray

from qfleet.cluster.faults import DIED, first_line, last_line, reason, where
from qfleet.cluster.retries import Retries
from qfleet.cluster.workers import EvaluatorWorker
from qfleet.config import TrainConfig
from qfleet.run.run import Run
from qfleet.run.scheduler import Candidate, Kind
from rl.errors import RunFault

EVALUATOR_NOTE_AFTER = 60.0  # seconds without an evaluator after which the user is told
NAME = "the evaluator"  # in messages


class EvaluatorProcess:
    """The process of an `EvaluatorWorker`; ``options``: Ray's options."""

    def __init__(self, config: TrainConfig, base_steps: int, run: str, options: Mapping[str, Any]) -> None:
        self._class: Any = ray.remote(EvaluatorWorker)
        self._arguments, self._options = (config, base_steps, run), {"name": "evaluator", **options}
        self.handle: Any = self._class.options(**self._options).remote(*self._arguments)

    def replace(self) -> None:
        """Request a new process in place of one that has died. Raises ValueError while Ray still knows its name."""
        ray.kill(self.handle)
        self.handle = self._class.options(**self._options).remote(*self._arguments)


class Evaluation:
    """The current evaluation of a run, played by the evaluator's process.

        evaluation = Evaluation(run, evaluator)
        evaluation.advance()  # repeatedly, from the driver's loop; it never waits

    An evaluation that is lost is not repeated: the next one is played when it is due. Ray restarts an evaluator that
    dies; one that fails to restart is replaced.
    """

    def __init__(self, run: Run, evaluator: EvaluatorProcess) -> None:
        self._run, self._evaluator = run, evaluator
        self._retries = Retries()
        self._has_started = self._is_dead = False
        self._await_start()
        self._kind: Kind | None = None
        self._candidate: Candidate | None = None
        self._weights_call: Any = None
        self._play_call: Any = None

    def _await_start(self) -> None:
        self._start_call: Any = self._evaluator.handle.__ray_ready__.remote()  # None once the evaluator has started
        self._note_at = time.monotonic() + EVALUATOR_NOTE_AFTER

    def advance(self) -> None:
        """Start an evaluation if one is due, or record its result if it has finished.

        Raises RunFault if no evaluator has started yet, and this one cannot.
        """
        if line := self._retries.news(time.monotonic()):
            self._run.progress.note(line)
        if self._is_dead and not self._replace():
            return
        try:
            if self._start_call is not None:
                self._check_start()
            if self._kind is not None:
                self._advance(self._kind)
            elif self._start_call is None:
                self._begin()
        except ray.exceptions.ActorUnavailableError as error:  # Ray restarts the evaluator
            self._give_up(f"the evaluator is restarting: {first_line(error)}")
        except ray.exceptions.ObjectLostError as error:  # its answer was on a node that has died
            self._give_up(f"the evaluator's answer was lost: {first_line(error)}")
        except DIED as error:
            if not self._has_started:
                raise RunFault(f"evaluator could not start{where(error)}: {last_line(error)}") from error
            if self._kind is not None:
                self._give_up(f"{NAME} has ended")
            self._is_dead = True
            self._retries.failed(NAME, error, time.monotonic())

    def _begin(self) -> None:
        self._kind = self._run.scheduler.due(self._run.stats)
        if self._kind is not None:
            self._weights_call = self._evaluator.handle.take_weights.remote()

    def _give_up(self, why: str) -> None:
        self._run.progress.note(f"warning: lost an evaluation, because {why}")
        self._kind = self._weights_call = self._play_call = None

    def _replace(self) -> bool:
        """Request a new evaluator if it is time to; returns whether one is requested."""
        if self._retries.waiting(time.monotonic()):
            return False
        try:
            self._evaluator.replace()
        except ValueError:  # the next call tries again
            return False
        self._is_dead = False
        self._await_start()
        return True

    def _check_start(self) -> None:
        """Note whether the evaluator has started. Raises what Ray raises if it cannot."""
        if not is_ready(self._start_call):
            if time.monotonic() > self._note_at:
                self._note_at = math.inf
                self._run.progress.note(
                    f"warning: the evaluator still waits for a free CPU after {EVALUATOR_NOTE_AFTER:g} s: the run trains, "
                    "but evaluates nothing until a node has one"
                )
            return
        call, self._start_call = self._start_call, None
        try:
            ray.get(call)
        except ray.exceptions.ActorUnavailableError:  # Ray restarts it
            self._start_call = self._evaluator.handle.__ray_ready__.remote()
            return
        self._has_started = True
        self._retries.started(NAME)

    def _advance(self, kind: Kind) -> None:
        if self._weights_call is not None and is_ready(self._weights_call):
            try:
                version, updates, weights = ray.get(self._weights_call)
            except RunFault as error:  # its node was cut off; the death of the store ends the run
                return self._give_up(reason(error))
            self._weights_call = None
            self._candidate = Candidate(weights, version, self._run.stats.agent_steps, updates)
            self._play_call = self._evaluator.handle.evaluate.remote(self._run.scheduler.episodes(kind))
        elif self._play_call is not None and is_ready(self._play_call):
            assert self._candidate is not None
            result = ray.get(self._play_call)
            self._kind = next_kind = self._run.record_evaluation(kind, self._candidate, result)
            self._play_call = None
            if next_kind is not None:
                self._play_call = self._evaluator.handle.evaluate.remote(self._run.scheduler.episodes(next_kind))


def is_ready(ref: Any) -> bool:
    """Whether Ray has the result, or the error, of the call ``ref``."""
    return bool(ray.wait([ref], timeout=0)[0])
