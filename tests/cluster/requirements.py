"""Whether the cluster test can run on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cluster.disks import DISKS
from tests.cluster.hosts import UNSHARE
from tests.conftest import ROOT

PACKAGES = {  # of Debian, by a program in it
    "ip": "iproute2",
    "ssh-keygen": "openssh-client",
    "/usr/sbin/sshd": "openssh-server",
    "rsync": "rsync",
    "unshare": "util-linux",
    "make": "make",
}
TRIAL = """
mount --make-rprivate /; mount -t tmpfs trial /mnt; mkdir /mnt/a /mnt/b /mnt/c /mnt/d
mount -t overlay overlay -o lowerdir=/mnt/a,upperdir=/mnt/b,workdir=/mnt/c /mnt/d
ip link add trial type bridge; ip link add one type veth peer name two
"""


def missing() -> str:
    """Why the cluster test cannot run here, in one line; "" if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "it needs root on Linux, for network namespaces"
    if packages := sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None}):
        return f"missing Debian packages: {' '.join(packages)}"
    for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix)):
        if path.is_relative_to(DISKS):
            return f"{path} is below {DISKS}, where the disks of the hosts will be: move it"
    trial = subprocess.run([*UNSHARE, "bash", "-ec", TRIAL], capture_output=True, text=True)
    if trial.returncode != 0:
        return f"the kernel refuses namespaces, overlays or bridges: {trial.stderr.strip().splitlines()[-1]}"
    return ""
