"""Offline training: DQN without actors, from a replay that is filled once with a dataset."""

from __future__ import annotations

import time
from dataclasses import replace

from protos.types import InvalidMessage
from qfleet.config import TrainConfig, message_with_paths
from qfleet.presets import preset
from qfleet.run.run import Run
from replay.config import MAX_CAPACITY
from replay.datasets.dataset import Dataset
from replay.local import LocalReplay
from replay.rate_limiter import LimiterConfig
from rl.envs.atari import atari_game
from rl.envs.make import check_env, spec_and_actions
from rl.errors import BadInput, BadSetting
from rl.types import ObservationSpec

MAX_UPDATES = 100_000  # learner updates of an offline run unless `max_updates` is given
EVALUATION_PERIOD = 5_000  # learner updates


def offline_preset(dataset: str, name: str | None, env_id: str | None) -> TrainConfig:
    """The default configuration of offline training on ``dataset``.

    It is the preset ``name``, or, if that is None, the preset for the environment ``env_id`` or else for the dataset's
    own environment. Raises BadInput if neither ``env_id`` nor the dataset names an environment, or if the dataset's
    cannot be made here.
    """
    if name is None:
        env = Dataset(dataset).env
        if env is None and env_id is None:
            message = f"is not given, and dataset {dataset} does not name its environment: write one to evaluate on"
            raise BadSetting(TrainConfig, "env.id", message)
        game = atari_game(env_id or (env.id if env else ""))
        base = preset("generic" if game is None else "atari")
        if env is not None and env_id is None:
            try:
                check_env(env)
            except BadInput as error:
                reason = f"is not given, and that of dataset {dataset} cannot be used: {message_with_paths(error)}"
                raise BadSetting(TrainConfig, "env.id", f"{reason}; write another") from error
            base = replace(base, env=env)
    else:
        base = preset(name)
    return replace(
        base, max_updates=MAX_UPDATES, evaluation=replace(base.evaluation, period=EVALUATION_PERIOD), offline=dataset
    )


def offline_spec(config: TrainConfig) -> ObservationSpec:
    """The spec of the observations in replay: the environment's, in the form in which the dataset stores them.

    Raises BadInput if the dataset's actions or observations do not fit the environment.
    """
    dataset = Dataset(config.offline)
    spec, actions = spec_and_actions(config.env)
    if dataset.actions != actions:
        raise BadInput(
            f"dataset {dataset.name} has {dataset.actions} actions, {config.env.id} has {actions}: write an --env.id or a "
            "dataset that fits"
        )
    return dataset.spec(spec, config.env.id)


def fit_replay_to_dataset(config: TrainConfig) -> TrainConfig:
    """The configuration with a replay large enough for the whole dataset and without a samples-per-insert ratio.

    Reads only the dataset's metadata. Raises BadInput if the dataset does not fit the environment or is too large.
    """
    offline_spec(config)
    steps = Dataset(config.offline).steps
    if steps > MAX_CAPACITY:
        raise BadInput(f"dataset {config.offline} has {steps:,} steps: write a dataset of at most {MAX_CAPACITY:,}")
    limiter = LimiterConfig(samples_per_insert=0.0, min_size=1)
    return replace(config, replay=replace(config.replay, capacity=max(config.replay.capacity, steps), limiter=limiter))


def fill_replay(run: Run, replay: LocalReplay) -> None:
    """Insert every transition of the run's dataset into ``replay``; returns early if the run is interrupted.

    Raises BadInput if the dataset does not fit the replay, or has no transition.
    """
    config, started = run.config, time.monotonic()
    dataset = Dataset(config.offline)
    spec = replay.shard.spec
    run.progress.note(f"reading {dataset.name}: {dataset.episodes:,} episodes of {dataset.steps:,} steps ...")
    for segment in dataset.segments(spec, config.returns, config.actors.segment_items):
        try:
            replay.write(segment)
        except InvalidMessage as error:
            raise BadInput(f"dataset {dataset.name}: {error}") from error
        if run.interrupted_by is not None:
            return
    stored = replay.stats()
    if not stored["stored"]:
        raise BadInput(f"dataset {dataset.name} has no transition with a complete stack of {spec.stack} frames")
    run.progress.note(
        f"{stored['stored']:,.0f} transitions in replay, {stored['bytes'] / 2**20:,.1f} MiB, in "
        f"{time.monotonic() - started:.0f} s; replay.capacity is {config.replay.capacity:,}"
    )
