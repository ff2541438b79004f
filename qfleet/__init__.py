"""Qfleet: distributed deep Q-learning with many actors, a sharded replay service and one learner.

    import qfleet

    config = qfleet.preset("cartpole")
    summary = qfleet.train(config, run_dir="runs/cartpole", serial=True)  # serial=False: on a local Ray
    print(summary["solved"], summary["mean_return"])

    policy = qfleet.load_policy("runs/cartpole")
    actions = policy.act(observations)  # [N, *observation] -> [N]

`TrainConfig` holds every setting; each is also a flag of `qfleet train`. See docs/python.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qfleet.api import Policy, load_policy, train
    from qfleet.config import TrainConfig
    from qfleet.presets import preset

__all__ = ["Policy", "TrainConfig", "load_policy", "preset", "train"]

_MODULES = {"TrainConfig": "qfleet.config", "preset": "qfleet.presets"}


if not TYPE_CHECKING:  # a type checker would accept any name if it saw this __getattr__

    def __getattr__(name: str) -> Any:
        """Import an exported name at its first use (PEP 562), so that `import qfleet` does not import torch or Ray."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES.get(name, "qfleet.api")), name)


def __dir__() -> list[str]:
    return __all__
