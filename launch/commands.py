"""What each command of `qfleet` does; each takes its words and returns the exit status."""

from __future__ import annotations

import functools
import importlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from launch.api import load_policy, train
from launch.config import TrainConfig
from launch.flags import parse, value_of
from launch.offline import offline_preset
from launch.presets import preset
from launch.replay_commands import replay_command
from launch.run_commands import say_summary, scale_command, status_command
from launch.run_dir import RunDir
from rl.envs import EnvConfig, atari_game, make_environments
from rl.errors import BadInput, nearest
from rl.evaluation import evaluate, said_of_cut
from rl.recording import check_recording, record

BENCHES = ("pipeline", "replay", "shards", "memory", "soak", "sizing", "snapshot", "actors", "classic", "gpu", "solve")


@dataclass(frozen=True)
class TrainCommand(TrainConfig):
    """Train a DQN with many actors, a replay service and one learner."""

    run_dir: str | None = None
    """Directory of the run; a fresh dated one under runs/ by default."""
    resume: str | None = None
    """Go on with the run in this directory."""
    serial: bool = False
    """Everything in one process, without Ray: same seed, same numbers."""
    address: str | None = None
    """Join a running Ray: auto, or host:port of its head; without it a local one starts."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""


@dataclass(frozen=True)
class EvalCommand:
    """Play a run's policy."""

    run: tyro.conf.Positional[str]
    """The run's directory."""
    episodes: int = 30
    """Episodes."""
    epsilon: float = 0.01
    """Probability of a random action."""
    weights: Literal["best", "last"] = "best"
    """The best weights by evaluation, or the last ones."""
    seed: int = 12345
    """Seed of the episodes."""
    video: bool = False
    """Also write one episode as an mp4 into the run's videos/."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""


@dataclass(frozen=True)
class PlotCommand:
    """Draw the learning curves of runs."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """The runs' directories."""
    to: str = "curves.png"
    """File of the picture."""


def train_command(args: list[str]) -> int:

    name = args.pop(0) if args and not args[0].startswith("-") else None
    env_id = value_of(args, "--env.id")
    resume, offline = value_of(args, "--resume"), value_of(args, "--offline")
    if offline is not None and resume is None:
        base = offline_preset(offline, name, env_id)
    else:
        base = preset(name or ("pong" if env_id is None else "atari" if atari_game(env_id) else "generic"))
    if resume is not None:
        if name is not None:
            raise BadInput(f"--resume goes with no preset: leave {name!r} out")
        base = RunDir.open(Path(resume)).config()
    fields = {f: getattr(base, f) for f in TrainConfig.__dataclass_fields__}
    command = parse(TrainCommand, args, TrainCommand(**fields), "qfleet train")
    config = TrainConfig(**{f: getattr(command, f) for f in fields})
    if command.serial and command.address:
        raise BadInput("--serial and --address exclude each other: leave one out")
    if command.resume and command.run_dir:
        raise BadInput("--resume goes on in the run's own directory: leave --run-dir out")
    summary = train(
        config, run_dir=command.run_dir, resume=command.resume, serial=command.serial, address=command.address
    )
    interrupted = summary.pop("interrupted_by")
    say_summary(summary)
    if command.json:
        print(json.dumps(summary))
    return 128 + interrupted if interrupted else 0


def eval_command(args: list[str]) -> int:

    c = parse(EvalCommand, args, prog="qfleet eval")
    if c.episodes < 1 or c.seed < 0 or not 0.0 <= c.epsilon <= 1.0:
        raise BadInput("--episodes must be at least 1, --seed at least 0 and --epsilon from 0 to 1")
    policy = load_policy(c.run, c.weights)
    config = policy.config
    videos = _video_folder(c.run, config.env) if c.video else None
    environments = make_environments(config.env, min(c.episodes, config.evaluation.environments))
    longest = config.evaluation.max_episode_steps
    result = evaluate(lambda x: policy.act(x), environments, c.episodes, c.epsilon, c.seed, longest)
    environments.close()
    figures: dict[str, Any] = {
        "env": config.env.id,
        "mean_return": result.mean_return,
        "std_return": result.std_return,
        "worst_return": result.worst_return,
        "episodes": len(result.episodes),
        "cut": result.cut,
        "epsilon": c.epsilon,
        "weights": policy.which,
        "updates": policy.state.get("updates"),
        "agent_steps": policy.state.get("agent_steps"),
        "seed": c.seed,
    }
    print(
        f"{config.env.id}, {policy.which} weights, epsilon {c.epsilon:g}: mean return {result.mean_return:.2f} "
        f"(standard deviation {result.std_return:.2f}, worst {result.worst_return:g}) over {c.episodes} episodes"
        f"{said_of_cut(result, longest)}"
    )
    if videos is not None:
        files = record(policy.act, config.env, videos, 1, c.epsilon, c.seed, max_steps=longest)
        figures["videos"] = [str(f) for f in files]
        print("video: " + ", ".join(figures["videos"]))
    if c.json:
        print(json.dumps(figures))
    return 0


def _video_folder(run: str, env: EnvConfig) -> Path:
    """Where a run's videos go. Raises BadInput when none can be recorded, or kept there."""
    check_recording(env)
    folder = Path(run) / "videos"
    try:
        tempfile.TemporaryFile(dir=folder if folder.exists() else run).close()
    except OSError as error:
        raise BadInput(f"{folder} cannot be written ({error.strerror}): write --no-video") from error
    return folder


def plot_command(args: list[str]) -> int:
    from report.curves import plot_runs  # it draws, and no other command waits for that

    c = parse(PlotCommand, args, prog="qfleet plot")
    if not c.runs:
        raise BadInput("qfleet plot needs a run's directory: qfleet plot RUN [RUN ...]")
    try:
        picture = plot_runs([Path(r) for r in c.runs], Path(c.to))
    except (OSError, ValueError) as error:
        raise BadInput(f"--to {c.to} cannot be written: {' '.join(str(error).split())}") from error
    print(f"learning curves: {picture}")
    return 0


def classic_command(args: list[str]) -> int:
    from launch.classic_commands import classic_command as run  # as above

    return run(args)


def bench_command(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(f"usage: qfleet bench NAME [flags]; NAME is one of: {', '.join(BENCHES)}")
        return 0
    if args[0] not in BENCHES:
        raise BadInput(f"unknown benchmark {args[0]!r}: {nearest(args[0], BENCHES)}")
    module = importlib.import_module(f"benchmarks.{args[0]}")
    command = parse(module.Command, args[1:], prog=f"qfleet bench {args[0]}")
    figures = module.run(command, functools.partial(print, flush=True))
    if command.json:
        print(json.dumps(figures))
    return 0 if figures.get("passed", True) else 1


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train_command,
    "eval": eval_command,
    "status": status_command,
    "scale": scale_command,
    "plot": plot_command,
    "classic": classic_command,
    "replay": replay_command,
    "bench": bench_command,
}
