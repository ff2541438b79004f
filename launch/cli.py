"""The command `qfleet`: words to calls, and what went wrong to one line and an exit status."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from launch.config import TrainConfig
from launch.presets import PRESETS, preset
from launch.run_dir import STATUS, SUMMARY, RunDir
from rl.errors import BadInput, RunFault, nearest

USAGE = """usage: qfleet COMMAND ...

  qfleet train [PRESET] [flags]     train; presets: {presets} (default pong)
  qfleet train --resume RUN         go on where a run stopped
  qfleet eval RUN [flags]           play a run's policy: mean return of 30 episodes
  qfleet status RUN                 how a run stands
  qfleet plot RUN [RUN ...]         learning curves as a picture
  qfleet bench NAME [flags]         measure: {benches}

qfleet COMMAND --help lists the flags of each. RUN is a run's directory, or (status) its name in a cluster.
"""
BENCHES = ("pipeline", "replay", "actors")


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
class StatusCommand:
    """How a run stands."""

    run: tyro.conf.Positional[str]
    """The run's directory, or its name in the cluster at --address."""
    address: str = "auto"
    """Ray to ask when RUN is a name."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""


@dataclass(frozen=True)
class PlotCommand:
    """Draw the learning curves of runs."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """The runs' directories."""
    to: str = "curves.png"
    """File of the picture."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0, 1 fault, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    args = list(sys.argv[1:] if argv is None else argv)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    try:
        return _dispatch(args)
    except BadInput as error:
        print(f"qfleet: {error}", file=sys.stderr)
        return 2
    except RunFault as error:
        print(f"qfleet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("qfleet: stopped", file=sys.stderr)
        return 130


def _dispatch(args: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "eval": _eval,
        "status": _status,
        "plot": _plot,
        "bench": _bench,
    }
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE.format(presets=", ".join(PRESETS), benches=", ".join(BENCHES)))
        return 0
    if args[0] not in commands:
        raise BadInput(f"unknown command {args[0]!r}: {nearest(args[0], commands)}")
    return commands[args[0]](args[1:])


def _parse(cls: Any, args: list[str], default: Any = None, prog: str = "qfleet") -> Any:
    """tyro's parse; what it complains of becomes one line."""
    out, err = io.StringIO(), io.StringIO()
    asked_help = any(a in ("-h", "--help") for a in args)
    try:
        if asked_help:
            return tyro.cli(cls, args=args, default=default, prog=prog)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return tyro.cli(cls, args=args, default=default, prog=prog)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise BadInput(_complaint(err.getvalue() + out.getvalue(), args, prog)) from None


def _complaint(text: str, args: list[str], prog: str) -> str:
    """The gist of tyro's boxed message, with the nearest right flag."""
    lines = [line.strip(" │╭╰─╮╯-") for line in text.splitlines()]
    lines = [line for line in lines if line]
    first = lines[1] if len(lines) > 1 else "the flags are not understood"
    if first.startswith("Unrecognized options"):
        flag = next((a for a in args if a.split("=")[0] in first and a.startswith("-")), None)
        word = flag or first.partition(": ")[2].split(",")[0]
        if flag is None:
            return f"unexpected word {word!r}: see {prog} --help"
        near = difflib.get_close_matches(flag.split("=")[0], _flags(), n=1, cutoff=0.5)
        return f"unknown flag {flag}: " + (f"did you mean {near[0]}?" if near else f"see {prog} --help")
    return f"{first.rstrip('.')}: see {prog} --help"


def _flags() -> list[str]:
    import dataclasses

    def walk(cls: Any, prefix: str) -> list[str]:
        found = []
        for f in dataclasses.fields(cls):
            name = f"{prefix}{f.name.replace('_', '-')}"
            factory = f.default_factory
            inner = factory() if factory is not dataclasses.MISSING else None
            if dataclasses.is_dataclass(inner):
                found += walk(type(inner), name + ".")
            elif isinstance(f.default, bool):
                head, _, tail = name.rpartition(".")
                found += [f"--{name}", f"--{head + '.' if head else ''}no-{tail}"]
            else:
                found.append(f"--{name}")
        return found

    return walk(TrainCommand, "")


def _train(args: list[str]) -> int:
    from launch.api import train

    name = args.pop(0) if args and not args[0].startswith("-") else None
    by_env = any(a.split("=")[0] == "--env.id" for a in args)
    base = preset(name or ("generic" if by_env else "pong"))
    resume = _value_of(args, "--resume")
    if resume is not None:
        if name is not None:
            raise BadInput(f"--resume goes with no preset: leave {name!r} out")
        base = RunDir.open(Path(resume)).config()
    fields = {f: getattr(base, f) for f in TrainConfig.__dataclass_fields__}
    command = _parse(TrainCommand, args, TrainCommand(**fields), "qfleet train")
    config = TrainConfig(**{f: getattr(command, f) for f in fields})
    if by_env and name is None and resume is None:
        config = _suit(config)
    if command.serial and command.address:
        raise BadInput("--serial and --address exclude each other: leave one out")
    if command.resume and command.run_dir:
        raise BadInput("--resume goes on in the run's own directory: leave --run-dir out")
    summary = train(
        config, run_dir=command.run_dir, resume=command.resume, serial=command.serial, address=command.address
    )
    interrupted = summary.pop("interrupted_by")
    _say_summary(summary)
    if command.json:
        print(json.dumps(summary))
    return 128 + interrupted if interrupted else 0


def _suit(config: TrainConfig) -> TrainConfig:
    """The generic preset over an Atari environment: breakout's settings instead."""
    from dataclasses import replace

    from launch.presets import breakout, generic
    from rl.envs import atari_game
    from rl.evaluation import EvaluationConfig

    if atari_game(config.env.id) is None or config.network != generic().network:
        return config
    base = breakout()
    return replace(
        base,
        env=config.env,
        seed=config.seed,
        max_steps=config.max_steps,
        max_minutes=config.max_minutes,
        evaluation=replace(EvaluationConfig(), goal=float("inf")),
    )


def _value_of(args: list[str], flag: str) -> str | None:
    for i, arg in enumerate(args):
        if arg.startswith(flag + "="):
            return arg.partition("=")[2]
        if arg == flag and i + 1 < len(args):
            return args[i + 1]
    return None


def _say_summary(s: dict[str, Any]) -> None:
    verdict = "solved" if s["solved"] else "not solved"
    mean = "no evaluation" if s["mean_return"] is None else f"mean return {s['mean_return']:.2f}"
    print(
        f"{verdict}: {mean} after {s['agent_steps']:,} agent steps ({s['frames']:,} frames), {s['updates']:,} updates, "
        f"{s['wall_seconds'] / 60:.1f} minutes of training; everything is in {s['run_dir']}"
    )


def _eval(args: list[str]) -> int:
    from launch.api import load_policy
    from rl.envs import make_environments
    from rl.evaluation import evaluate
    from rl.recording import record

    c = _parse(EvalCommand, args, prog="qfleet eval")
    if c.episodes < 1 or not 0.0 <= c.epsilon <= 1.0:
        raise BadInput("--episodes must be at least 1 and --epsilon from 0 to 1")
    policy = load_policy(c.run, c.weights)
    config = policy.config
    environments = make_environments(config.env, min(c.episodes, config.evaluation.environments))
    result = evaluate(lambda x: policy.act(x), environments, c.episodes, c.epsilon, c.seed)
    environments.close()
    figures: dict[str, Any] = {
        "env": config.env.id,
        "mean_return": result.mean_return,
        "std_return": result.std_return,
        "worst_return": result.worst_return,
        "episodes": len(result.episodes),
        "epsilon": c.epsilon,
        "weights": policy.which,
        "updates": policy.state.get("updates"),
        "agent_steps": policy.state.get("agent_steps"),
        "seed": c.seed,
    }
    print(
        f"{config.env.id}, {policy.which} weights, epsilon {c.epsilon:g}: mean return {result.mean_return:.2f} "
        f"(standard deviation {result.std_return:.2f}, worst {result.worst_return:g}) over {c.episodes} episodes"
    )
    if c.video:
        files = record(policy.act, config.env, Path(c.run) / "videos", 1, c.epsilon, c.seed)
        figures["videos"] = [str(f) for f in files]
        print("video: " + ", ".join(figures["videos"]))
    if c.json:
        print(json.dumps(figures))
    return 0


def _status(args: list[str]) -> int:
    c = _parse(StatusCommand, args, prog="qfleet status")
    if Path(c.run).is_dir():
        run = RunDir.open(Path(c.run))
        figures = run.read_json(STATUS) or {}
        summary = run.read_json(SUMMARY)
    else:
        figures, summary = _status_in_cluster(c.run, c.address), None
    _say_status(c.run, figures, summary)
    if c.json:
        print(json.dumps({**figures, **(summary or {})}))
    return 0


def _status_in_cluster(name: str, address: str) -> dict[str, Any]:
    import ray

    from launch.topology import join

    join(address, name)
    try:
        registry = ray.get_actor("registry", namespace=name)
    except ValueError:
        raise BadInput(f"no run named {name!r} in the Ray at {address}, and no such directory") from None
    return dict(ray.get(registry.status.remote(), timeout=10.0))


def _say_status(run: str, figures: dict[str, Any], summary: dict[str, Any] | None) -> None:
    from launch.progress import plain_line

    if summary is not None:
        _say_summary(summary)
    elif figures:
        shown = {k: float("nan") if v is None else v for k, v in figures.items()}
        print(plain_line(shown, f"{shown['last_return']:.1f}", float("nan")))
    else:
        print(f"{run}: started, nothing to report yet")


def _plot(args: list[str]) -> int:
    from report.curves import plot_runs

    c = _parse(PlotCommand, args, prog="qfleet plot")
    if not c.runs:
        raise BadInput("qfleet plot needs a run's directory: qfleet plot RUN [RUN ...]")
    print(f"learning curves: {plot_runs([Path(r) for r in c.runs], Path(c.to))}")
    return 0


def _bench(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(f"usage: qfleet bench NAME [flags]; NAME is one of: {', '.join(BENCHES)}")
        return 0
    if args[0] not in BENCHES:
        raise BadInput(f"unknown benchmark {args[0]!r}: {nearest(args[0], BENCHES)}")
    module = importlib.import_module(f"benchmarks.{args[0]}")
    command = _parse(module.Command, args[1:], prog=f"qfleet bench {args[0]}")
    figures = module.run(command)
    if command.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
