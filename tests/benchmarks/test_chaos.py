"""`qfleet bench chaos`: which faults follow from a seed, when a run has recovered, and what counts as lost."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

import numpy as np
import pytest

from benchmarks.chaos import recovery_seconds
from benchmarks.chaos_audit import Audit, Death, Stored, compare, read_acknowledged, read_stored
from benchmarks.chaos_faults import Struck, flip_bytes, newest_checkpoint
from benchmarks.chaos_recovery import Bin, Floor, Sample, bins, find_regressions, median_rate, recovered_at
from benchmarks.chaos_run import RESTARTED, STARTED, Tail
from benchmarks.chaos_schedule import CLASSES, Fault, schedule
from learner.checkpoint import Checkpoint, CheckpointStore
from protos.codec import pack_segment
from qfleet.cluster.acknowledged import DIRECTORY, Acknowledged, log_here
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from replay.store.snapshots import Snapshots
from rl.errors import RunFault
from tests.conftest import SMALL, make_segment


def faults(seed, count):
    return list(itertools.islice(schedule(seed), count))


def test_faults_follow_from_the_seed():
    assert faults(3, 50) == faults(3, 50)
    assert faults(3, 50) != faults(4, 50)


@pytest.mark.parametrize("seed", range(5))
def test_a_round_of_faults_has_each_kind_killed_and_frozen_and_two_corruptions(seed):
    both = [(kind, how) for kind in CLASSES for how in ("kill", "freeze")]
    expected = Counter([*both, ("learner", "corrupt"), ("shard", "corrupt")])
    made = faults(seed, 28)
    for a_round in (made[:14], made[14:]):
        assert Counter((f.kind, f.how) for f in a_round) == expected
        assert Counter(f.kind for f in a_round[:6]) == Counter(list(CLASSES))  # evenly, also if the time is short
    assert all(0 <= f.choice < 1 <= f.pause for f in made)


def samples(*updates, steps=None, versions=None, start=100.0):
    """A sample each second, from the time ``start`` on."""
    steps, versions = steps or range(len(updates)), versions or range(len(updates))
    return [Sample(start + i, *counts) for i, counts in enumerate(zip(updates, steps, versions, strict=True))]


def test_bins_share_the_updates_between_two_samples_evenly():
    #        100  101  102  103
    taken = samples(0, 100, 160, 200)
    assert bins(taken, 100.0) == [Bin(101, 100), Bin(102, 60), Bin(103, 40)]
    assert bins(taken, 100.5) == [Bin(101.5, 50 + 30), Bin(102.5, 30 + 20)]  # the last half second is no whole bin
    assert bins(taken, 102.5) == []
    assert median_rate(taken, 100.0) == 60


def test_no_update_is_made_while_the_counter_falls():
    assert bins(samples(500, 300, 310), 100.0) == [Bin(101, 0), Bin(102, 10)]


def test_a_run_has_recovered_when_the_part_works_and_the_updates_are_fast_again():
    #        100  101  102 103 104 105  106
    taken = samples(0, 100, 200, 210, 220, 310, 410)  # bins: 100, 100, 10, 10, 90, 100
    assert recovered_at(taken, 100.0, works_at=100.4, fault_free=100) == 101  # it was never slow
    assert recovered_at(taken, 100.0, works_at=102.5, fault_free=100) == 105  # 90 are enough
    assert recovered_at(taken, 100.0, works_at=105.5, fault_free=100) == 106
    assert recovered_at(taken, 100.0, works_at=102.5, fault_free=120) is None
    assert recovered_at(taken, 100.0, works_at=106.5, fault_free=100) is None  # no bin has ended since


def test_updates_may_fall_to_the_checkpoint_once_after_each_fault_of_the_learner():
    #        100  101  102 103  104
    taken = samples(100, 180, 150, 250, 210)
    assert find_regressions(taken, [Floor(101.5, 150), Floor(103.5, 210)]) == ([], 30 + 40)
    assert find_regressions(taken, [Floor(101.5, 160), Floor(103.5, 210)]) == (
        ["updates fell from 180 to 150, below the checkpoint of 160"],
        70,
    )
    assert find_regressions(taken, [Floor(101.5, 150)]) == (
        ["updates fell from 250 to 210, without a fault of the learner"],
        70,
    )


def test_agent_steps_and_the_version_of_the_weights_never_fall():
    taken = samples(0, 1, 2, steps=[5, 1_000, 999], versions=[7, 6, 6])
    lines, lost = find_regressions(taken, [Floor(100.5, 0)])
    assert lines == ["weights_version fell from 7 to 6", "agent_steps fell from 1,000 to 999"]
    assert lost == 0


def ack(time, first, items=4, address="h:1", origin="a", episode=1):
    return Acknowledged(time, origin, episode, first, items, address, version=3)


def test_the_audit_counts_what_is_lost_what_a_death_explains_and_what_is_stored_twice():
    acknowledged = [
        ack(10, 0),  # stored
        ack(20, 4),  # not stored; the shard died later, and restored a snapshot from before
        ack(20, 4, address="h:2"),  # the same of a shard that did not die: lost
        ack(14, 8),  # not stored, although the snapshot is newer: lost
        ack(26, 12),  # not stored, acknowledged by the next process: lost
        ack(30, 16, items=5),  # two of five are stored
        ack(40, 0, origin="b"),  # another writer's item of the same episode and step
    ]
    stored = [Stored("a", 1, 0, 4), Stored("a", 1, 16, 2), Stored("a", 1, 1, 2), Stored("a", 1, 1, 2)]
    found = compare(acknowledged, stored, [Death("h:1", restored=15.0, until=25.0)])
    lost = 4 + 4 + 4 + 3 + 4
    assert found == Audit(
        acknowledged=29, stored=10, lost=lost, lost_within_snapshot_bound=4, duplicates=2 * 2
    )  # steps 1 and 2 are stored three times


def test_a_line_of_the_log_of_acknowledgements_is_read_back_if_it_is_whole(tmp_path, monkeypatch, rng):
    monkeypatch.delenv(DIRECTORY, raising=False)
    assert log_here(0) is None
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    log = log_here(2)
    log("origin", pack_segment(make_segment(rng, items=4, episode=9, first_step=6)), "127.0.0.1:5")
    [line] = read_acknowledged(tmp_path)
    assert line[1:] == ("origin", 9, 6, 4, "127.0.0.1:5", 0)
    [file] = tmp_path.iterdir()
    with file.open("a") as opened:
        opened.write(str(ack(5.0, 1))[:-3])  # its writer was killed
    assert read_acknowledged(tmp_path) == [line]


@pytest.mark.parametrize(("capacity", "kept"), [(100, True), (8, False)])
def test_what_is_stored_is_read_from_the_last_snapshots(tmp_path, rng, capacity, kept):
    async def save():
        for index in range(2):
            shard = Shard(capacity, SMALL, SelectorConfig(), limited=False)
            snapshots = Snapshots(tmp_path / "replay" / f"shard-{index}", shard)
            for sequence in (1, 2, 3):
                segment = pack_segment(make_segment(rng, items=4, episode=index, first_step=4 * sequence))
                shard.insert(f"writer-{index}", sequence, segment)
            await snapshots.finish()

    asyncio.run(save())
    if kept:
        assert read_stored(tmp_path) == [Stored(f"writer-{k}", k, 4 * i, 4) for k in (0, 1) for i in (1, 2, 3)]
    else:
        with pytest.raises(RunFault, match="has evicted 4 items: the audit needs a larger capacity"):
            read_stored(tmp_path)


def test_a_damaged_checkpoint_is_not_loaded(tmp_path):
    assert newest_checkpoint(tmp_path) == 0
    store = CheckpointStore(str(tmp_path))
    for updates in (100, 200):
        store.save(updates, Checkpoint({"online": {"w": np.zeros(1000, np.float32)}}, {"updates": updates}))
    assert (newest_checkpoint(tmp_path), newest_checkpoint(tmp_path, skip=True)) == (200, 100)
    flip_bytes(tmp_path / f"{200:012d}" / "online.safetensors")
    assert store.load_newest().state["updates"] == 100


def test_only_whole_new_lines_of_a_file_are_read(tmp_path):
    file = tmp_path / "log"
    tail = Tail(file)
    assert tail.lines() == []
    file.write_text("one\ntwo\nthr")
    assert tail.lines() == ["one", "two"]
    with file.open("a") as opened:
        opened.write("ee\n")
    assert (tail.lines(), tail.lines()) == (["three"], [])


def test_the_addresses_are_found_in_the_lines_of_a_run():
    line = (
        "3 actor(s) x 8 environments, 2 replay shard(s) at 127.0.0.1:33353, 127.0.0.1:38385, learner on cpu in float32; "
        "Ray at 192.0.2.2:40747, dashboard http://127.0.0.1:8265"
    )
    assert STARTED.search(line).groups() == ("127.0.0.1:33353, 127.0.0.1:38385, ", "192.0.2.2:40747")
    line = "replay shard-1 restarted at 127.0.0.1:38385: restored 5 transitions from a snapshot 3 seconds old"
    assert RESTARTED.search(line).groups() == ("1", "127.0.0.1:38385")


def test_the_seconds_to_recovery_leave_out_faults_without_one():
    def struck(kind, how, seconds):
        recovered = None if seconds is None else 50.0 + seconds
        return Struck(Fault(kind, how, 0.0, 1.0), kind, at=50.0, before=[], recovered_at=recovered)

    found = recovery_seconds(
        [struck("actor", "kill", s) for s in (4.0, 6.0, 11.0, None)] + [struck("board", "kill", None)]
    )
    assert found["actor"] == {"kill": {"median": 6.0, "worst": 11.0}, "freeze": None}
    assert found["board"] == {"kill": None, "freeze": None}
    assert found["shard"] == {"kill": None, "freeze": None, "corrupt": None}
