"""Videos of a policy: the paths returned are those of the episodes played."""

from __future__ import annotations

import numpy as np
import pytest

from rl.envs.config import EnvConfig
from rl.envs.recording import record

pytest.importorskip("pygame")


@pytest.mark.filterwarnings("ignore:.*Overwriting existing videos:UserWarning")
def test_a_second_recording_returns_only_its_own_files(tmp_path):
    def push_right(observations):
        return np.ones(len(observations), np.int64)

    for episodes in (2, 1):
        files = record(push_right, EnvConfig(id="CartPole-v1"), tmp_path, episodes, epsilon=0.0, seed=1)
        assert [file.name for file in files] == [f"rl-video-episode-{i}.mp4" for i in range(episodes)]
        assert all(file.stat().st_size for file in files)
