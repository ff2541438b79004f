"""Neural fitted Q-iteration: fitted Q-iteration with a network as regressor (Riedmiller 2005).

The network maps a state to q of all actions, [N, A]. Each iteration fits q(s, a) of the action taken and starts from
the weights of the previous iteration. The targets are fixed during an iteration, as with the target network of DQN.

Riedmiller trains with Rprop on the whole dataset; here Adam on minibatches, which is faster. The learning rate falls to
a hundredth within each iteration: the values of two actions differ so little that the noise of the last gradient steps
would otherwise decide which one is greedy.

Legend: as in `classic.fitted_q`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from classic.dataset import Dataset, check_dataset, load_or_collect
from classic.fitted_q import FittedIterationConfig, run_iterations
from classic.interface import Learned, Method, Monitor, Setting
from rl.bounds import at_least, layers, positive
from rl.envs.config import EnvConfig
from rl.envs.make import spec_and_actions
from rl.networks import NetworkConfig, make_network
from rl.schedules import linear
from rl.td import squared, td_error, weighted_loss
from rl.types import Array, Float64, Int64, ObservationSpec

ROWS = 10_000  # observations per forward pass without gradients


@dataclass(frozen=True)
class NeuralFittedQConfig(FittedIterationConfig):
    """Fitted Q-iteration with a network."""

    steps: int = 100_000
    """Steps with uniformly random actions, collected before learning starts."""
    iterations: int = 20
    """Iterations; each fits the network to the targets of the previous one."""
    gamma: float = 0.95
    """Discount factor."""
    evaluate_every: int = 1
    """Iterations between evaluations. The values with the best evaluation are returned; 0: no evaluation, and the last
    values are returned."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of the hidden layers."""
    epochs: int = 2
    """Passes over the dataset per iteration."""
    batch: int = 512
    """Transitions per gradient step."""
    learning_rate: float = 1e-3
    """Learning rate of Adam at the start of each iteration, within which it falls linearly to a hundredth."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "epochs", "batch")
        layers(self, "hidden")
        positive(self, "learning_rate")


class NetworkModel:
    """q(s, a) as a network. Each number of an observation is divided by its standard deviation over the dataset."""

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
        """Minimize the mean of (target - q(s, a))^2 / 2 over s [N, *observation], a [N], target [N]; returns R^2."""
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
        residual = target - self(s)[np.arange(len(a)), a]
        variance = float(((target - target.mean()) ** 2).sum())
        return float(1.0 - (residual**2).sum() / variance) if variance > 0.0 else 0.0

    @torch.no_grad()
    def __call__(self, s: Array) -> Array:
        """Return q, float32 [N, A], of observations [N, *observation]."""
        return np.concatenate([self._network(x).numpy() for x in self._scaled(s).split(ROWS)])


def neural_fitted_q(config: NeuralFittedQConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Neural fitted Q-iteration (Riedmiller 2005), with Adam on minibatches instead of Rprop.

    Raises BadInput if the dataset does not fit.
    """
    _, actions = spec_and_actions(env)
    data = load_or_collect(config, env, seed)
    return run_iterations(config, env, seed, monitor, NetworkModel(config, data, actions, seed), data)


METHODS = {
    "neural-fitted-q": Method(
        "fitted Q-iteration with a network",
        neural_fitted_q,
        "network",
        (Setting(EnvConfig(id="CartPole-v1"), NeuralFittedQConfig(), episodes=10),),
        check_dataset,
    ),
}
