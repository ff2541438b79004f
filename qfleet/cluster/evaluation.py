"""The evaluations of a distributed run, as its driver sees them."""

from __future__ import annotations

import math
import time
from typing import Any

import ray

from qfleet.cluster.faults import first_line, last_line, reason
from qfleet.run.run import Run
from qfleet.run.scheduler import Candidate, Kind
from rl.errors import RunFault

EVALUATOR_NOTE_AFTER = 60.0  # seconds without an evaluator after which the user is told


class Evaluation:
    """The current evaluation of a run, played by the evaluator's process.

        evaluation = Evaluation(run, evaluator)
        evaluation.advance()  # repeatedly, from the driver's loop; it never waits

    ``evaluator`` is the handle of an `EvaluatorWorker`. An evaluation that is lost is not repeated: the next one is
    played when it is due.
    """

    def __init__(self, run: Run, evaluator: Any) -> None:
        self._run, self._evaluator = run, evaluator
        self._start_call: Any = evaluator.__ray_ready__.remote()  # None once the evaluator has started
        self._note_at = time.monotonic() + EVALUATOR_NOTE_AFTER
        self._kind: Kind | None = None
        self._candidate: Candidate | None = None
        self._weights_call: Any = None
        self._play_call: Any = None

    def advance(self) -> None:
        """Start an evaluation if one is due, or record its result if it has finished.

        Raises RunFault if the evaluator cannot start.
        """
        if self._start_call is not None:
            self._check_start()
        if self._kind is None:
            self._kind = self._run.scheduler.due(self._run.stats)
            if self._kind is not None:
                self._weights_call = self._evaluator.take_weights.remote()
            return
        try:
            self._advance(self._kind)
        except ray.exceptions.RayActorError as error:  # Ray restarts the evaluator
            self._give_up(f"the evaluator is restarting: {first_line(error)}")

    def _give_up(self, why: str) -> None:
        self._run.progress.note(f"warning: lost an evaluation, because {why}")
        self._kind = self._weights_call = self._play_call = None

    def _check_start(self) -> None:
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
            self._start_call = self._evaluator.__ray_ready__.remote()
        except ray.exceptions.RayActorError as error:
            raise RunFault(f"evaluator could not start: {last_line(error)}") from error

    def _advance(self, kind: Kind) -> None:
        if self._weights_call is not None and is_ready(self._weights_call):
            try:
                version, updates, weights = ray.get(self._weights_call)
            except RunFault as error:  # its node was cut off; the death of the store ends the run
                return self._give_up(reason(error))
            self._weights_call = None
            self._candidate = Candidate(weights, version, self._run.stats.agent_steps, updates)
            self._play_call = self._evaluator.evaluate.remote(self._run.scheduler.episodes(kind))
        elif self._play_call is not None and is_ready(self._play_call):
            assert self._candidate is not None
            result = ray.get(self._play_call)
            self._kind = next_kind = self._run.record_evaluation(kind, self._candidate, result)
            self._play_call = None
            if next_kind is not None:
                self._play_call = self._evaluator.evaluate.remote(self._run.scheduler.episodes(next_kind))


def is_ready(ref: Any) -> bool:
    """Whether Ray has the result, or the error, of the call ``ref``."""
    return bool(ray.wait([ref], timeout=0)[0])
