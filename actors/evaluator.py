"""An evaluator, with environments and a network of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from rl.envs.config import EnvConfig
from rl.envs.make import make_environments
from rl.evaluation import EvaluationConfig, EvaluationResult, evaluate
from rl.networks import QNetwork, prepare_for_acting, q_values
from rl.parameters import load_weights
from rl.policies import greedy
from rl.ports import Weights
from rl.precision import Precision
from rl.types import Array, Int64


class Evaluator:
    """Plays given weights greedily, but for the configured epsilon.

        evaluator = Evaluator(config, env, network, precision, seed)
        result = evaluator.evaluate(weights, episodes=30)  # new seeds at each call
        result = evaluator.evaluate(weights, episodes=30, seed=1)  # these seeds

    Its seeds are drawn from ``seed`` and ``start``.
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
        """The result of ``episodes`` new episodes under ``weights``, with the seconds that they took.

        An evaluation that ``should_stop`` ends holds the episodes finished so far. Raises ValueError when the weights
        are those of another network.
        """
        load_weights(self._network, weights)
        if seed is None:
            seed = int(self._seeds.integers(2**31))
        began = time.monotonic()
        environments = make_environments(self._env, min(self._config.environments, episodes))
        try:
            c = self._config
            result = evaluate(self._act, environments, episodes, c.epsilon, seed, c.max_episode_steps, should_stop)
        finally:
            environments.close()
        return replace(result, seconds=time.monotonic() - began)
