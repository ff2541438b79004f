"""When a package of an extra is not installed, one line names the extra."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("blocked", ["flappy_bird_gymnasium", "pygame"])
def test_a_missing_extra_is_reported_in_one_line(blocked):
    """In a process of its own, because this one may have imported the package."""
    program = f"""
import sys
sys.modules[{blocked!r}] = None  # importing it raises ImportError
from rl.envs.config import EnvConfig
from rl.envs.make import check_env
from rl.errors import BadInput
try:
    check_env(EnvConfig(id="FlappyBird-v0"))
except BadInput as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == 'FlappyBird-v0 needs the extra `classic`: pip install -c constraints.txt -e ".[classic]"\n', (
        done.stderr
    )
