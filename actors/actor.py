"""An actor: rolls out a batch of environments, cuts segments with initial priorities, and pulls newer weights.

The initial priority of an item is the learner's own TD error, with the weights the actor holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from actors.rollout import rollout
from rl.bounds import at_least, between
from rl.envs.config import EnvConfig
from rl.envs.make import make_environments
from rl.exploration import Exploration
from rl.networks import QNetwork, for_acting, values
from rl.parameters import load_weights
from rl.ports import SegmentSink, WeightSource
from rl.precision import Precision
from rl.returns import ReturnConfig
from rl.segments import ClosedSegment, SegmentBuilder, newest_frame, stack_frames
from rl.stepping import SeedSequence
from rl.td import double_q_error
from rl.types import Array, EpisodeResult, Float32


@dataclass(frozen=True)
class ActorConfig:
    """The actors."""

    count: int = 1
    """Actor processes."""
    environments: int = 16
    """Environments an actor, stepped together with one forward pass."""
    segment_items: int = 40
    """Transitions a segment, the unit that is inserted into replay."""
    weights_period: int = 4
    """Batched steps between looks for newer weights."""
    precision: Precision = "float32"
    """Weights of actors and evaluator: float32, bfloat16 (convolutions of pixels only), or auto: bfloat16 for
    these where the hardware has it."""
    nice: int = 5
    """Added to the actors' niceness on a local Ray, so that they do not hold up the learner; 0: none."""

    def __post_init__(self) -> None:
        at_least(self, 1, "count", "environments", "segment_items", "weights_period")
        between(self, 0, 19, "nice")


class Actor:
    """N environments, a copy of the networks, and a place to put the experience."""

    def __init__(
        self,
        config: ActorConfig,
        env: EnvConfig,
        returns: ReturnConfig,
        double: bool,
        networks: tuple[QNetwork, QNetwork],
        exploration: Exploration,
        sink: SegmentSink,
        weights: WeightSource,
        seed: int,
        index: int,
        base_steps: int = 0,
    ) -> None:
        self.config, self._double = config, double
        self.environments = make_environments(env, config.environments)
        self.online, self.target = (for_acting(n, config.precision) for n in networks)
        self._sink, self._weights = sink, weights
        self._exploration = exploration
        self.version = self.target_version = 0
        self.agent_steps = 0  # of this actor in this run
        self._fleet_steps = lambda: base_steps + self.agent_steps * config.count
        self._rng = np.random.default_rng([seed, index, 2, base_steps])  # a resumed or restarted actor draws anew
        self._seeds = SeedSequence(seed, 1000 + index, base_steps)
        spec = self.environments.spec
        self._builders = [
            SegmentBuilder(returns, spec, config.segment_items, first_episode=((index + 1) << 40) + (i << 24))
            for i in range(config.environments)
        ]
        self._running = np.zeros(config.environments), np.zeros(config.environments, np.int64)
        self.finished: deque[EpisodeResult] = deque(maxlen=1_000)  # episodes since the last `take_episodes`
        self._acting = rollout(self.environments, self._values, self._epsilons, self._rng, self._seeds)
        self._batched_steps = 0

    def _epsilons(self) -> Any:
        return self._exploration.epsilons(self._fleet_steps())

    def _values(self, observation: Array) -> Float32:
        return values(self.online, observation)

    def step(self) -> int:
        """One batched step: act, store what is complete, and now and then take newer weights. Returns agent steps made.

        Blocks while replay has no room. Raises RunFault when replay is gone.
        """
        if self._batched_steps % self.config.weights_period == 0:
            self.pull_weights()
        self._batched_steps += 1
        acted = next(self._acting)
        spec = self.environments.spec
        first = newest_frame(acted.observation, spec)
        after = newest_frame(acted.step.observation, spec)
        step = acted.step
        closed = []
        for i, builder in enumerate(self._builders):
            if acted.begins[i]:
                builder.begin(first[i].copy())
            segment = builder.add(
                acted.q[i],
                int(acted.action[i]),
                float(step.reward[i]),
                bool(step.terminated[i]),
                bool(step.truncated[i]),
                bool(step.lost_life[i]),
                self.version,
                after[i].copy(),
            )
            if segment is not None:
                closed.append(segment)
        self._count_episodes(step.reward, step.done, step.truncated)
        self.agent_steps += len(self._builders)
        for item in closed:
            self._sink.write(self._prioritise(item))
        return len(self._builders)

    def _count_episodes(self, reward: Float32, done: Array, truncated: Array) -> None:
        returns, lengths = self._running
        returns += reward
        lengths += 1
        if done.any():
            epsilons = self._epsilons()
            for i in np.flatnonzero(done):
                result = EpisodeResult(float(returns[i]), int(lengths[i]), float(epsilons[i]), bool(truncated[i]))
                self.finished.append(result)
            returns[done], lengths[done] = 0.0, 0

    def _prioritise(self, closed: ClosedSegment) -> Any:
        """The segment with |TD error| as its items' priorities."""
        segment, q = closed
        spec = self.environments.spec
        start = segment.item_step.astype(np.int64)
        end = start + segment.item_length
        s_t = stack_frames(segment.frames, end, spec.stack)
        q_t_value = values(self.target, s_t)
        selector = q[end] if self._double else q_t_value
        unseen = np.isnan(selector[:, 0])
        if unseen.any():  # the last observation of an episode was never acted on
            selector = selector.copy()
            selector[unseen] = self._values(s_t[unseen])
        td = double_q_error(
            torch.from_numpy(q[start]),
            torch.from_numpy(segment.actions[start].astype(np.int64)),
            torch.from_numpy(segment.r_t),
            torch.from_numpy(segment.discount_t),
            torch.from_numpy(q_t_value),
            torch.from_numpy(selector),
        )
        return replace(segment, td_abs=td.abs().numpy())

    def pull_weights(self) -> bool:
        """Take newer weights if there are any; never waits."""
        publication = self._weights.poll()
        if publication is None:
            return False
        load_weights(self.online, publication.weights)
        if publication.target_weights is not None:
            load_weights(self.target, publication.target_weights)
            self.target_version = publication.target_version
        self.version = publication.version
        return True

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Step until ``should_stop()``."""
        while not should_stop():
            self.step()

    def take_episodes(self) -> list[EpisodeResult]:
        """Episodes finished since the last call."""
        taken = []
        while self.finished:
            taken.append(self.finished.popleft())
        return taken

    def stats(self) -> Mapping[str, float]:
        """Counts of this actor."""
        return {"agent_steps": float(self.agent_steps), "weights_version": float(self.version)}

    def close(self) -> None:
        """Release environments and sink."""
        self.environments.close()
        self._sink.close()
