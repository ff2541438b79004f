"""Three ways to find max_a q(s, a) over continuous actions: by search, in closed form, and with an actor network.

Legend: ``s`` observations [B, O]; ``a`` actions [B, D] in the box [-1, 1]^D; ``q`` [B]; M candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

Values = Callable[[Tensor, Tensor], Tensor]  # (s [..., O], a [..., D]) -> q [...]


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Return a network of fully connected ReLU layers and a linear output layer: [..., inputs] -> [..., outputs]."""
    sizes = (inputs, *hidden)
    body = [x for i, o in pairwise(sizes) for x in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*body, nn.Linear(sizes[-1], outputs))


class Maximizer(nn.Module, ABC):
    """A network q(s, a) that can find its maximum over actions."""

    @abstractmethod
    def q(self, s: Tensor, a: Tensor) -> Tensor:
        """Return q(s, a): [..., O], [..., D] -> [...]."""

    @abstractmethod
    def best_action(self, s: Tensor) -> Tensor:
        """Return argmax_a q(s, a), [B, D], exactly (naf) or approximately (cem, ddpg)."""

    def max_q(self, s: Tensor) -> Tensor:
        """Return max_a q(s, a), [B]."""
        return self.q(s, self.best_action(s))

    def actor_loss(self, s: Tensor) -> Tensor:
        """Return the loss of the actor network for s [B, O], a scalar to add to the TD loss; 0 if there is no actor."""
        return s.new_zeros(())


class Critic(nn.Module):
    """A network q(s, a) of state and action."""

    def __init__(self, observation: int, action: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.network = mlp(observation + action, hidden, 1)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        """Return q(s, a): [..., O], [..., D] -> [...]."""
        q: Tensor = self.network(torch.cat([s, a], dim=-1))
        return q.squeeze(-1)


def cross_entropy_search(q: Values, s: Tensor, uniform: Tensor, normal: Tensor, elites: int) -> Tensor:
    """Search argmax_a q(s, a) by the cross-entropy method; returns the best candidates, [B, D].

    Rubinstein 1999; QT-Opt, Kalashnikov et al. 2018, section 4.2. The first M candidates are ``uniform`` [M, D]. Each
    of the K iterations after it fits a normal distribution to the ``elites`` best candidates and draws M new ones: mean
    + std * normal[k], with ``normal`` [K, M, D] from N(0, 1), clipped to the box. K = 0 is random search. The result is
    the best of all candidates, so that more iterations cannot make it worse. All s share the same draws.
    """
    candidates = uniform.expand(len(s), *uniform.shape)  # [B, M, D]
    all_candidates, all_q = candidates, _q_of_candidates(q, s, candidates)
    newest_q = all_q
    for draws in normal:
        top = _gather_actions(candidates, newest_q.topk(elites, dim=1).indices)  # [B, elites, D]
        mean, std = top.mean(dim=1, keepdim=True), top.std(dim=1, keepdim=True, correction=0)
        candidates = (mean + std * draws).clamp(-1.0, 1.0)
        newest_q = _q_of_candidates(q, s, candidates)
        all_candidates, all_q = torch.cat([all_candidates, candidates], dim=1), torch.cat([all_q, newest_q], dim=1)
    return _gather_actions(all_candidates, all_q.argmax(dim=1, keepdim=True)).squeeze(1)


def _q_of_candidates(q: Values, s: Tensor, candidates: Tensor) -> Tensor:
    """Return q of each candidate: [B, M, D] -> [B, M]."""
    return q(s.unsqueeze(1).expand(-1, candidates.shape[1], -1), candidates)


def _gather_actions(candidates: Tensor, index: Tensor) -> Tensor:
    """Select candidates [B, M, D] by ``index`` [B, K] -> [B, K, D]."""
    return candidates.gather(1, index.unsqueeze(-1).expand(-1, -1, candidates.shape[-1]))


class Cem(Maximizer):
    """Maximizes by the cross-entropy method (QT-Opt, Kalashnikov et al. 2018).

    The random draws of the search are made once and saved with the weights, so that policy and targets are
    deterministic.
    """

    uniform: Tensor
    normal: Tensor

    def __init__(
        self, observation: int, action: int, hidden: Sequence[int], samples: int, elites: int, refinements: int
    ) -> None:
        super().__init__()
        self.critic, self.elites = Critic(observation, action, hidden), elites
        self.register_buffer("uniform", 2.0 * torch.rand(samples, action) - 1.0)
        self.register_buffer("normal", torch.randn(refinements, samples, action))

    def q(self, s: Tensor, a: Tensor) -> Tensor:
        """Return the critic's q(s, a): [..., O], [..., D] -> [...]."""
        q: Tensor = self.critic(s, a)
        return q

    @torch.no_grad()
    def best_action(self, s: Tensor) -> Tensor:
        """Return the action found by `cross_entropy_search`, [B, D]."""
        return cross_entropy_search(self.q, s, self.uniform, self.normal, self.elites)


class Naf(Maximizer):
    """Normalized advantage function: q(s, a) = v(s) - 1/2 (a - mu(s))^T P(s) (a - mu(s)), with maximum v(s) at mu(s).

    Gu et al. 2016, section 4. P = L L^T, where L is lower triangular with an exponential on its diagonal, so that P is
    positive definite. tanh keeps mu in the box, so that v is the maximum over valid actions. This q has only one
    maximum over actions, even if the true q has several.
    """

    def __init__(self, observation: int, action: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.rows, self.columns = torch.tril_indices(action, action).unbind()
        self.sizes = (1, action, len(self.rows))
        self.network = mlp(observation, hidden, sum(self.sizes))

    def heads(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return v [B], mu [B, D] and L [B, D, D]."""
        v, mu, entries = self.network(s).split(self.sizes, dim=-1)
        entries = torch.where(self.rows == self.columns, entries.exp(), entries)
        lower = s.new_zeros(*mu.shape, mu.shape[-1])
        lower[..., self.rows, self.columns] = entries
        return v.squeeze(-1), torch.tanh(mu), lower

    def q(self, s: Tensor, a: Tensor) -> Tensor:
        """Return v - 1/2 (a - mu)^T L L^T (a - mu): [..., O], [..., D] -> [...]."""
        v, mu, lower = self.heads(s)
        x = torch.einsum("...ij,...i->...j", lower, a - mu)  # L^T (a - mu), so that x^T x is the quadratic form
        q: Tensor = v - 0.5 * x.square().sum(-1)
        return q

    def best_action(self, s: Tensor) -> Tensor:
        """Return mu(s), [B, D]."""
        return self.heads(s)[1]

    def max_q(self, s: Tensor) -> Tensor:
        """Return v(s), [B]."""
        return self.heads(s)[0]


class Ddpg(Maximizer):
    """Maximizes with an actor network mu(s) that is trained to increase q(s, mu(s)).

    Silver et al. 2014; Lillicrap et al. 2016, algorithm 1.
    """

    def __init__(self, observation: int, action: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.critic, self.actor = Critic(observation, action, hidden), mlp(observation, hidden, action)

    def q(self, s: Tensor, a: Tensor) -> Tensor:
        """Return the critic's q(s, a): [..., O], [..., D] -> [...]."""
        q: Tensor = self.critic(s, a)
        return q

    def best_action(self, s: Tensor) -> Tensor:
        """Return mu(s), [B, D]."""
        return torch.tanh(self.actor(s))

    def actor_loss(self, s: Tensor) -> Tensor:
        """Return a scalar [] whose gradient is the mean over s [B, *observation] of -grad_a q(s, mu(s)) grad_theta mu(s).

        This is the deterministic policy gradient (Lillicrap et al. 2016, equation 6). The critic gets no gradient.
        """
        mu = self.best_action(s)
        (q_gradient,) = torch.autograd.grad(self.q(s, mu).sum(), mu)  # has no graph: the critic gets no gradient
        return -(q_gradient * mu).sum(-1).mean()
