"""Qfleet: distributed deep Q-learning. Many actors play, a sharded replay stores, one learner learns.

    import qfleet

    config = qfleet.preset("cartpole")
    summary = qfleet.train(config, run_dir="runs/cartpole", serial=True)  # without serial: on a local Ray
    print(summary["solved"], summary["mean_return"])

    policy = qfleet.load_policy("runs/cartpole")
    actions = policy.act(observations)  # [N, *observation] -> [N]

`TrainConfig` holds every setting, each of which is a flag of `qfleet train` too. docs/python.md says more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qfleet.api import Policy, load_policy, train
    from qfleet.config import TrainConfig
    from qfleet.presets import preset

__all__ = ["Policy", "TrainConfig", "load_policy", "preset", "train"]

_HOMES = {"TrainConfig": "qfleet.config", "preset": "qfleet.presets"}


if not TYPE_CHECKING:  # to a type checker a name that is not there is a mistake

    def __getattr__(name: str) -> Any:
        """Imported when asked for (PEP 562): whoever needs one of these does not wait for the rest, nor for Ray."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES.get(name, "qfleet.api")), name)


def __dir__() -> list[str]:
    return __all__
