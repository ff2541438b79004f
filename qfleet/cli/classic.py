"""`qfleet classic METHOD`: the methods that lead to DQN."""

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

import torch
import yaml

from classic.babyai import MakeDatasetConfig, make_dataset
from classic.interface import Method, RecordingMonitor, Setting
from classic.methods import METHODS as CLASSIC
from qfleet.classic_runs import dqn as classic_dqn
from qfleet.classic_runs.pictures import draw_learning_curves
from qfleet.classic_runs.seeds import Job, learn_seed, summarize_seeds
from qfleet.cli.flags import errors_name_flags, flag_value, parse
from qfleet.run.directory import CONFIG, SUMMARY, RunDir
from qfleet.run.remote import is_url, local_path
from rl.bounds import as_written, between, require
from rl.envs.config import EnvConfig
from rl.envs.make import check_env
from rl.envs.recording import check_recording
from rl.errors import BadInput, BadSetting, RunFault, suggestion
from rl.formats import KEY as FORMAT_KEY
from rl.formats import Renamed, upgraded

MAKE_DATASET = "make-dataset"
MAX_SEED = 2**30
ENV_FLAGS = {
    "id": "env",
    "kwargs": "env_kwargs",
    "max_episode_steps": "max_episode_steps",
}  # field of EnvConfig -> flag
# Renamed fields of a classic run's config.yaml: for each format 0, 1, ... a dict {old name: new name}.
RENAMED: Renamed = ()
METHODS: dict[str, Method] = {**CLASSIC, **classic_dqn.METHODS}


@dataclass(frozen=True)
class ClassicCommand:
    """The flags that all methods have."""

    env: str = ""
    """Gymnasium id of the environment."""
    env_kwargs: str = "{}"
    """Keyword arguments for gymnasium.make, a JSON object such as '{"is_slippery": false}'."""
    max_episode_steps: int = 0
    """Agent steps after which an episode is truncated; 0: the limit registered in Gymnasium."""
    seeds: tuple[int, ...] = (1,)
    """Seeds; the method learns once with each of them."""
    final_episodes: int = 1_000
    """Episodes of the evaluation after learning."""
    run_dir: str | None = None
    """Directory for all results; None: a new one under runs/. Seeds that are finished there are not repeated."""
    video: bool = True
    """Record an episode of the greedy policy of the first seed, as mp4 and gif."""
    threads: int = 1
    """Threads of PyTorch."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def check(self) -> None:
        """Raise BadSetting if a flag has a bad value.

        This is not in `__post_init__`, because each command inherits the `__post_init__` of its method's config.
        """
        between(self, 1, 10**8, "final_episodes")
        between(self, 1, 256, "threads")
        seeds = self.seeds
        is_valid = bool(seeds) and len(set(seeds)) == len(seeds) and min(seeds) >= 0 and max(seeds) <= MAX_SEED
        wanted = f"one or more different numbers from 0 to {as_written(MAX_SEED)}, as in --seeds 1 2"
        require(is_valid, self, "seeds", wanted)
        if len(seeds) > 1 and getattr(self, "save_dataset", None):
            raise BadSetting(type(self), "save_dataset", "saves the transitions of one seed: write only one seed")


@dataclass(frozen=True)
class MakeDatasetCommand(MakeDatasetConfig):
    """Let MiniGrid's bot play a BabyAI level, and write its episodes as a Minari dataset, fully observed."""

    json: bool = False
    """The last line of output is a JSON object with the figures."""


class _PrintingMonitor(RecordingMonitor):
    """A monitor that prints its notes to standard error."""

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
        raise BadInput(f"unknown method {name!r}: {suggestion(name, [*METHODS, MAKE_DATASET])}")
    method = METHODS[name]
    command = _parse(name, method, args[1:])
    with errors_name_flags(type(command), {EnvConfig: ENV_FLAGS}):
        return _run(name, method, command)


def _run(name: str, method: Method, command: Any) -> int:
    """Check the settings, learn with all seeds, and print the summary; returns the exit status."""
    setting = _setting(command, method)
    check_env(setting.env, method.space_kind)
    method.check(setting.config, setting.env)
    if command.video:
        _check_video(setting.env, method)
    torch.set_num_threads(command.threads)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    job = Job(name, method, setting, _run_folder(command, name), command.video)
    directory = _lock_directory(job)
    try:
        summary = _learn_seeds(job, command.seeds)
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
            check_recording(env, method.space_kind)
    except BadInput as error:
        raise BadInput(f"{error}, or write --no-video") from error


def make_dataset_command(args: list[str]) -> int:
    """Run `qfleet classic make-dataset`; returns the exit status. Raises BadInput, RunFault."""
    command = parse(MakeDatasetCommand, args, prog=f"qfleet classic {MAKE_DATASET}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with errors_name_flags(MakeDatasetCommand, {EnvConfig: {"id": "env"}}):
        metrics = make_dataset(command, _PrintingMonitor())
    print(
        f"{metrics['dataset']}: {metrics['episodes']:,} episodes, {metrics['steps']:,} steps, mean return "
        f"{metrics['mean_return']:.4g}, {metrics['bytes'] / 1e6:,.1f} MB in {metrics['path']}"
    )
    if command.json:
        print(json.dumps(metrics))
    return 0


def overview() -> str:
    """Return the usage text: all methods and their environments."""
    lines = [
        "usage: qfleet classic METHOD [--env ID] [flags]",
        "       qfleet classic METHOD --help              lists the flags of a method",
        "",
        "Each method has settings for the environments below its name; the first is the default.",
        "",
    ]
    for name, method in METHODS.items():
        envs = ", ".join(s.env.id for s in method.settings)
        lines.append(f"  {name:<18} {method.about}")
        lines.append(f"  {'':<18}   {envs}")
    lines.append(f"  {MAKE_DATASET:<18} writes a Minari dataset of a BabyAI level, for offline-q")
    return "\n".join(lines)


def _parse(name: str, method: Method, args: list[str]) -> Any:
    """Parse the flags: those of all methods, and the fields of the method's config.

    The defaults are the method's settings for the environment of --env.
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
    """Return the environment and the method's config that the flags give."""
    env = EnvConfig(id=command.env, kwargs=command.env_kwargs, max_episode_steps=command.max_episode_steps)
    config_type = type(method.settings[0].config)
    config = config_type(**{f.name: getattr(command, f.name) for f in dataclasses.fields(config_type)})
    return Setting(env, config, command.final_episodes)


def _run_folder(command: Any, name: str) -> Path:
    if command.run_dir is not None:
        if is_url(command.run_dir):
            raise BadInput(f"--run-dir {command.run_dir} is a URL, which only qfleet train takes: write a directory")
        return local_path(command.run_dir)
    env = command.env.split("/")[-1].lower()
    return Path("runs") / f"{name}-{env}-{time.strftime('%Y%m%d-%H%M%S')}"


def _lock_directory(job: Job) -> RunDir:
    """Lock and return the run's directory, and write config.yaml into it.

    Raises BadInput if the directory cannot be written, or has a run with other settings.
    """
    settings = {FORMAT_KEY: len(RENAMED), "method": job.name, **dataclasses.asdict(job.setting)}
    text = yaml.safe_dump(settings, sort_keys=False)
    if str(job.folder) == ".":
        raise BadInput("--run-dir is the current directory: write a new directory, such as runs/example")
    if job.folder.exists() and not job.folder.is_dir():
        raise BadInput(f"--run-dir {job.folder} is a file: write the name of a new directory")
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--run-dir {job.folder} cannot be written: {error.strerror}") from error
    directory, config = RunDir(job.folder), job.folder / CONFIG
    if config.is_file() and _read_settings(config) != upgraded(yaml.safe_load(text), RENAMED, str(config)):
        raise BadInput(
            f"--run-dir {job.folder} has a run with other settings (see its {CONFIG}): write another directory"
        )
    directory.lock()
    directory.write(CONFIG, text)
    return directory


def _read_settings(config: Path) -> dict[str, Any]:
    """Read the settings in a config.yaml. Raises BadInput if it is damaged or has a newer format."""
    try:
        return upgraded(yaml.safe_load(config.read_bytes()), RENAMED, str(config))
    except (ValueError, yaml.YAMLError) as error:
        raise BadInput(f"{config} is damaged ({' '.join(str(error).split())}): write another directory") from error


def _learn_seeds(job: Job, seeds: Sequence[int]) -> dict[str, Any]:
    """Learn with each seed that is not finished, and draw the learning curves; returns the summary over seeds."""
    summaries: list[dict[str, Any]] = []
    for index, seed in enumerate(seeds):
        seed_job = dataclasses.replace(job, video=job.video and index == 0)
        summary = job.summary(seed) or learn_seed(seed_job, seed)
        summaries.append(summary)
        if len(seeds) > 1:
            print(
                f"seed {seed}: mean return {summary['mean_return']:.4g}, learned in {summary['wall_seconds']:.0f} s",
                flush=True,
            )
    try:
        draw_learning_curves([job.seed_folder(seed) for seed in seeds], job.title, job.folder)
    except (OSError, ValueError) as error:
        raise RunFault(
            f"an episodes.csv or progress.csv in {job.folder} is damaged ({error}): remove the seed-... directory that "
            "contains it, and run the command again"
        ) from error
    return summarize_seeds(job, summaries)


def _print_summary(s: dict[str, Any], headline: str) -> None:
    """Print the summary in one line, with the metric ``headline`` first."""
    episodes = f"{s['final_episodes']:,.0f} evaluation episodes"
    several = len(s["seeds"]) > 1
    if several:
        over = f"over {len(s['seeds'])} seeds (worst {s['worst_return']:.4g}), {episodes} each"
    else:
        over = f"in {episodes} (seed {s['seeds'][0]})"
    first = "" if s.get("solved", True) else "not solved; "
    if headline != "mean_return":
        first += f"{headline.replace('_', ' ')} {s[headline]:.4g}; "
    print(
        f"{s['method']} on {s['env']}: {first}mean return {s['mean_return']:.4g} {over}; learned in "
        f"{s['wall_seconds']:.1f} s{' per seed' if several else ''}; results in {s['run_dir']}"
    )
