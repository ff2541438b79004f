"""`qfleet eval`: evaluates a run's policy."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from qfleet.api import load_policy
from qfleet.cli.flags import parse
from qfleet.config import message_with_paths
from qfleet.run.remote import is_url, last_part, local_path
from rl.bounds import at_least, between
from rl.envs.config import EnvConfig
from rl.envs.make import make_environments
from rl.envs.recording import check_recording, record
from rl.errors import BadInput
from rl.evaluation import describe_cut_episodes, evaluate


@dataclass(frozen=True)
class EvalCommand:
    """Evaluate a run's policy: play episodes and print their mean return."""

    run: tyro.conf.Positional[str]
    """Directory or URL of the run."""
    episodes: int = 30
    """Number of episodes."""
    epsilon: float = 0.01
    """Probability of a random action."""
    weights: Literal["best", "last"] = "best"
    """best: the weights with the best evaluation during training, or the last ones if there was none; last: those of the
    newest checkpoint."""
    seed: int = 12345
    """Random seed of the episodes."""
    video: bool = False
    """Also record one episode as an mp4 file in the run's directory, under videos/; of a run at a URL, in a directory
    videos/NAME here."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "episodes")
        at_least(self, 0, "seed")
        between(self, 0, 1, "epsilon", what="a probability")


def eval_command(args: list[str]) -> int:
    """Run `qfleet eval`; returns the exit status. Raises BadInput."""
    c = parse(EvalCommand, args, prog="qfleet eval")
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
        f"{describe_cut_episodes(result, longest)}"
    )
    if videos is not None:
        files = record(policy.act, config.env, videos, 1, c.epsilon, c.seed, max_steps=longest)
        figures["videos"] = [str(f) for f in files]
        print("video: " + ", ".join(figures["videos"]))
    if c.json:
        print(json.dumps(figures))
    return 0


def _video_folder(run: str, env: EnvConfig) -> Path:
    """The directory of a run's videos: its own videos/, or videos/NAME here if the run is at a URL.

    Raises BadInput if no video can be recorded, or none can be written there.
    """
    try:
        check_recording(env)
    except BadInput as error:
        reason = message_with_paths(error)
        raise BadInput(f"no video can be recorded: {reason} (leave out --video to evaluate only)") from error
    folder = Path("videos") / last_part(run) if is_url(run) else local_path(run) / "videos"
    try:
        folder.parent.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=folder if folder.exists() else folder.parent).close()
    except OSError as error:
        raise BadInput(
            f"{folder} cannot be written ({error.strerror}): make it writable, or leave out --video"
        ) from error
    return folder
