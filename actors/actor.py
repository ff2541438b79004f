"""An actor: steps a batch of environments, writes segments to replay, and loads newer weights."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from actors.adder import Adder
from rl.bounds import at_least, between
from rl.envs.config import EnvConfig
from rl.envs.make import make_environments
from rl.errors import EnvironmentFault, RunFault
from rl.exploration import Exploration
from rl.networks import QNetwork, prepare_for_acting, q_values
from rl.parameters import load_weights
from rl.policies import epsilon_greedy
from rl.ports import SegmentSink, WeightSource
from rl.precision import Precision
from rl.resuming import Rules, rules
from rl.returns import ReturnConfig
from rl.stepping import ActorStep, SeedSequence, environment_call, rollout
from rl.types import Array, EpisodeResult, Float32, Float64, Int64, Segment

# The id of an episode is (index of the actor + 1) << 40 | environment << 24 | number of the episode: 64 bits in all.
MAX_ACTORS = 2**24 - 1
MAX_ENVIRONMENTS = 2**16

MAX_FAILURES = 5  # of the environments, without an episode that ends in between: the last one ends the run
FIRST_PAUSE = 0.1  # seconds from the second such failure to the next attempt; the pause doubles with each failure


@dataclass(frozen=True)
class ActorConfig:
    """The actor processes."""

    count: int = 1
    """Number of actor processes that are wanted. A run on Ray starts with those for which there is room, at least one,
    and grows as room is found; `qfleet scale` changes the number."""
    environments: int = 16
    """Environments per actor, stepped together with one forward pass."""
    segment_items: int = 40
    """Transitions per segment, the unit that is inserted into replay."""
    weights_period: int = 4
    """Steps of all environments of the actor between checks for newer weights."""
    precision: Precision = "float32"
    """Precision of the weights in actors and evaluator: float32; bfloat16, only for networks that convolve pixels;
    auto: bfloat16 for those networks if the hardware supports it, else float32."""
    nice: int = 5
    """Niceness added to the actor processes, so that they do not slow other processes of their node down, such as the
    learner; 0: none."""

    on_resume: ClassVar[Rules] = rules(may="count environments segment_items weights_period precision nice")

    def __post_init__(self) -> None:
        at_least(self, 1, "count", "environments", "segment_items", "weights_period")
        between(self, 1, MAX_ACTORS, "count")
        between(self, 1, MAX_ENVIRONMENTS, "environments")
        between(self, 0, 19, "nice")


class FleetView(NamedTuple):
    """What an actor has to know of the fleet, that is, of all living actors."""

    offset: int  # place of the actor's first environment among the environments of the fleet
    environments: int  # of the fleet
    agent_steps: int  # of all actors since the run's first start


class Actor:
    """Steps N environments, writes segments to ``sink`` and loads newer weights from ``weights``.

        actor = Actor(config, env, returns, double, networks, exploration, sink, weights, seed, index)
        actor.run(should_stop)  # or: actor.step() repeatedly
        actor.close()

    If a call of the environments raises an error, all N are made anew and start new episodes. Of the episodes that it
    interrupts, replay gets the segments that were complete.

    Args:
        double: whether the learner uses Double DQN; the initial priorities then do too.
        networks: (online, target). The actor changes them in place.
        exploration: with the actor's place in the fleet, until `set_view` changes it.
        index: number of this actor, from 0; no other actor that writes to the same replay may have it.
        base_steps: agent steps of all actors before this actor started. It also seeds the random numbers, so that a
            restarted actor draws new ones.
    """

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
        self.config = config
        self._env, self.environments = env, make_environments(env, config.environments)
        self.online, self.target = (prepare_for_acting(n, config.precision) for n in networks)
        self._sink, self._weights = sink, weights
        self._exploration = exploration
        self.version = 0  # of the loaded weights
        self.agent_steps = 0  # of this actor since it started
        self._view: FleetView | None = None  # the newest one
        self._taken_view: FleetView | None = None  # the one by which the actor acts
        self._fleet_steps, self._own_steps = base_steps, 0  # the fleet's steps when the view was taken; its own then
        self._rng = np.random.default_rng([seed, index, 2, base_steps])  # new numbers after a restart or resume
        # the episode ids of each environment: room for 2^24 episodes, and unique among all actors
        first_episodes = [((index + 1) << 40) + (i << 24) for i in range(config.environments)]
        self._adder = Adder(
            returns,
            self.environments.spec,
            config.segment_items,
            first_episodes,
            (self.online, self.target),
            double,
        )
        self._finished: deque[EpisodeResult] = deque(maxlen=1_000)  # episodes since the last `take_episodes`
        self._unwritten: deque[Segment] = deque()  # complete, but not yet accepted by the sink
        self._q: Float32  # [N, A], the action values that chose the last actions
        self._epsilons: Float64  # [N], with which the last actions were chosen
        self._seeds = SeedSequence(seed, 1000 + index, base_steps)
        self._steps = rollout(self.environments, self._act, self._seeds.draw)
        self._batched_steps = 0
        self._fault: EnvironmentFault | None = None  # after which the environments have not been made anew yet
        self._failures, self._failures_in_row = 0, 0  # since the actor started; since an episode ended
        self._news: deque[str] = deque(maxlen=1)

    def set_view(self, view: FleetView) -> None:
        """Act by this view of the fleet, from the next step on. Safe from any thread."""
        self._view = view

    def _take_view(self) -> None:
        view = self._view
        if view is not None and view is not self._taken_view:
            self._taken_view = view
            self._exploration.move(view.offset, view.environments)
            self._fleet_steps, self._own_steps = view.agent_steps, self.agent_steps

    @property
    def fleet_steps(self) -> int:
        """Agent steps of all actors: those known from the last view, and an estimate of those made since.

        The estimate is this actor's own steps since then, times the number of living actors.
        """
        actors = self._exploration.total // self.environments.count
        return self._fleet_steps + (self.agent_steps - self._own_steps) * actors

    def _act(self, observation: Array) -> Int64:
        self._q = q_values(self.online, observation)
        self._epsilons = self._exploration.epsilons(self.fleet_steps)
        return epsilon_greedy(self._q, self._epsilons, self._rng)

    def step(self) -> int:
        """Step every environment once and write the segments that are complete. Load newer weights if it is time.

        Returns the number of agent steps: N, or 0 if the environments raised an error; the next step makes them anew.
        Blocks while replay may not accept a segment. Raises RunFault if replay has failed (`rl/ports.py`), or if the
        environments have failed MAX_FAILURES times since an episode ended.
        """
        if self._batched_steps % self.config.weights_period == 0:
            self.pull_weights()
        self._batched_steps += 1
        self._take_view()
        try:
            acted = self._step_environments()
        except EnvironmentFault as fault:
            self._environments_failed(fault)
            return 0
        if acted.ended.any():
            self._failures_in_row = 0
        self._unwritten.extend(self._adder.add(acted, self._q, self.version))
        self._finished.extend(result for _, result in acted.finished_episodes(self._epsilons))
        self.agent_steps += self.environments.count
        while self._unwritten:
            self._sink.write(self._unwritten[0])
            self._unwritten.popleft()
        return self.environments.count

    def _step_environments(self) -> ActorStep:
        """The next batched step, of new environments if the last step failed. Raises EnvironmentFault."""
        if (fault := self._fault) is not None:
            if self._failures_in_row > 1:
                time.sleep(FIRST_PAUSE * 2 ** (self._failures_in_row - 2))
            with environment_call("make"):
                self.environments = make_environments(self._env, self.config.environments)
            # Its first step begins new episodes, for which the adder drops the steps that it still has of the old ones.
            # The seeds go on, because those of the old episodes may be the cause.
            self._steps = rollout(self.environments, self._act, self._seeds.draw)
            self._news.append(f"its environment raised {fault.what} in {fault.call} and was made anew")
            self._fault = None
        return next(self._steps)

    def _environments_failed(self, fault: EnvironmentFault) -> None:
        """Close the environments, and count the failure. Raises RunFault if there are too many."""
        self._close_environments()
        self._fault = fault
        self._failures += 1
        self._failures_in_row += 1
        if self._failures_in_row >= MAX_FAILURES:
            raise RunFault(
                f"the environment {self._env.id} has failed {self._failures_in_row} times without finishing an episode, "
                f"last in {fault.call}: {fault.what}"
            ) from fault

    def _close_environments(self) -> None:
        with contextlib.suppress(Exception):  # what they still do is of no use to the run
            self.environments.close()

    def pull_weights(self) -> bool:
        """Load newer weights if there are any. Returns whether there were. Never blocks."""
        publication = self._weights.poll()
        if publication is None:
            return False
        load_weights(self.online, publication.weights)
        if publication.target_weights is not None:
            load_weights(self.target, publication.target_weights)
        self.version = publication.version
        return True

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Call `step` until ``should_stop()`` returns True. Raises RunFault as `step` does."""
        while not should_stop():
            self.step()

    @property
    def unwritten(self) -> int:
        """Number of complete segments that the sink has not accepted; above 0 only while `step` waits for it."""
        return len(self._unwritten)

    def take_episodes(self) -> list[EpisodeResult]:
        """Return the episodes that finished since the last call, at most the newest 1,000, and forget them."""
        episodes = []
        while self._finished:
            episodes.append(self._finished.popleft())
        return episodes

    def take_news(self) -> str:
        """A line about the last failure of the environments after which they were made anew; "" if it was taken before."""
        return self._news.pop() if self._news else ""

    def stats(self) -> Mapping[str, float]:
        """The metrics ``agent_steps``, ``weights_version`` and ``environment_failures``, by name."""
        return {
            "agent_steps": float(self.agent_steps),
            "weights_version": float(self.version),
            "environment_failures": float(self._failures),
        }

    def close(self) -> None:
        """Close the environments and the sink."""
        self._close_environments()
        self._sink.close()
