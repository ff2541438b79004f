"""The steps of the cluster test, in their order: what a user types on a laptop, and what then must be true."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster.cluster_file import FILE, write_cluster_file
from tests.cluster.pong import measure
from tests.cluster.scenario import RUN, Figures, Scenario, Step

ACTORS, SHARDS = 6, 2
GOAL = 475.0  # of CartPole's 500
CUT_SECONDS = 30.0
NOTICED_SECONDS = 12.0  # by then a run has noticed that an actor does not answer
DOWN_SECONDS = 20.0  # in which Ray ends on the workers once its head is gone
ON_CLUSTER = f"{RUN} --cluster {FILE}"
TRAIN = (
    f"train cartpole --actors.count {ACTORS} --replay.shards {SHARDS} --evaluation.no-stop-when-solved "
    "--max-steps 50000000"
)
FETCHED = ("config.yaml", "metrics.csv", "eval.csv", "best")

STEPS: dict[str, Step] = {}  # by name, in the order of the scenario
EXTRA: dict[str, Step] = {}  # only with --only


def step(seconds: float, steps: dict[str, Step] = STEPS) -> Callable[[Callable[[Scenario], Figures | None]], None]:
    """Register a function as a step that has ``seconds`` on a quiet machine with 2 cores."""

    def register(run: Callable[[Scenario], Figures | None]) -> None:
        name = run.__name__.replace("_", "-")
        steps[name] = Step(name, run, seconds)

    return register


@step(120)
def ray_up(s: Scenario) -> None:
    """`ray up` of a deploy/local.yaml into which a user filled addresses and key."""
    write_cluster_file(s.hosts)
    if "auth_token" in s.hosts.laptop.path(f"~/qfleet/{FILE}").read_text():
        s.type("ray get-auth-token --generate")
    s.type(f"ray up -y {FILE}")


@step(150)
def nodes(s: Scenario) -> None:
    """Head and all workers are alive, and each runs its own copy of the checkout."""
    cluster = s.hosts.all[1:]
    names = sorted(host.name for host in cluster)

    def all_alive() -> bool:
        alive = sorted(s.nodes().values())
        assert alive == names, f"alive are {alive}"
        return True

    s.until(f"{', '.join(names)} are alive", all_alive)
    # If a link is cut before the set-up has ended, Ray's autoscaler regards it as failed, and never tries it again.
    s.until("the autoscaler has set up all workers", lambda: "(no pending nodes)" in s.ray_status())
    for host in cluster:
        file = host.run(".venv/bin/python -c 'import qfleet; print(qfleet.__file__)'", s.left()).output.strip()
        assert file == "/root/qfleet/qfleet/__init__.py", f"{host.name} imports {file}"


@step(180)
def submit(s: Scenario) -> Figures:
    """`qfleet submit` starts the run, and it makes updates."""
    s.type(f"qfleet submit --cluster {FILE} --name {RUN} --detach -- {TRAIN}")
    return {"updates": s.until("the run makes updates", lambda: s.status()["updates"])}


@step(180)
def placement(s: Scenario) -> Figures:
    """Learner, board, weights and shards are on the head, actors on all workers, and no actor on the head."""
    workers = {host.name for host in s.hosts.workers}

    def placed() -> dict[str, list[str]]:
        places = s.places()
        assert len(places.get("ActorWorker", [])) == ACTORS, f"places: {places}"
        assert set(places["ActorWorker"]) == workers, f"places: {places}"
        for part, count in {"LearnerWorker": 1, "RunBoard": 1, "WeightStore": 1, "ShardWorker": SHARDS}.items():
            assert places.get(part) == ["head"] * count, f"places: {places}"
        return places

    return dict(s.until("every part is where it belongs", placed))


@step(240)
def scale_down(s: Scenario) -> Figures:
    """`qfleet scale --actors 3`: three actors live, and training goes on."""
    return _scale(s, ACTORS // 2)


@step(240)
def scale_up(s: Scenario) -> Figures:
    """`qfleet scale --actors 6`: six actors live, on all workers again."""
    figures = _scale(s, ACTORS)
    assert set(s.places()["ActorWorker"]) == {host.name for host in s.hosts.workers}
    return figures


@step(300)
def link_cut(s: Scenario) -> Figures:
    """The network cable of a worker is out for 30 s: the others train on, and afterwards all do."""
    s.hosts.cut(s.hosts.workers[0])
    time.sleep(NOTICED_SECONDS)
    before = s.status()
    time.sleep(CUT_SECONDS - NOTICED_SECONDS)
    after = s.status()
    s.hosts.mend(s.hosts.workers[0])
    mended = time.monotonic()
    meanwhile = {name: after[name] - before[name] for name in ("agent_steps", "updates")}
    assert min(meanwhile.values()) > 0, f"while one of three workers was cut off, there were {meanwhile}"
    _await_actors(s, ACTORS)
    return {**meanwhile, "seconds_after_mending": round(time.monotonic() - mended, 1)}


@step(300)
def worker_killed(s: Scenario) -> Figures:
    """A worker loses its power: its actors start again on the other workers, and training goes on."""
    lost = s.hosts.workers[1]
    s.hosts.kill(lost)
    others = {host.name for host in s.hosts.workers} - {lost.name}

    def moved() -> dict[str, list[str]]:
        places = s.places()
        assert len(places.get("ActorWorker", [])) == ACTORS, f"places: {places}"
        assert set(places["ActorWorker"]) <= others, f"places: {places}"
        return places

    places = s.until(f"{ACTORS} actors are on {' and '.join(sorted(others))}", moved)
    _await_actors(s, ACTORS)
    return {"ActorWorker": places["ActorWorker"]}


@step(240)
def stop(s: Scenario) -> Figures:
    """`qfleet stop` ends the run, with a last checkpoint."""
    s.type(f"qfleet stop {ON_CLUSTER}")
    newest = _newest_checkpoint(s)
    assert newest, "the stopped run has no checkpoint"
    places = s.places()
    assert "LearnerWorker" not in places, f"after the stop there are still {places}"
    return {"checkpoint": newest.name}


@step(300)
def resume(s: Scenario) -> Figures:
    """`qfleet submit -- train --resume` continues the run from that checkpoint."""
    before = _newest_checkpoint(s)
    assert before, "there is no checkpoint to resume from"
    updates = int(before.name.split("-")[0])
    s.type(f"qfleet submit --cluster {FILE} --detach -- train --resume {RUN}")
    grown = lambda: (s.status()["time"] > time.time() - 10) and s.status()["updates"] > updates  # noqa: E731
    s.until(f"the run makes more than {updates} updates", grown)
    _await_actors(s, ACTORS)
    return {"updates_before": updates, "updates_after": s.status()["updates"]}


@step(600)
def evaluation(s: Scenario) -> Figures:
    """An evaluation over 30 episodes that begins now or later reaches 475."""
    now = s.status()["wall_seconds"]

    def reached() -> dict[str, str]:
        rows = s.evaluations()
        whole = [r for r in rows if int(r["episodes"]) == 30 and float(r["wall_seconds"]) - float(r["seconds"]) >= now]
        good = [r for r in whole if float(r["mean_return"]) >= GOAL]
        assert good, f"{len(whole)} evaluations over 30 episodes; last row: {rows[-1:]}, status: {s.status()}"
        return good[0]

    row = s.until(f"an evaluation over 30 episodes reaches {GOAL:g}", reached, period=5.0)
    return {key: row[key] for key in ("mean_return", "agent_steps", "updates", "kind")}


@step(240)
def status(s: Scenario) -> Figures:
    """`qfleet status` and `qfleet logs` show the run from the laptop."""
    shown = s.type(f"qfleet status {ON_CLUSTER}").output
    assert "steps" in shown, shown
    logs = s.type(f"qfleet logs {ON_CLUSTER} --no-follow").output
    assert "steps" in logs, logs
    return {"status": shown.strip().splitlines()[-1]}


@step(240)
def fetch(s: Scenario) -> Figures:
    """`qfleet fetch` brings curves, configuration and best weights to the laptop, and they play there."""
    s.type(f"qfleet fetch {ON_CLUSTER}")
    folder = s.hosts.laptop.path(f"~/qfleet/runs/{RUN}")
    missing = [name for name in FETCHED if not (folder / name).exists()]
    assert not missing, f"not fetched: {missing}"
    played = s.type(f"qfleet eval runs/{RUN} --episodes 30").output.strip().splitlines()
    return {"eval": played[-1]}


@step(120)
def ray_down(s: Scenario) -> None:
    """`ray down`, after which no raylet lives on any host."""
    s.type(f"ray down -y {FILE}")
    s.start_clock(DOWN_SECONDS)

    def none_left() -> bool:
        left = [host.name for host in s.hosts.all if host.processes("raylet")]
        assert not left, f"raylets on {', '.join(left)}"
        return True

    s.until("no raylet lives on any host", none_left)


@step(60, EXTRA)
def sync(s: Scenario) -> None:
    """Bring ~/qfleet of all hosts up to date with this checkout."""
    for host in s.hosts.all:
        s.hosts.copy_checkout(host)
    write_cluster_file(s.hosts)


@step(4500, EXTRA)
def pong(s: Scenario) -> Figures:
    """Measure Pong with 1 to 8 actors, without the limiter, and with spread shards (an hour of a quiet machine)."""
    return measure(s)


def _scale(s: Scenario, count: int) -> Figures:
    s.type(f"qfleet scale {ON_CLUSTER} --actors {count}")

    def scaled() -> list[str]:
        actors = s.places().get("ActorWorker", [])
        assert len(actors) == count, f"{len(actors)} actors, on {actors}"
        return actors

    actors = s.until(f"{count} actors live", scaled)
    _await_actors(s, count)
    return {"ActorWorker": actors}


def _await_actors(s: Scenario, count: int) -> None:
    """Wait until the run counts ``count`` living actors, and then until it trains on."""

    def counted() -> bool:
        now = s.status()
        assert now["actors"] == count, f"{now['actors']} of {now['actors_wanted']} actors"
        return True

    s.until(f"the run counts {count} actors", counted)
    steps = s.status()["agent_steps"]
    s.until("the run trains on", lambda: s.status()["agent_steps"] > steps + 100)


def _newest_checkpoint(s: Scenario) -> Path | None:
    """The newest whole checkpoint of the run on the head."""
    folder = s.hosts.head.path(f"~/qfleet/runs/{RUN}/checkpoints")
    return max((manifest.parent for manifest in folder.glob("*/MANIFEST.json")), default=None)
