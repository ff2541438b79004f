"""`keep_freed_memory`, tested in a process of its own because it affects the whole process."""

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it only works with glibc's malloc")
def test_freed_megabytes_are_reused():
    """40 buffers of 8 MiB, one after another, cause page faults for each buffer, but hardly any when memory is kept."""

    def page_faults(mode):
        command = [sys.executable, "-c", PROGRAM, mode]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)

    assert 10 * page_faults("keep") < page_faults("default")
