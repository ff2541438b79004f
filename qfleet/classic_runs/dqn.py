"""DQN as the last of the classic methods: the distributed learner in serial mode."""

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
    """DQN with the settings of a preset, in serial mode: actors, replay and learner in one process."""

    preset: str = "generic"
    """Preset with the settings of the run, such as cartpole."""
    max_steps: int = 0
    """Agent steps after which the run ends, solved or not; 0: as in the preset."""

    def __post_init__(self) -> None:
        preset(self.preset)
        at_least(self, 0, "max_steps", unit="agent steps", zero="the preset's")


def check_preset(config: DqnConfig, env: EnvConfig) -> None:
    """Raise BadInput unless the preset's network accepts the environment's observations."""
    base = preset(config.preset)
    try:
        check_config(replace(base, env=env))
    except BadInput as error:
        message = f"{config.preset} does not suit {env.id}: write another preset, or the environment {base.env.id}"
        raise BadSetting(DqnConfig, "preset", message) from error


def dqn(config: DqnConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Double DQN with prioritized n-step replay (Mnih et al. 2015, van Hasselt et al. 2016), in serial mode.

    The target is y = R^(n) + gamma^n Q(s', argmax_a' Q(s', a'; w); w-) with the weights w- of the target network. (In
    the preset pong, it is that of plain DQN.) Returns the policy and the action values of the run's best weights.
    Raises what `train` raises, and SystemExit after a signal.
    """
    monitor.release_display()
    base = preset(config.preset)
    settings = replace(base, env=env, seed=seed, max_steps=config.max_steps or base.max_steps)
    with contextlib.ExitStack() as stack:
        folder = monitor.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)  # left by an interrupted attempt: a seed cannot resume
        summary = train(settings, run_dir=run, serial=True, on_episode=monitor.episode)
        if summary["interrupted_by"]:
            raise SystemExit(128 + summary["interrupted_by"])
        policy = load_policy(run)
    metrics = {name: summary[name] for name in ("solved", "agent_steps", "updates")}
    return Learned(lambda observations: policy.act(observations), policy.values, {}, metrics)


def _setting(name: str, episodes: int) -> Setting:
    return Setting(PRESETS[name]().env, DqnConfig(name), episodes)


METHODS = {
    "dqn": Method(
        "DQN with the learner and replay of `qfleet train`, in one process",
        dqn,
        "network",
        (_setting("cartpole", 100), _setting("flappybird", 20)),
        check_preset,
        fallback=DqnConfig(),
    ),
}
