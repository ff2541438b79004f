"""Neural fitted Q-iteration: the regressor is a network (Riedmiller 2005).

Legend as in `classic.fitted_q`. The network gives q of every action at once, [N, A]; an iteration fits q(s, a) of the
action taken, starting from the weights of the iteration before. Riedmiller trains by Rprop over the whole dataset;
minibatches and Adam are faster. Their step size falls to almost nothing within each iteration: two actions differ so
little in value that the noise of the last gradient steps would decide between them. As in DQN with its target network,
the targets stand still during an iteration.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from classic.dataset import Dataset, check, transitions
from classic.fitted_q import BatchConfig, iterate
from classic.interface import Learned, Method, Monitor, Setting
from rl.bounds import at_least, layers, positive
from rl.envs.config import EnvConfig
from rl.envs.make import describe
from rl.networks import NetworkConfig, make_network
from rl.schedules import linear
from rl.td import squared, td_error, weighted_loss
from rl.types import Array, Float64, Int64, ObservationSpec

ROWS = 10_000  # of a pass that needs no gradient


@dataclass(frozen=True)
class NeuralFittedQConfig(BatchConfig):
    """Fitted Q-iteration with a network."""

    steps: int = 100_000
    """Uniformly random steps collected before learning begins."""
    iterations: int = 20
    """Regressions, each upon the values of the one before."""
    gamma: float = 0.95
    """Discount a step."""
    evaluate_every: int = 1
    """Iterations between evaluations of fresh episodes, of which the best one's values are kept; 0: no evaluation, the last
    iteration's values are kept."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of the fully connected layers."""
    epochs: int = 2
    """Passes over the dataset in an iteration."""
    batch: int = 512
    """Transitions a gradient step."""
    learning_rate: float = 1e-3
    """Adam's step size at the start of each iteration; it falls to a hundredth of it, on a straight line."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "epochs", "batch")
        layers(self, "hidden")
        positive(self, "learning_rate")


class Network:
    """q by a network of observations, each divided by its standard deviation over the dataset."""

    def __init__(self, config: NeuralFittedQConfig, data: Dataset, actions: int, seed: int) -> None:
        self._c = config
        deviation = data.s.std(axis=0, dtype=np.float64)
        self._scale = np.where(deviation > 0.0, deviation, 1.0).astype(np.float32)
        spec = ObservationSpec(data.s.shape[1:], "float32")
        self._network = make_network(NetworkConfig("mlp", config.hidden, dueling=False), spec, actions, seed)
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=config.learning_rate)
        self._rng = np.random.default_rng([seed, 3])

    def _scaled(self, s: Array) -> torch.Tensor:
        return torch.from_numpy(s / self._scale)

    def fit(self, s: Array, a: Int64, target: Float64) -> float:
        """Minimise the mean of (target - q(s, a))^2 / 2 over s [N, *observation], a [N], target [N]; returns R^2."""
        x, a_tm1, y = self._scaled(s), torch.from_numpy(a), torch.from_numpy(target.astype(np.float32))
        batches = [
            rows
            for _ in range(self._c.epochs)
            for rows in torch.from_numpy(self._rng.permutation(len(x))).split(self._c.batch)
        ]
        rate = self._c.learning_rate
        for i, rows in enumerate(batches):
            self._optimizer.param_groups[0]["lr"] = linear(rate, rate / 100, len(batches), i)
            losses = squared(td_error(self._network(x[rows]), a_tm1[rows], y[rows]))
            loss = weighted_loss(losses, torch.ones_like(losses))
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        rest = target - self(s)[np.arange(len(a)), a]
        variance = float(((target - target.mean()) ** 2).sum())
        return (
            float(1.0 - (rest**2).sum() / variance) if variance > 0.0 else 0.0
        )  # one target for all: nothing to explain

    @torch.no_grad()
    def __call__(self, s: Array) -> Array:
        """q float32 [N, A] of observations [N, *observation]."""
        return np.concatenate([self._network(x).numpy() for x in self._scaled(s).split(ROWS)])


def neural_fitted_q(config: NeuralFittedQConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Fitted Q-iteration by a network that keeps its weights between iterations (after Riedmiller 2005).

    Raises BadInput where the dataset does not fit.
    """
    _, actions = describe(env)
    data = transitions(config, env, seed)
    return iterate(config, env, seed, monitor, Network(config, data, actions, seed), data)


METHODS = {
    "neural-fitted-q": Method(
        "fitted Q-iteration with a network",
        neural_fitted_q,
        "network",
        (Setting(EnvConfig(id="CartPole-v1"), NeuralFittedQConfig(), episodes=10),),
        check,
    ),
}
