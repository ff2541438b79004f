"""The actor: it writes the steps that it plays, counts them, and loads newer weights."""

from __future__ import annotations

import numpy as np
import pytest

from actors.actor import FleetView
from qfleet.presets import cartpole
from rl.envs.config import EnvConfig
from rl.envs.make import make_environments
from rl.errors import RunFault
from rl.exploration import Exploration, ExplorationConfig, ladder
from rl.ports import Publication
from rl.stepping import SeedSequence
from tests.actors.players import make_actor


def test_an_actor_writes_each_step_of_each_episode_once_and_counts_them():
    actor, sink, _ = make_actor(environments=2)
    for _ in range(200):
        actor.step()
    actor.close()
    assert actor.agent_steps == 400
    episodes = actor.take_episodes()
    assert episodes
    assert actor.take_episodes() == []
    assert all(e.episode_return == e.length for e in episodes)  # CartPole pays 1 a step
    for episode_id in {s.episode_id for s in sink.segments}:
        own = [s for s in sink.segments if s.episode_id == episode_id]
        steps = np.concatenate([s.first_step + s.item_step.astype(int) for s in own])
        assert steps.tolist() == list(range(len(steps)))
    ended = [s for s in sink.segments if s.terminated[-1] or s.truncated[-1]]
    assert len(ended) == len(episodes)


def test_an_episode_result_has_the_epsilon_of_its_last_action():
    actor, _, _ = make_actor(environments=3)
    schedule, found = Exploration(cartpole().exploration, 0, 3, 3), 0
    for k in range(150):
        actor.step()
        episodes = actor.take_episodes()
        found += len(episodes)
        assert {e.epsilon for e in episodes} <= {schedule.epsilons(3 * k)[0]}
    actor.close()
    assert found > 10
    assert schedule.epsilons(0)[0] > schedule.epsilons(450)[0]


def test_the_schedule_goes_by_the_true_steps_of_the_fleet():
    """Three environments per actor: a view of four actors, then of two; own steps since it count for each of them."""
    actor, _, _ = make_actor(environments=3)
    assert actor.fleet_steps == 0
    actor.step()
    assert actor.fleet_steps == 3  # alone until it gets a view
    actor.set_view(FleetView(offset=6, environments=12, agent_steps=1_000))
    assert actor.fleet_steps == 3  # as of the next step
    actor.step()
    assert actor.fleet_steps == 1_000 + 3 * 4
    actor.step()
    assert actor.fleet_steps == 1_000 + 6 * 4
    actor.set_view(FleetView(offset=0, environments=6, agent_steps=1_010))
    actor.step()
    assert actor.fleet_steps == 1_010 + 3 * 2
    actor.close()


def test_an_actor_takes_the_place_that_a_view_gives_it():
    """Its three environments are all of the ladder, then the last three of six, as its episodes report."""
    actor, _, _ = make_actor(environments=3, exploration=ExplorationConfig())
    for places, total in (((0, 1, 2), 3), ((3, 4, 5), 6)):
        actor.set_view(FleetView(places[0], total, 0))
        for _ in range(100):
            actor.step()
        found = {e.epsilon for e in actor.take_episodes()}
        assert found
        assert found <= set(ladder(0.4, 7.0, total)[list(places)])
    actor.close()


def test_segments_that_the_sink_does_not_accept_are_counted():
    actor, sink, _ = make_actor(environments=3, segment_items=4, n_step=1)

    def fail(segment):
        raise RunFault("full")

    sink.write = fail
    assert actor.unwritten == 0
    with pytest.raises(RunFault):
        actor.run(lambda: False)
    assert actor.unwritten == 3  # one of each environment


@pytest.mark.parametrize("env_id", ["CartPole-v1", "PongNoFrameskip-v4"])
def test_the_frames_in_segments_are_those_of_the_game(env_id):
    """Two environments are played again with the same seeds and actions; every frame must equal the stored one."""
    actor, sink, _ = make_actor(environments=2, env_id=env_id, segment_items=8)
    for _ in range(30):
        actor.step()
    actor.close()
    seeds = SeedSequence(1, 1000).draw(2)
    again = make_environments(EnvConfig(id=env_id), 2)
    stack = again.spec.stack
    pick = (lambda x: x[:, -1]) if stack > 1 else (lambda x: x)
    played = []  # of each environment's first episode
    for i in range(2):
        own = [s for s in sink.segments if s.episode_id == (1 << 40) + (i << 24)]
        actions, frames = {}, {}
        for s in own:
            actions |= {s.first_step + k: int(a) for k, a in enumerate(s.actions)}
            frames |= {s.first_step + k: frame for k, frame in enumerate(s.frames)}
        played.append((actions, frames))
    observation = again.reset(seeds)
    both = min(len(actions) for actions, _ in played)
    assert both >= 8
    for t in range(both):
        for i, (_, frames) in enumerate(played):
            np.testing.assert_array_equal(frames[t], pick(observation)[i])
        observation = again.step(np.array([actions[t] for actions, _ in played])).observation
    again.close()


def test_an_actor_loads_newer_weights_and_target_weights():
    actor, sink, weights = make_actor()
    new = {k: np.full(v.shape, 0.5, np.float32) for k, v in actor.online.state_dict().items()}
    weights.publish(Publication(1, 10, new, 0, new))
    weights.publish(Publication(2, 20, new, 1, None))
    for _ in range(40):
        actor.step()
    actor.close()
    assert actor.version == 2
    assert float(next(actor.target.parameters()).mean()) == 0.5
    assert set(np.concatenate([s.versions for s in sink.segments]).tolist()) == {2}
