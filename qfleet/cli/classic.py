"""`qfleet classic METHOD`: the methods that preceded DQN."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from classic.babyai import MakeDatasetConfig, make_dataset
from classic.interface import Method, RecordingMonitor, Setting
from classic.methods import METHODS as CLASSIC
from qfleet.classic_runs import dqn as classic_dqn
from qfleet.classic_runs.pictures import draw_seeds
from qfleet.classic_runs.seeds import Job, learn_seed
from qfleet.cli.flags import errors_name_flags, flag_value, parse
from qfleet.run.directory import CONFIG, SUMMARY, RunDir
from rl.bounds import between, require
from rl.envs.config import EnvConfig
from rl.envs.make import check_env
from rl.envs.recording import check_recording
from rl.errors import BadInput, BadSetting, RunFault, nearest
from rl.formats import KEY as FORMAT_KEY
from rl.formats import Renamed, upgraded

MAKE_DATASET = "make-dataset"
MAX_SEED = 2**30
ENV_FLAGS = {
    "id": "env",
    "kwargs": "env_kwargs",
    "max_episode_steps": "max_episode_steps",
}  # EnvConfig -> command
# Renamed fields of a classic run's config.yaml, {old name: new name}; entry i holds those renamed after format i.
RENAMED: Renamed = ()
METHODS: dict[str, Method] = {**CLASSIC, **classic_dqn.METHODS}


@dataclass(frozen=True)
class ClassicCommand:
    """Train with a method, evaluate its policy, plot the learning curves and record a video."""

    env: str = ""
    """Gymnasium id."""
    env_kwargs: str = "{}"
    """Arguments of the environment's constructor, a JSON object such as '{"is_slippery": false}'."""
    max_episode_steps: int = 0
    """Agent steps after which an episode is truncated; 0: the environment's registered limit."""
    seeds: tuple[int, ...] = (1,)
    """Random seeds; the method is trained once with each."""
    final_episodes: int = 1_000
    """Episodes of the evaluation of the greedy policy after training."""
    run_dir: str | None = None
    """Directory of the results; by default a new one under runs/. Seeds that are complete there are not repeated."""
    video: bool = True
    """Record an episode of the first seed's greedy policy as mp4 and gif."""
    threads: int = 1
    """Torch threads."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def check(self) -> None:
        """Raise BadSetting for a bad value. Not `__post_init__`: subclasses inherit that of the method's settings."""
        between(self, 1, 10**8, "final_episodes")
        between(self, 1, 256, "threads")
        seeds = self.seeds
        different = bool(seeds) and len(set(seeds)) == len(seeds) and min(seeds) >= 0 and max(seeds) <= MAX_SEED
        require(different, self, "seeds", "one or more different numbers from 0, as in --seeds 1 2")
        if len(seeds) > 1 and getattr(self, "save_dataset", None):
            raise BadSetting(type(self), "save_dataset", "writes one dataset: use it with a single seed")


@dataclass(frozen=True)
class MakeDatasetCommand(MakeDatasetConfig):
    """Write a Minari dataset of BabyAI levels, fully observed, that MiniGrid's bot solves."""

    json: bool = False
    """The last line of output is a JSON object with the figures."""


class _PrintingMonitor(RecordingMonitor):
    """A `RecordingMonitor` that prints its notes to standard error."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def classic_command(args: list[str]) -> int:
    """Run `qfleet classic`; returns the exit status. Raises BadInput, RunFault."""
    if not args or args[0] in ("-h", "--help"):
        print(overview())
        return 0
    name = args[0]
    if name == MAKE_DATASET:
        return make_dataset_command(args[1:])
    if name not in METHODS:
        raise BadInput(f"unknown method {name!r}: {nearest(name, [*METHODS, MAKE_DATASET])}")
    method = METHODS[name]
    command = _parse(name, method, args[1:])
    with errors_name_flags(type(command), {EnvConfig: ENV_FLAGS}):
        return _run(name, method, command)


def _run(name: str, method: Method, command: Any) -> int:
    """Check the settings, train with every seed, and print the summary; returns the exit status."""
    setting = _setting(command, method)
    check_env(setting.env, method.takes)
    method.check(setting.config, setting.env)
    if command.video:
        _check_video(setting.env, method)
    torch.set_num_threads(command.threads)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    job = Job(name, method, setting, _folder(command, name), command.video)
    directory = _open_directory(job)
    try:
        summary = _learn(job, command.seeds)
    finally:
        directory.unlock()
    directory.write_json(SUMMARY, summary)
    _print_summary(summary, method.headline if method.headline in summary else "mean_return")
    if command.json:
        print(json.dumps(summary))
    return 0


def _check_video(env: EnvConfig, method: Method) -> None:
    """Raise BadInput if the environment cannot be rendered."""
    try:
        with errors_name_flags(EnvConfig, {EnvConfig: ENV_FLAGS}):
            check_recording(env, method.takes)
    except BadInput as error:
        raise BadInput(f"{error}, or write --no-video") from error


def make_dataset_command(args: list[str]) -> int:
    """Run `qfleet classic make-dataset`; returns the exit status. Raises BadInput, RunFault."""
    command = parse(MakeDatasetCommand, args, prog=f"qfleet classic {MAKE_DATASET}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with errors_name_flags(MakeDatasetCommand, {EnvConfig: {"id": "env"}}):
        figures = make_dataset(command, _PrintingMonitor())
    print(
        f"{figures['dataset']}: {figures['episodes']:,} episodes, {figures['steps']:,} steps, mean return "
        f"{figures['mean_return']:.4g}, {figures['bytes'] / 1e6:,.1f} MB in {figures['path']}"
    )
    if command.json:
        print(json.dumps(figures))
    return 0


def overview() -> str:
    """The usage text, which lists every method and its environments."""
    lines = ["usage: qfleet classic METHOD [--env ID] [flags]; qfleet classic METHOD --help lists the flags", ""]
    for name, method in METHODS.items():
        envs = ", ".join(s.env.id for s in method.settings)
        lines.append(f"  {name:<18} {method.about}")
        lines.append(f"  {'':<18}   {envs}")
    lines.append(f"  {MAKE_DATASET:<18} write a Minari dataset of BabyAI, for offline-q")
    return "\n".join(lines)


def _parse(name: str, method: Method, args: list[str]) -> Any:
    """Parse the flags of a method: `ClassicCommand`'s and those of its settings.

    The defaults are the method's settings for the environment in --env.
    """
    setting = method.setting(flag_value(args, "--env"))
    cls = dataclasses.make_dataclass(
        f"{type(setting.config).__name__}Command", [], bases=(ClassicCommand, type(setting.config)), frozen=True
    )
    cls.__doc__ = type(setting.config).__doc__
    default = cls(
        env=setting.env.id,
        env_kwargs=setting.env.kwargs,
        max_episode_steps=setting.env.max_episode_steps,
        final_episodes=setting.episodes,
        **{f.name: getattr(setting.config, f.name) for f in dataclasses.fields(setting.config)},
    )
    command = parse(cls, args, default, f"qfleet classic {name}")
    with errors_name_flags(cls):
        command.check()
    return command


def _setting(command: Any, method: Method) -> Setting:
    """The environment and the method's settings that ``command`` holds."""
    env = EnvConfig(id=command.env, kwargs=command.env_kwargs, max_episode_steps=command.max_episode_steps)
    config_type = type(method.settings[0].config)
    config = config_type(**{f.name: getattr(command, f.name) for f in dataclasses.fields(config_type)})
    return Setting(env, config, command.final_episodes)


def _folder(command: Any, name: str) -> Path:
    """The directory of the results: --run-dir, or runs/METHOD-ENVIRONMENT-DATE-TIME."""
    if command.run_dir is not None:
        return Path(command.run_dir)
    env = command.env.split("/")[-1].lower()
    return Path("runs") / f"{name}-{env}-{time.strftime('%Y%m%d-%H%M%S')}"


def _open_directory(job: Job) -> RunDir:
    """Create the run's directory, or open the one of a run with the same settings, and lock it. Raises BadInput."""
    settings = {FORMAT_KEY: len(RENAMED), "method": job.name, **dataclasses.asdict(job.setting)}
    text = yaml.safe_dump(settings, sort_keys=False)
    if str(job.folder) == ".":
        raise BadInput("--run-dir is '' or '.': write the name of a new directory")
    if job.folder.exists() and not job.folder.is_dir():
        raise BadInput(f"--run-dir {job.folder} is a file: write the name of a directory")
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--run-dir {job.folder} cannot be written: {error.strerror}") from error
    directory, config = RunDir(job.folder), job.folder / CONFIG
    if config.is_file() and _settings_in(config) != upgraded(yaml.safe_load(text), RENAMED, str(config)):
        raise BadInput(f"--run-dir {job.folder} holds a run with other settings: write another directory")
    directory.lock()
    directory.write(CONFIG, text)
    return directory


def _settings_in(config: Path) -> dict[str, Any]:
    """The settings in a config.yaml. Raises BadInput."""
    try:
        return upgraded(yaml.safe_load(config.read_bytes()), RENAMED, str(config))
    except (ValueError, yaml.YAMLError) as error:
        raise BadInput(f"{config} is damaged ({' '.join(str(error).split())}): write another directory") from error


def _learn(job: Job, seeds: Sequence[int]) -> dict[str, Any]:
    """Train with every seed that is not complete yet, and plot all seeds together; returns the summary over seeds."""
    summaries = []
    for index, seed in enumerate(seeds):
        seed_job = dataclasses.replace(job, video=job.video and index == 0)
        summary = job.summary(seed) or learn_seed(seed_job, seed)
        summaries.append(summary)
        if len(seeds) > 1:
            print(
                f"seed {seed}: mean return {summary['mean_return']:.4g} in {summary['wall_seconds']:.0f} s", flush=True
            )
    try:
        draw_seeds([job.seed_folder(seed) for seed in seeds], job.title, job.folder)
    except (OSError, ValueError) as error:
        raise RunFault(
            f"{job.folder} holds a damaged episodes.csv or progress.csv ({error}): remove the directory of that seed"
        ) from error
    return summarize(job, summaries)


def summarize(job: Job, summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The summary over seeds: the mean of each figure, the lowest mean return, and `each`: the figures of all seeds."""
    returns = [float(s["mean_return"]) for s in summaries]
    numbers = [
        k
        for k, v in summaries[0].items()
        if type(v) in (int, float) and k not in ("seed", "mean_return", "worst_return")
    ]
    each = {
        k: [s[k] for s in summaries]
        for k in ("mean_return", *numbers)
        if all(type(s.get(k)) in (int, float) for s in summaries)
    }
    return {
        "method": job.name,
        "env": job.setting.env.id,
        "mean_return": float(np.mean(returns)),
        "worst_return": min(returns),
        "seeds": [s["seed"] for s in summaries],
        **{k: float(np.mean(each[k])) for k in numbers if k in each},
        "each": each,
        "run_dir": str(job.folder),
    }


def _print_summary(s: dict[str, Any], headline: str) -> None:
    """Print the summary over seeds as one line, with the figure named ``headline`` first."""
    several = len(s["seeds"]) > 1
    seeds = f"{len(s['seeds'])} seeds (worst {s['worst_return']:.4g})" if several else f"seed {s['seeds'][0]}"
    first = "" if headline == "mean_return" else f"{headline.replace('_', ' ')} {s[headline]:.4g}; "
    print(
        f"{s['method']} on {s['env']}: {first}mean return {s['mean_return']:.4g} over {seeds}, {s['final_episodes']:,.0f} "
        f"fresh episodes each; learned in {s['wall_seconds']:.1f} s; results are in {s['run_dir']}"
    )
