"""Memory that a process keeps for its next use; in a process of its own, as it changes the whole of it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from rl.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
np.ones(2**23, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    np.ones(2**23, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is told")
def test_freed_megabytes_are_used_again_instead_of_fetched():
    """40 buffers of 8 MiB, one after the other, are 40 times its pages; kept, hardly any is fetched again."""

    def faults(how):
        command = [sys.executable, "-c", PROGRAM, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)

    assert 10 * faults("keep") < faults("give back")
