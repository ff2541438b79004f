"""The evaluations of a distributed run, as its driver sees them."""

from __future__ import annotations

import math
import time
from typing import Any

import ray

from qfleet.cluster.faults import DIED, last_line, reason
from qfleet.cluster.process import Process, is_ready
from qfleet.run.run import Run
from qfleet.run.scheduler import Candidate, Kind

EVALUATOR_NOTE_AFTER = 60.0  # seconds without an evaluator after which the user is told


class Evaluation:
    """The current evaluation of a run, played by the process of an `EvaluatorWorker`.

        evaluation = Evaluation(run, evaluator)
        evaluation.advance()  # repeatedly, from the driver's loop; it never waits

    An evaluation that is lost is not repeated: the next one is played when it is due.
    """

    def __init__(self, run: Run, evaluator: Process) -> None:
        self._run, self._evaluator = run, evaluator
        self._note_at = time.monotonic() + EVALUATOR_NOTE_AFTER
        self._kind: Kind | None = None
        self._player: Any = None  # handle of the process that has the weights; one started since has none
        self._candidate: Candidate | None = None
        self._weights_call: Any = None
        self._play_call: Any = None

    def advance(self) -> None:
        """Start an evaluation if one is due, or record its result if it has finished.

        Raises RunFault if too many evaluations in a row have failed.
        """
        try:
            if self._kind is not None:
                self._advance(self._kind)
            elif self._evaluator.is_working:
                self._begin()
            elif not self._evaluator.has_started and time.monotonic() > self._note_at:
                self._note_at = math.inf
                self._run.progress.note(
                    f"warning: the evaluator still waits for a free CPU after {EVALUATOR_NOTE_AFTER:g} s: the run trains, "
                    "but evaluates nothing until a node has one"
                )
        except (*DIED, ray.exceptions.ObjectLostError) as error:  # the driver's polls show whether it has died
            self._give_up(f"the evaluator or its answer is gone ({reason(error)})")
        except ray.exceptions.RayError as error:  # the evaluation has raised it
            self._give_up(last_line(error))

    def _begin(self) -> None:
        self._kind = self._run.scheduler.due(self._run.stats)
        if self._kind is not None:
            self._player = self._evaluator.handle
            self._weights_call = self._player.take_weights.remote()

    def _give_up(self, why: str) -> None:
        self._kind = self._weights_call = self._play_call = None
        self._run.evaluation_failed(why)

    def _advance(self, kind: Kind) -> None:
        if self._weights_call is not None and is_ready(self._weights_call):
            version, updates, weights = ray.get(self._weights_call)
            self._weights_call = None
            self._candidate = Candidate(weights, version, self._run.stats.agent_steps, updates)
            self._play_call = self._player.evaluate.remote(self._run.scheduler.episodes(kind))
        elif self._play_call is not None and is_ready(self._play_call):
            assert self._candidate is not None
            result = ray.get(self._play_call)
            self._kind = next_kind = self._run.record_evaluation(kind, self._candidate, result)
            self._play_call = None
            if next_kind is not None:
                self._play_call = self._player.evaluate.remote(self._run.scheduler.episodes(next_kind))
