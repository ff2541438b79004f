"""The rows of the tables in docs/classic.md: a command, its seeds, and the figure that it must reach."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One row: a `qfleet classic` command, and the target of one of its figures."""

    name: str
    method: str
    env: str
    target: float | None  # for the mean over seeds; None: the row has no target
    seeds: int = 5
    flags: tuple[str, ...] = ()
    figure: str = "mean_return"  # key in the summary to compare with the target
    at_least: bool = True  # False: the figure must be at most the target
    table: str = "results"  # the table in docs/classic.md
    needs: tuple[str, tuple[str, ...]] | None = None  # a path, and the command that creates it

    @property
    def arguments(self) -> list[str]:
        """The arguments of `qfleet`, without the run directory."""
        env = ["--env", self.env] if self.env else []
        return ["classic", self.method, *env, *self.flags, "--seeds", *(str(s) for s in range(1, self.seeds + 1))]


LAKE, GRID, CLIFF, CARTPOLE = "FrozenLake-v1", "qfleet/GridWorld-v0", "CliffWalking-v1", "CartPole-v1"
BIAS, BLACKJACK, PENDULUM = "qfleet/MaximizationBias-v0", "Blackjack-v1", "Pendulum-v1"
BABYAI = "./runs/babyai-pickup-fullobs-v0"
SHORT = ("--steps", "20000")

ROWS = {
    row.name: row
    for row in (
        Row("value-iteration", "value-iteration", LAKE, 0.70),
        Row("q-iteration", "q-iteration", LAKE, 0.70),
        Row("mc-prediction", "mc-prediction", LAKE, 0.04, figure="max_error", at_least=False),
        Row("td0", "td0", LAKE, 0.04, figure="max_error", at_least=False),
        Row("monte-carlo-grid", "monte-carlo", GRID, 1.0, figure="shortest_paths"),
        Row("monte-carlo-blackjack", "monte-carlo", BLACKJACK, -0.06),
        Row("q-learning-frozenlake", "q-learning", LAKE, 0.70),
        Row("q-learning-taxi", "q-learning", "Taxi-v4", 7.5),
        Row("q-learning-cliff", "q-learning", CLIFF, -13),
        Row("q-learning-windy", "q-learning", "qfleet/WindyGridWorld-v0", -15),
        Row("double-q-cliff", "double-q-learning", CLIFF, -17),
        Row("sarsa-cliff", "sarsa", CLIFF, -17),
        Row("expected-sarsa-cliff", "expected-sarsa", CLIFF, -17),
        Row("n-step-q-cliff", "n-step-q", CLIFF, -17),
        Row("q-learning-bias", "q-learning", BIAS, -0.1, seeds=100),
        Row("double-q-bias", "double-q-learning", BIAS, -0.1, seeds=100),
        Row("n-step", "n-step", CLIFF, -17),
        Row("fitted-q", "fitted-q", CARTPOLE, 200),
        Row("neural-fitted-q", "neural-fitted-q", CARTPOLE, 400),
        Row("online-q-grid", "online-q", GRID, 0.99, figure="shortest_paths"),
        Row("online-q-cartpole", "online-q", CARTPOLE, None, table="parts"),
        Row("online-q-target", "online-q", CARTPOLE, None, 3, (*SHORT, "--target-period", "500"), table="parts"),
        Row("online-q-replay", "online-q", CARTPOLE, None, 3, (*SHORT, "--replay", "10000"), table="parts"),
        Row(
            "online-q-both",
            "online-q",
            CARTPOLE,
            None,
            3,
            ("--replay", "10000", "--target-period", "500"),
            table="parts",
        ),
        Row(
            "offline-q",
            "offline-q",
            "BabyAI-Pickup-v0",
            0.9,
            seeds=1,  # nothing is random
            flags=("--dataset", BABYAI),
            figure="training_return",
            needs=(BABYAI, ("classic", "make-dataset", "--to", BABYAI)),
        ),
        Row("dqn-cartpole", "dqn", CARTPOLE, 475),
        Row("dqn-flappybird", "dqn", "FlappyBird-v0", 20, seeds=3, figure="pipes"),
        Row("continuous-cem", "continuous", PENDULUM, -200, seeds=3, flags=("--maximizer", "cem")),
        Row("continuous-naf", "continuous", PENDULUM, -200, seeds=3, flags=("--maximizer", "naf")),
        Row("continuous-ddpg", "continuous", PENDULUM, -200, seeds=3, flags=("--maximizer", "ddpg")),
        *(
            Row(f"fitted-q-{name}", "fitted-q", CARTPOLE, None, 1, ("--regressor", name), table="regressors")
            for name in ("linear", "polynomial", "tree", "k-nearest", "forest", "boosting")
        ),
    )
}
