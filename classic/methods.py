"""All classic methods, by their names on the command line (`dqn` is added by `qfleet.cli.classic`)."""

from __future__ import annotations

from classic import (
    continuous,
    fitted_q,
    monte_carlo,
    n_step,
    neural_fitted_q,
    offline_q,
    online_q,
    prediction,
    q_learning,
    value_iteration,
)
from classic.interface import Method

METHODS: dict[str, Method] = {
    **value_iteration.METHODS,
    **prediction.METHODS,
    **monte_carlo.METHODS,
    **q_learning.METHODS,
    **n_step.METHODS,
    **fitted_q.METHODS,
    **neural_fitted_q.METHODS,
    **online_q.METHODS,
    **offline_q.METHODS,
    **continuous.METHODS,
}
