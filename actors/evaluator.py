"""The evaluator: plays evaluations with its own environments and its own network."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from rl.envs.config import EnvConfig
from rl.envs.make import make_environments
from rl.errors import EnvironmentFault, RunFault
from rl.evaluation import EvaluationConfig, EvaluationResult, evaluate
from rl.networks import QNetwork, prepare_for_acting, q_values
from rl.parameters import load_weights
from rl.policies import greedy
from rl.ports import Weights
from rl.precision import Precision
from rl.stepping import environment_call
from rl.types import Array, Int64


class Evaluator:
    """Evaluates weights, epsilon-greedily with the configured epsilon.

        evaluator = Evaluator(config, env, network, precision, seed)
        result = evaluator.evaluate(weights, episodes=30)  # new episodes in each call
        result = evaluator.evaluate(weights, episodes=30, seed=1)  # the same episodes for the same seed

    The seeds of new episodes come from a generator with the seed (``seed``, ``start``). A resumed run passes another
    ``start``, so that it does not repeat episodes.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        env: EnvConfig,
        network: QNetwork,
        precision: Precision,
        seed: int,
        start: int = 0,
    ) -> None:
        self._config, self._env = config, env
        self._network = prepare_for_acting(network, precision)
        self._seeds = np.random.default_rng([seed, 7, start])

    def _act(self, observation: Array) -> Int64:
        return greedy(q_values(self._network, observation))

    def evaluate(
        self,
        weights: Weights,
        episodes: int,
        seed: int | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> EvaluationResult:
        """Play ``episodes`` episodes with ``weights`` and return the result, including the wall time.

        ``should_stop`` is called before every step. If it returns True, the result has the episodes finished so far.
        Raises ValueError if the weights belong to another network, and RunFault if the environment raises an error.
        """
        load_weights(self._network, weights)
        if seed is None:
            seed = int(self._seeds.integers(2**31))
        start = time.monotonic()
        try:
            result = self._play(episodes, seed, should_stop)
        except EnvironmentFault as fault:
            raise RunFault(f"the environment {self._env.id} raised {fault.what} in an evaluation") from fault
        return replace(result, seconds=time.monotonic() - start)

    def _play(self, episodes: int, seed: int, should_stop: Callable[[], bool]) -> EvaluationResult:
        c = self._config
        with environment_call("make"):
            environments = make_environments(self._env, min(c.environments, episodes))
        try:
            return evaluate(self._act, environments, episodes, c.epsilon, seed, c.max_episode_steps, should_stop)
        finally:
            with contextlib.suppress(Exception):  # neither the result nor an error of the play may be lost
                environments.close()
