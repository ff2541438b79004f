"""Learning from a dataset alone: DQN with a replay that is filled once and no actor."""

from __future__ import annotations

import time
from dataclasses import replace

from protos.types import InvalidMessage
from qfleet.config import TrainConfig, dotted
from qfleet.presets import preset
from qfleet.run.run import Run
from replay.config import MAX_CAPACITY
from replay.datasets.dataset import Dataset
from replay.local import LocalReplay
from replay.rate_limiter import LimiterConfig
from rl.envs.atari import atari_game
from rl.envs.make import check_env, describe
from rl.errors import BadInput, BadSetting
from rl.types import ObservationSpec

MAX_UPDATES = 100_000  # learner updates of an offline run that was not told how many
EVALUATION_PERIOD = 5_000  # learner updates


def offline_preset(dataset: str, name: str | None, env_id: str | None) -> TrainConfig:
    """The configuration that offline training starts from: preset ``name``, or one for the dataset's environment.

    Raises BadInput where neither the dataset nor ``env_id`` names an environment that can be made here.
    """
    if name is None:
        env = Dataset(dataset).env
        if env is None and env_id is None:
            said = f"is not given, and dataset {dataset} does not name its environment: write one to evaluate on"
            raise BadSetting(TrainConfig, "env.id", said)
        game = atari_game(env_id or (env.id if env else ""))
        base = preset("generic" if game is None else "atari")
        if env is not None and env_id is None:
            try:
                check_env(env)
            except BadInput as error:
                said = f"is not given, and that of dataset {dataset} does not serve: {dotted(error)}; write another"
                raise BadSetting(TrainConfig, "env.id", said) from error
            base = replace(base, env=env)
    else:
        base = preset(name)
    return replace(
        base, max_updates=MAX_UPDATES, evaluation=replace(base.evaluation, period=EVALUATION_PERIOD), offline=dataset
    )


def offline_spec(config: TrainConfig) -> ObservationSpec:
    """The observations that replay holds: the environment's, stored as the dataset has them. Raises BadInput."""
    dataset = Dataset(config.offline)
    spec, actions = describe(config.env)
    if dataset.actions != actions:
        raise BadInput(
            f"dataset {dataset.name} has {dataset.actions} actions, {config.env.id} has {actions}: write one that fits"
        )
    return dataset.spec(spec, config.env.id)


def fit(config: TrainConfig) -> TrainConfig:
    """The configuration with a replay that holds the whole dataset at once; no episode is read. Raises BadInput."""
    offline_spec(config)
    steps = Dataset(config.offline).steps
    if steps > MAX_CAPACITY:
        raise BadInput(f"dataset {config.offline} has {steps:,} steps: write one of at most {MAX_CAPACITY:,}")
    limiter = LimiterConfig(samples_per_insert=0.0, min_size=1)
    return replace(config, replay=replace(config.replay, capacity=max(config.replay.capacity, steps), limiter=limiter))


def fill(run: Run, replay: LocalReplay) -> None:
    """Put every transition of the run's dataset into ``replay``. Raises BadInput where the dataset does not suit it."""
    config, began = run.config, time.monotonic()
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
        raise BadInput(f"dataset {dataset.name} has no transition whose stack of {spec.stack} frames is whole")
    run.progress.note(
        f"{stored['stored']:,.0f} transitions in replay, {stored['bytes'] / 2**20:,.1f} MiB, in "
        f"{time.monotonic() - began:.0f} s; replay.capacity is {config.replay.capacity:,}"
    )
