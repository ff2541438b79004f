"""Where the parts of a run are placed, and whether there is room: from the description of a cluster, without Ray."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha224

import pytest

from qfleet.cluster.placement import (
    NODE_ID,
    Node,
    Placement,
    choose_learner_node,
    place,
)
from qfleet.cluster.room import actors_lack, count_room, describe_lack, learner_lack, shards_lack
from qfleet.placement import PlacementConfig
from qfleet.presets import cartpole
from rl.errors import BadInput

GB = 10**9


def node(address, cpus, free=None, gpus=0, memory=64 * GB, label=None, head=False):
    total = {"CPU": cpus, "memory": memory, **({"GPU": gpus} if gpus else {})}
    total |= {"node:__internal_head__": 1.0} if head else {}
    labels = {"qfleet": label} if label else {}
    return Node(
        sha224(address.encode()).hexdigest(), address, total, {**total, "CPU": cpus if free is None else free}, labels
    )


HEAD = node("10.0.0.1", 8, head=True)
GPU = node("10.0.0.2", 8, free=2, gpus=1)
BIG = node("10.0.0.3", 64, gpus=1)
LABELLED = node("10.0.0.4", 4, label="learner")
ACTORS = node("10.0.0.5", 16, label="actors")


@pytest.mark.parametrize(
    ("nodes", "wanted", "device", "chosen"),
    [
        ([HEAD, GPU, BIG, LABELLED], "auto", "auto", LABELLED),  # the label comes first
        ([HEAD, GPU, BIG, ACTORS], "auto", "auto", BIG),  # of the nodes with a GPU, the one with most free CPUs
        ([HEAD, GPU], "auto", "cuda", GPU),
        ([ACTORS, HEAD, GPU], "auto", "cpu", HEAD),
        ([ACTORS, HEAD], "auto", "auto", HEAD),
        ([HEAD, GPU, LABELLED], "10.0.0.2", "auto", GPU),
        ([HEAD, GPU, LABELLED], "10.0.0.1", "cpu", HEAD),
        ([replace(BIG, free={"CPU": 64}), GPU], "auto", "cuda", GPU),  # another run uses the only GPU of BIG
    ],
)
def test_the_node_of_the_learner(nodes, wanted, device, chosen):
    assert choose_learner_node(nodes, wanted, device, autoscaler=False) is chosen


@pytest.mark.parametrize(
    ("nodes", "wanted", "device", "message"),
    [
        (
            [HEAD, GPU],
            "10.0.0.9",
            "auto",
            "10.0.0.9 is no node of the cluster: write one of 10.0.0.1, 10.0.0.2, or auto",
        ),
        ([HEAD, ACTORS], "auto", "cuda", "no node of the cluster has a GPU, and `learner.device` is cuda: write cpu"),
        ([HEAD, GPU], "10.0.0.1", "cuda", "the learner's node 10.0.0.1 has no GPU"),
        ([HEAD, LABELLED], "auto", "cuda", "the learner's node 10.0.0.4 has no GPU"),
    ],
)
def test_a_learner_without_a_node_is_rejected(nodes, wanted, device, message):
    with pytest.raises(BadInput) as caught:
        choose_learner_node(nodes, wanted, device, autoscaler=False)
    assert message in str(caught.value)


def test_an_autoscaler_may_launch_the_node_with_the_gpu():
    assert choose_learner_node([HEAD, ACTORS], "auto", "cuda", autoscaler=True) is None
    assert choose_learner_node([HEAD, ACTORS], "auto", "auto", autoscaler=True) is HEAD


DEFAULT = PlacementConfig()


def config(actors=4, shards=2, threads=1, device="auto", capacity_bytes=0, placement=DEFAULT):
    base = cartpole()
    return replace(
        base,
        actors=replace(base.actors, count=actors),
        replay=replace(base.replay, shards=shards, capacity_bytes=capacity_bytes),
        learner=replace(base.learner, threads=threads, device=device),
        placement=placement,
    )


SPREAD_ANYWHERE = {"placement": PlacementConfig("auto", "spread", "anywhere")}


def node_ids(options):
    """(id of the node of these options of Ray, id of the node that they exclude), each None if there is none."""
    excluded = options.get("label_selector", {}).get(NODE_ID, "").removeprefix("!")
    return getattr(options.get("scheduling_strategy"), "node_id", None), excluded or None


def test_parts_beside_the_learner_and_elsewhere():
    placement = place(config(capacity_bytes=8 * GB), [HEAD, BIG, ACTORS], autoscaler=False)
    for options in (placement.learner_options(), placement.store_options(), placement.shard_options()):
        assert node_ids(options) == (BIG.id, None)
    for options in (placement.actor_options(), placement.evaluator_options()):
        assert node_ids(options) == (None, BIG.id)
        assert (options["num_cpus"], options["scheduling_strategy"]) == (1, "SPREAD")
    assert (placement.learner_options()["num_cpus"], placement.learner_options()["num_gpus"]) == (2, 1)
    assert placement.store_options()["num_cpus"] == 0
    assert placement.shard_options()["memory"] == 4 * GB


def test_spread_shards_and_actors_anywhere():
    placement = place(config(shards=2, **SPREAD_ANYWHERE), [HEAD, BIG], autoscaler=False)
    assert placement.shard_options() == {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
    assert node_ids(placement.actor_options()) == node_ids(placement.evaluator_options()) == (None, None)


def test_a_single_node_holds_the_actors_too_unless_an_autoscaler_can_launch_others():
    assert node_ids(place(config(), [HEAD], autoscaler=False).actor_options()) == (None, None)
    assert node_ids(place(config(), [HEAD], autoscaler=True).actor_options()) == (None, HEAD.id)


@pytest.mark.parametrize(
    ("nodes", "settings", "threads", "gpus"),
    [
        ([HEAD, ACTORS], {"threads": 0}, (8 - 2) // 2, 0),  # half of what two shards leave
        ([HEAD], {"threads": 0}, (8 - 2 - 2) // 2, 0),  # an actor and the evaluator are there, too
        ([node("a", 64, head=True), HEAD], {"threads": 0}, 8, 0),  # at most 8
        ([HEAD, BIG], {"threads": 0}, 1, 1),
        ([HEAD, BIG], {"threads": 3}, 3, 1),
        ([HEAD, BIG], {"device": "cpu", "placement": PlacementConfig("10.0.0.3")}, 1, 0),  # its GPU stays free
    ],
)
def test_threads_and_gpus_of_the_learner(nodes, settings, threads, gpus):
    needs = place(config(**settings), nodes, autoscaler=False).needs
    assert (needs.threads, needs.learner_cpus, needs.learner_gpus) == (threads, 2 * threads, gpus)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"threads": 4},
            "the learner and 2 replay shard(s) beside it need 10 CPU, and the learner's node 10.0.0.1 has 8 CPU in all "
            "(short of 2 CPU): write `placement.shards` spread, or fewer `replay.shards`, or fewer `learner.threads`, or "
            "another node as `placement.learner`",
        ),
        (
            {"threads": 5, "shards": 1},
            "the learner and 1 replay shard(s) beside it need 11 CPU, and the learner's node 10.0.0.1 has 8 CPU in all "
            "(short of 3 CPU): write fewer `learner.threads`, or another node as `placement.learner`",
        ),
        (
            {"capacity_bytes": 100 * GB},
            "the learner and 2 replay shard(s) beside it need 4 CPU, 100.0 GB of memory, and the learner's node 10.0.0.1 "
            "has 64.0 GB of memory in all (short of 36.0 GB of memory): write `placement.shards` spread, or a smaller "
            "`replay.capacity_bytes`, or another node as `placement.learner`",
        ),
    ],
)
def test_what_never_fits_on_the_learners_node_is_rejected(settings, message):
    with pytest.raises(BadInput) as caught:
        place(config(**settings), [HEAD, ACTORS], autoscaler=False)
    assert str(caught.value) == message
    if "`placement.shards` spread" in message:
        place(spread(settings), [HEAD, ACTORS], autoscaler=False)


def spread(settings):
    return config(**settings, placement=PlacementConfig(shards="spread"))


def lack(settings, nodes):
    placement = place(settings, nodes, autoscaler=False)
    return describe_lack(count_room(placement, nodes), placement, 180.0)


SMALL = node("10.0.0.6", 4)


@pytest.mark.parametrize(
    ("settings", "nodes", "line"),
    [
        (config(actors=3), [HEAD, SMALL], ""),  # 3 actors and the evaluator on SMALL
        (
            config(actors=8),
            [HEAD, SMALL],
            "the cluster has room for 3 of 8 actors now (short of 5 CPU); the others start when there is room",
        ),
        (
            config(actors=1),
            [HEAD, replace(SMALL, free={"CPU": 0})],
            "the cluster has room for 0 of 1 actors now (short of 1 CPU); it is short of 1 CPU for the evaluator; the run "
            "waits for it, up to 180 s (`ready_timeout`); actors are kept off the learner's node 10.0.0.1: "
            "`placement.actors` anywhere allows them there",
        ),
        (
            config(actors=1),
            [replace(HEAD, free={"CPU": 3, "memory": 64 * GB}), SMALL],
            "the cluster is short of 1 CPU on the node 10.0.0.1 for the learner and 2 replay shard(s) beside it; the run "
            "waits for it, up to 180 s (`ready_timeout`)",
        ),
        (
            spread({"shards": 12, "actors": 2}),  # the learner takes 2 of 12 CPUs
            [HEAD, SMALL],
            "the cluster has room for 0 of 2 actors now (short of 2 CPU); it is short of 2 CPU for 2 replay shard(s), and "
            "of 1 CPU for the evaluator; the run waits for it, up to 180 s (`ready_timeout`); actors are kept off the "
            "learner's node 10.0.0.1: `placement.actors` anywhere allows them there",
        ),
    ],
)
def test_what_is_short_is_named_with_what_is_waited_for(settings, nodes, line):
    assert lack(settings, nodes) == line


def test_spread_shards_take_the_nodes_with_most_free_cpus():
    cluster = [HEAD, SMALL]  # the learner takes 2 of 8 + 4 CPUs
    room = count_room(place(spread({"shards": 8, "actors": 4}), cluster, autoscaler=False), cluster)
    # shards: 5 on the head (6 -> 1), 3 on SMALL (4 -> 1); the evaluator takes the last CPU of SMALL
    assert (room.learner_lacks, room.shards, room.evaluator, room.actors) == ({}, 0, True, 0)


def test_a_node_that_must_be_launched_is_short_of_all_that_the_learner_needs():
    placement = place(config(device="cuda", actors=1), [HEAD, SMALL], autoscaler=True)
    assert placement.node is None
    line = describe_lack(count_room(placement, [HEAD, SMALL]), placement, 180.0)
    assert line.startswith("the cluster is short of 4 CPU, 1 GPU on a node that is not there yet for the learner")


def test_a_node_that_has_just_left_has_room_for_nothing():
    placement = place(config(actors=2), [HEAD, SMALL], autoscaler=False)
    room = count_room(placement, [SMALL])
    assert (room.learner_lacks, room.actors) == ({"CPU": 2 + 2}, 2)


ALONE = replace(HEAD, free={"CPU": 5})


@pytest.mark.parametrize(
    ("lack", "settings", "nodes", "line"),
    [
        (  # `ray up` with the head alone
            actors_lack,
            {},
            [ALONE],
            " (needed: 1 CPU each, not on the learner's node 10.0.0.1; free on the others: 0 CPU): add nodes, write "
            "`placement.actors` anywhere to allow actors there, or raise `ready_timeout`",
        ),
        (
            actors_lack,
            {"placement": PlacementConfig(actors="anywhere")},
            [ALONE, SMALL],
            " (needed: 1 CPU each; free in the cluster: 9 CPU): add nodes, reduce `replay.shards` or `learner.threads`, or "
            "raise `ready_timeout`",
        ),
        (
            shards_lack,
            {"capacity_bytes": 12 * GB},
            [replace(HEAD, free={"CPU": 1, "memory": 2 * GB}), SMALL],
            " (needed: 1 CPU, 6.0 GB of memory each on the node 10.0.0.1; free there: 1 CPU, 2.0 GB of memory): reduce "
            "`replay.shards`, write `placement.shards` spread, or raise `ready_timeout`",
        ),
        (
            shards_lack,
            {"placement": PlacementConfig(shards="spread")},
            [HEAD, SMALL],
            " (needed: 1 CPU each; free in the cluster: 12 CPU): add nodes, reduce `replay.shards`, or raise "
            "`ready_timeout`",
        ),
        (
            learner_lack,
            {},
            [replace(HEAD, free={"CPU": 1}), SMALL],
            " (needed: 2 CPU on the node 10.0.0.1; free there: 1 CPU): reduce `learner.threads`, write another node as "
            "`placement.learner`, or raise `ready_timeout`",
        ),
        (  # an autoscaler whose file has no nodes with a GPU
            learner_lack,
            {"device": "cuda"},
            [ALONE],
            " (needed: 2 CPU, 1 GPU on one node; free in the cluster: 5 CPU, 0 GPU): add a node with a GPU, write "
            "`learner.device` auto, or raise `ready_timeout`",
        ),
    ],
)
def test_what_is_not_ready_in_time_is_told_with_what_is_free_where_it_must_be(lack, settings, nodes, line):
    assert lack(place(config(**settings), nodes, autoscaler=True), nodes) == line


def test_a_local_run_leaves_the_placement_to_ray():
    placement = Placement(place(config(), [HEAD], False).needs, 1, 1)
    assert placement.learner_options() == {"num_cpus": 2, "num_gpus": 0}
    assert node_ids(placement.actor_options()) == (None, None)
