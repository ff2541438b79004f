"""Which episodes an evaluation counts: a fixed share an environment, cut at the limit, none when it is stopped."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from rl.errors import BadInput
from rl.evaluation import EvaluationConfig, EvaluationResult, cut_episodes_note, evaluate
from rl.types import EpisodeResult, ObservationSpec, Step


class Clocks:
    """Environments whose episodes last ``lengths`` [N] steps; the reward of environment i is 10^i, and action 1 adds 0.5."""

    actions, spec = 2, ObservationSpec((1,), "float32")

    def __init__(self, lengths, ends="terminated"):
        self.lengths, self.count, self._ends = np.asarray(lengths), len(lengths), ends
        self._at = np.zeros(self.count, int)
        self.seeds = []

    def reset(self, seeds):
        return self.restart(np.ones(self.count, bool), seeds)

    def restart(self, mask, seeds):
        assert len(seeds) == mask.sum()
        self.seeds += seeds.tolist()
        self._at[mask] = 0
        return self._at[:, None].astype(np.float32)

    def step(self, actions):
        assert (self._at < self.lengths).all(), "a step after the end"
        self._at += 1
        over, no = self._at >= self.lengths, np.zeros(self.count, bool)
        ends = (over, no) if self._ends == "terminated" else (no, over)
        reward = 10.0 ** np.arange(self.count) + 0.5 * np.asarray(actions)
        return Step(self._at[:, None].astype(np.float32), reward.astype(np.float32), *ends, no)

    def close(self):
        pass


def zeros(observations):
    return np.zeros(len(observations), np.int64)


def test_short_episodes_are_not_counted_more_often():
    """7 episodes over 3 environments: 3, 2 and 2 of them, though the last one ends twelve in the time."""
    result = evaluate(zeros, Clocks([12, 6, 1]), 7, 0.0, seed=1)
    assert Counter(e.episode_return for e in result.episodes) == {12 * 1.0: 3, 6 * 10.0: 2, 1 * 100.0: 2}
    assert result.mean_return == pytest.approx((3 * 12 + 2 * 60 + 2 * 100) / 7)
    assert (result.worst_return, result.cut) == (12.0, 0)
    assert result.std_return == pytest.approx(np.std([12] * 3 + [60] * 2 + [100] * 2))


def test_fewer_episodes_than_environments():
    result = evaluate(zeros, Clocks([2, 3, 4]), 2, 0.0, seed=1)
    assert [e.length for e in result.episodes] == [2, 3]


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_a_truncated_episode_is_told_from_a_terminated_one(ends):
    (episode,) = evaluate(zeros, Clocks([3], ends), 1, 0.0, seed=1).episodes
    assert episode == EpisodeResult(3.0, 3, 0.0, ends == "truncated")


def test_an_episode_is_cut_at_the_limit_with_its_return_so_far():
    result = evaluate(zeros, Clocks([5, 100]), 4, 0.0, seed=1, max_steps=7)
    assert sorted((e.length, e.episode_return, e.truncated) for e in result.episodes) == [
        (5, 5.0, False),
        (5, 5.0, False),
        (7, 70.0, True),
        (7, 70.0, True),
    ]
    assert result.cut == 2
    assert cut_episodes_note(result, 7).startswith("; 2 of 4 episodes cut at 7 steps")
    assert cut_episodes_note(EvaluationResult(result.episodes), 7) == ""


def test_epsilon_of_the_actions_are_uniformly_random():
    steps = 20_000
    (episode,) = evaluate(zeros, Clocks([steps]), 1, 0.4, seed=1).episodes
    assert (episode.episode_return - steps) / 0.5 / steps == pytest.approx(0.4 / 2, abs=0.02)
    assert episode.epsilon == 0.4


def test_one_seed_one_result_and_no_episode_seed_twice():
    first, again, other = Clocks([3, 2]), Clocks([3, 2]), Clocks([3, 2])
    results = [evaluate(zeros, env, 6, 0.5, seed) for env, seed in ((first, 4), (again, 4), (other, 5))]
    assert results[0].episodes == results[1].episodes != results[2].episodes
    assert first.seeds == again.seeds != other.seeds
    assert len(set(first.seeds)) == len(first.seeds)


def test_a_stopped_evaluation_returns_what_has_ended():
    asked = iter([False] * 5 + [True])
    result = evaluate(zeros, Clocks([2, 4]), 100, 0.0, seed=1, should_stop=lambda: next(asked))
    assert sorted(e.length for e in result.episodes) == [2, 2, 4]  # after 5 steps


@pytest.mark.parametrize("bad", [{"episodes": 0}, {"epsilon": 1.1}, {"period": -1}, {"max_episode_steps": 0}])
def test_bad_settings_name_their_field(bad):
    with pytest.raises(BadInput, match=next(iter(bad))):
        EvaluationConfig(**bad)
