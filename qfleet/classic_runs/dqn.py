"""The last of the classic methods: the distributed learner in serial mode."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from classic.interface import Learned, Method, Monitor, Setting
from qfleet.api import load_policy, train
from qfleet.config import check_config
from qfleet.presets import PRESETS, preset
from rl.bounds import at_least
from rl.envs.config import EnvConfig
from rl.errors import BadInput, BadSetting


@dataclass(frozen=True)
class DqnConfig:
    """DQN with every part in one process, with a preset's settings."""

    preset: str = "generic"
    """Preset whose settings it takes."""
    max_steps: int = 0
    """Agent steps after which the run ends, solved or not; 0: as the preset says."""

    def __post_init__(self) -> None:
        preset(self.preset)
        at_least(self, 0, "max_steps", unit="agent steps", zero="the preset's")


def check_preset(config: DqnConfig, env: EnvConfig) -> None:
    """Raise BadInput unless the preset's network accepts the environment's observations."""
    base = preset(config.preset)
    try:
        check_config(replace(base, env=env))
    except BadInput as error:
        said = f"{config.preset} does not suit {env.id}: write another preset, or the environment {base.env.id}"
        raise BadSetting(DqnConfig, "preset", said) from error


def dqn(config: DqnConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Double DQN with prioritized n-step replay (Mnih et al. 2015, van Hasselt et al. 2016), in serial mode.

    y = R^(n) + gamma^n Q(s', argmax_a' Q(s', a'; w); w-), w- the target network's weights. Returns the run's best
    policy (q [N, A]). Raises what `train` raises, and SystemExit after a signal.
    """
    monitor.hand_over()
    base = preset(config.preset)
    settings = replace(base, env=env, seed=seed, max_steps=config.max_steps or base.max_steps)
    with contextlib.ExitStack() as stack:
        folder = monitor.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)  # left by a seed that was stopped, which begins anew
        summary = train(settings, run_dir=run, serial=True, on_episode=monitor.episode)
        if summary["interrupted_by"]:
            raise SystemExit(128 + summary["interrupted_by"])
        policy = load_policy(run)
    figures = {name: summary[name] for name in ("solved", "agent_steps", "updates")}
    return Learned(lambda observations: policy.act(observations), policy.values, {}, figures)


def _setting(name: str, episodes: int) -> Setting:
    return Setting(PRESETS[name]().env, DqnConfig(name), episodes)


METHODS = {
    "dqn": Method(
        "the distributed learner in one process",
        dqn,
        "network",
        (_setting("cartpole", 100), _setting("flappybird", 20)),
        check_preset,
        elsewhere=DqnConfig(),
    ),
}
