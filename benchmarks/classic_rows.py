"""The rows of the ladder's table: what is run, over which seeds, and what it must reach."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One row: a command without its directory, and its bar."""

    name: str
    method: str
    env: str
    bar: float  # of the mean over seeds
    seeds: int = 5
    flags: tuple[str, ...] = ()
    figure: str = "mean_return"
    at_least: bool = True  # else at most

    @property
    def words(self) -> list[str]:
        """The command's words."""
        env = ["--env", self.env] if self.env else []
        return ["classic", self.method, *env, *self.flags, "--seeds", *(str(s) for s in range(1, self.seeds + 1))]


ROWS = {
    row.name: row
    for row in (
        Row("q-learning-frozenlake", "q-learning", "FrozenLake-v1", 0.70),
        Row("q-learning-taxi", "q-learning", "Taxi-v4", 7.5),
        Row("q-learning-cliff", "q-learning", "CliffWalking-v1", -13),
        Row("double-q-cliff", "double-q-learning", "CliffWalking-v1", -13),
        Row("sarsa-cliff", "sarsa", "CliffWalking-v1", -20),
        Row("expected-sarsa-cliff", "expected-sarsa", "CliffWalking-v1", -17),
        Row("n-step-q-cliff", "n-step-q", "CliffWalking-v1", -20),
        Row("dqn-cartpole", "dqn", "CartPole-v1", 475),
    )
}
