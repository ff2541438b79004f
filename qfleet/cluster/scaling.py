"""The requests of `qfleet scale`, as the driver of a run handles them."""

from __future__ import annotations

from typing import Any

from qfleet.cluster.topology import Topology
from qfleet.config import to_yaml, with_actors, with_shards
from qfleet.run.directory import CONFIG, SCALE, ScaleRequest
from qfleet.run.run import Run
from rl.errors import BadInput


class Scaling:
    """Takes the requests of `qfleet scale`, from the run's directory or its board, and advances the run towards them.

    Its state is in ``run.scaling``, which is a part of status.json.
    """

    def __init__(self, run: Run, topology: Topology) -> None:
        self._run, self._topology = run, topology
        self._taken: set[str] = set()  # numbers of the requests that were granted or rejected
        self._shards_request: ScaleRequest | None = None  # the last one for a number of shards
        self._config_waits = False  # whether config.yaml could not be written yet

    def advance(self, board_request: ScaleRequest | None) -> None:
        """Advance by one step, without waiting. ``board_request``: the last request on the board, if any."""
        run, topology = self._run, self._topology
        changes: dict[str, Any] = {}
        news: list[str] = []
        for request in (run.dir.read_json(SCALE), board_request):
            if request and request["number"] not in self._taken:
                self._taken.add(request["number"])
                news.append(self._take(request))
                changes |= {"scale_taken": request["number"], "scale_request": request, "scale_news": news[-1]}
        for line in topology.fleet.advance(run.stats.add_actor_report, topology.may_start_actors):
            run.progress.note(line)
        shards_news = topology.shards.advance(topology.board.handle, topology.learner.handle, topology.fleet)
        shards = len(topology.shards.addresses)
        if shards_news:
            changes |= {"scale_request": self._shards_request, "scale_news": shards_news}
            news.append(shards_news)
            run.config = with_shards(run.config, shards)
        for line in filter(None, news):
            run.progress.note(line)
        if any(news) or self._config_waits:
            self._config_waits = True
            with run.writes.attempt(CONFIG):
                run.dir.write(CONFIG, to_yaml(run.config))  # the next checkpoint holds the configuration, too
                self._config_waits = False
        if not topology.shards.is_changing:  # `qfleet scale` waits until a change is complete
            changes["shards"] = shards
        run.set_fleet(topology.fleet.living, topology.fleet.wanted, topology.fleet.environments)
        nothing = {"scale_taken": None, "scale_request": None, "scale_news": "", "shards": shards}
        run.scaling = {**nothing, **run.scaling, **changes}

    def _take(self, request: ScaleRequest) -> str:
        """Grant or reject a new request as a whole; returns a message for the user, or ""."""
        run, fleet = self._run, self._topology.fleet
        shards, actors = request.get("shards"), request.get("actors")
        try:
            config = run.config if actors is None else with_actors(run.config, actors)
            if shards is not None:
                with_shards(config, shards)
        except BadInput as error:
            return f"warning: the run keeps {fleet.wanted} actor(s) and its replay shards: {error}"
        if shards is not None:
            self._shards_request = request
            self._topology.shards.scale(shards)
        if actors is None or actors == fleet.wanted:
            return ""
        before, run.config = fleet.wanted, config
        fleet.scale(actors)
        return f"the run wants {actors} actor(s), after {before}"
