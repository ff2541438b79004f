"""max_a q(s, a) where actions are continuous, three ways: by search, in closed form, or by a learned network.

Legend: ``s`` observations [B, O], ``a`` actions [B, D] in the box [-1, 1]^D, ``q`` [B], M candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

Values = Callable[[Tensor, Tensor], Tensor]  # (s [..., O], a [..., D]) -> q [...]


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Fully connected ReLU layers, and a linear one at the end: [..., inputs] -> [..., outputs]."""
    sizes = (inputs, *hidden)
    body = [x for i, o in pairwise(sizes) for x in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*body, nn.Linear(sizes[-1], outputs))


class Maximizer(nn.Module, ABC):
    """q and the action that maximizes it; a subclass for each of the three ways."""

    @abstractmethod
    def q(self, s: Tensor, a: Tensor) -> Tensor:
        """q(s, a): [..., O], [..., D] -> [...]."""

    @abstractmethod
    def best(self, s: Tensor) -> Tensor:
        """argmax_a q(s, a), [B, D], as well as this way finds it."""

    def maximum(self, s: Tensor) -> Tensor:
        """max_a q(s, a), [B]."""
        return self.q(s, self.best(s))

    def own_loss(self, s: Tensor) -> Tensor:
        """What the maximizer minimises beside the squared TD error, a scalar for s [B, O]; 0 unless it is learned."""
        return s.new_zeros(())


class Critic(nn.Module):
    """q as any function of (s, a): [..., O], [..., D] -> [...]."""

    def __init__(self, observation: int, action: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.network = mlp(observation + action, hidden, 1)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        """q(s, a): [..., O], [..., D] -> [...]."""
        q: Tensor = self.network(torch.cat([s, a], dim=-1))
        return q.squeeze(-1)


def cross_entropy_search(q: Values, s: Tensor, uniform: Tensor, normal: Tensor, elites: int) -> Tensor:
    """The best of sampled actions, [B, D]: the cross-entropy method (Rubinstein 1999; QT-Opt, Kalashnikov et al. 2018, 4.2).

    The first M candidates are ``uniform`` [M, D], in the box. Each refinement fits a normal distribution to the ``elites``
    best and draws M new ones from it: mean + std * ``normal`` [K, M, D], clipped to the box. The answer is the best of all
    candidates, so that refining never loses; K = 0 is plain sampling. One set of draws serves every s.
    """
    candidates = uniform.expand(len(s), *uniform.shape)  # [B, M, D]
    every, values = candidates, _judged(q, s, candidates)
    newest = values
    for draws in normal:
        top = _taken(candidates, newest.topk(elites, dim=1).indices)  # [B, elites, D]
        mean, std = top.mean(dim=1, keepdim=True), top.std(dim=1, keepdim=True, correction=0)
        candidates = (mean + std * draws).clamp(-1.0, 1.0)
        newest = _judged(q, s, candidates)
        every, values = torch.cat([every, candidates], dim=1), torch.cat([values, newest], dim=1)
    return _taken(every, values.argmax(dim=1, keepdim=True)).squeeze(1)


def _judged(q: Values, s: Tensor, candidates: Tensor) -> Tensor:
    """q of each candidate [B, M, D] -> [B, M]."""
    return q(s.unsqueeze(1).expand(-1, candidates.shape[1], -1), candidates)


def _taken(candidates: Tensor, index: Tensor) -> Tensor:
    """Candidates [B, M, D] at ``index`` [B, K] -> [B, K, D]."""
    return candidates.gather(1, index.unsqueeze(-1).expand(-1, -1, candidates.shape[-1]))


class Cem(Maximizer):
    """(1) Search. The draws are made once, with the weights, so that policy and targets are deterministic."""

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
        """The critic's q(s, a): [..., O], [..., D] -> [...]."""
        q: Tensor = self.critic(s, a)
        return q

    @torch.no_grad()
    def best(self, s: Tensor) -> Tensor:
        """The best action found by `cross_entropy_search`, [B, D]."""
        return cross_entropy_search(self.q, s, self.uniform, self.normal, self.elites)


class Naf(Maximizer):
    """(2) Closed form: q(s, a) = v(s) - 1/2 (a - mu(s))^T P(s) (a - mu(s)), whose maximum is v(s), at mu(s).

    P = L L^T with L lower triangular and its diagonal an exponential, so P is positive definite (Gu et al. 2016, 4).
    tanh keeps mu inside the box, so that v is the value of the best action allowed. q has a single peak over the
    actions, even where the true one has two.
    """

    def __init__(self, observation: int, action: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.rows, self.columns = torch.tril_indices(action, action).unbind()
        self.sizes = (1, action, len(self.rows))
        self.network = mlp(observation, hidden, sum(self.sizes))

    def parts(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """v [B], mu [B, D] and L [B, D, D]."""
        v, mu, entries = self.network(s).split(self.sizes, dim=-1)
        entries = torch.where(self.rows == self.columns, entries.exp(), entries)
        lower = s.new_zeros(*mu.shape, mu.shape[-1])
        lower[..., self.rows, self.columns] = entries
        return v.squeeze(-1), torch.tanh(mu), lower

    def q(self, s: Tensor, a: Tensor) -> Tensor:
        """v - 1/2 (a - mu)^T L L^T (a - mu): [..., O], [..., D] -> [...] (Gu et al. 2016, 4)."""
        v, mu, lower = self.parts(s)
        x = torch.einsum("...ij,...i->...j", lower, a - mu)  # L^T (a - mu), so that x^T x is the quadratic form
        q: Tensor = v - 0.5 * x.square().sum(-1)
        return q

    def best(self, s: Tensor) -> Tensor:
        """mu(s), [B, D]."""
        return self.parts(s)[1]

    def maximum(self, s: Tensor) -> Tensor:
        """v(s), [B]."""
        return self.parts(s)[0]


class Ddpg(Maximizer):
    """(3) A network mu(s) that learns to climb q (Silver et al. 2014; Lillicrap et al. 2016, algorithm 1)."""

    def __init__(self, observation: int, action: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.critic, self.actor = Critic(observation, action, hidden), mlp(observation, hidden, action)

    def q(self, s: Tensor, a: Tensor) -> Tensor:
        """The critic's q(s, a): [..., O], [..., D] -> [...]."""
        q: Tensor = self.critic(s, a)
        return q

    def best(self, s: Tensor) -> Tensor:
        """mu(s), [B, D]."""
        return torch.tanh(self.actor(s))

    def own_loss(self, s: Tensor) -> Tensor:
        """A scalar for s [B, O], with the gradient -grad_a q(s, a)|a=mu(s) * grad_theta mu(s), averaged over s.

        So mu climbs, and q gets no gradient.
        """
        mu = self.best(s)
        (uphill,) = torch.autograd.grad(self.q(s, mu).sum(), mu)  # a constant from here on
        return -(uphill * mu).sum(-1).mean()
