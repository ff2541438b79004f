"""What lies on the disks of the hosts (`tests.cluster.hosts`), and the shell scripts that start the site and a host."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

DISKS = "/mnt"  # where the site mounts the tmpfs with all disks; on a host this folder is empty
HOME = "/root"
VENV = f"{HOME}/qfleet/.venv"
KEY = "~/.ssh/id_cluster"  # the laptop's private key, with which it may log in everywhere
NOT_COPIED = (".git", ".venv", "runs", "__pycache__", ".*_cache", "*.egg-info")
PREFIX, BASE = shlex.quote(sys.prefix), shlex.quote(sys.base_prefix)

# The site's first process. $1: the switch's address with the length of its prefix. It ends when the test closes the
# pipe. The hosts' default route leads to the switch, which answers at once that nothing lies beyond it.
SITE = f"""
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o size=8g,mode=755 disks {DISKS}
mkdir {DISKS}/environment {DISKS}/python {DISKS}/patch
mount --bind {PREFIX} {DISKS}/environment
mount --bind {BASE} {DISKS}/python
ip link set lo up
ip link add switch type bridge
ip addr add "$1" dev switch
ip link set switch up
ip route add unreachable default
echo 1 > /proc/sys/net/ipv4/ip_forward
echo ready
exec cat > /dev/null
"""

# The first process of a host. $0: its name; $1: its address; $2: the switch's. It waits for its network cable.
# The environment is an overlay: what was installed, then `_patch`, then what this host writes.
BOOT = f"""
disk={DISKS}/$0
hostname "$0"
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o size=2g,mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mkdir /run/sshd
mount --bind $disk/home {HOME}
mount --bind $disk/tmp /tmp
for file in {DISKS}/etc/*; do
    place=$(readlink -m /etc/${{file##*/}})  # resolv.conf may be a link into /run
    [ -e "$place" ] || {{ mkdir -p "${{place%/*}}"; touch "$place"; }}
    mount --bind $file "$place"
done
mkdir -p {VENV}
layers=lowerdir={DISKS}/patch:{DISKS}/environment,upperdir=$disk/environment,workdir=$disk/work
mount -t overlay overlay -o $layers {VENV}
[ -e {BASE}/bin ] || {{ mkdir -p {BASE}; mount --bind {DISKS}/python {BASE}; }}
for hidden in {PREFIX} {shlex.quote(str(ROOT))}; do
    [ ! -d $hidden ] || [ $hidden = {VENV} ] || mount -t tmpfs -o ro hidden $hidden
done
cp $disk/sshd_config /run/sshd_config
cp {DISKS}/host_key /run/host_key
mount -t tmpfs -o ro empty {DISKS}
echo ready
read -r go
ip link set lo up
ip addr add "$1/24" dev eth0
ip link set eth0 up
ip route add default via "$2"
exec < /dev/null > /dev/null 2>&1 /usr/sbin/sshd -D -f /run/sshd_config -E /run/sshd.log
"""


def make_site(disks: Path, addresses: dict[str, str]) -> None:
    """Fill ``disks``, the site's empty tmpfs: what all hosts share, and a disk for each of ``addresses`` (by name)."""
    for key in ("host_key", "user_key"):
        _keygen(disks / key, comment=key)
    etc = disks / "etc"
    etc.mkdir()
    users = "root:x:0:0:root:/root:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
    (etc / "passwd").write_text(users + "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n")
    (etc / "shadow").write_text("root:*:20000:0:99999:7:::\nsshd:*:20000::::::\nnobody:*:20000::::::\n")
    names = "".join(f"{address} {name}\n" for name, address in addresses.items())
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    (etc / "resolv.conf").write_text("")
    _patch(disks / "patch")
    for name, address in addresses.items():
        _make_disk(disks, disks / name, address)
    shutil.copy(disks / "user_key", disks / "laptop" / "home" / KEY.removeprefix("~/"))


def copy_command(name: str) -> list[str]:
    """The command that, run in the site, copies this checkout to ~/qfleet of the host ``name``, uncommitted files too."""
    excludes = [f"--exclude={name}" for name in NOT_COPIED]
    return ["rsync", "-a", "--delete", *excludes, f"{ROOT}/", f"{DISKS}/{name}/home/qfleet/"]


def _make_disk(disks: Path, disk: Path, address: str) -> None:
    """The disk of one host: the home of a newly installed machine, on which only the laptop's key may log in."""
    for folder in ("home", "tmp", "environment", "work"):
        (disk / folder).mkdir(parents=True)
    (disk / "tmp").chmod(0o1777)
    (disk / "home").chmod(0o700)
    for file in (".profile", ".bashrc"):
        shutil.copy(Path("/etc/skel") / file, disk / "home")
    programs = disk / "home" / ".local" / "bin"  # .profile puts it on PATH
    programs.mkdir(parents=True)
    (programs / "python3").symlink_to(f"{sys.base_prefix}/bin/python{sys.version_info[0]}.{sys.version_info[1]}")
    ssh = disk / "home" / ".ssh"
    ssh.mkdir(mode=0o700)
    shutil.copy(disks / "user_key.pub", ssh / "authorized_keys")
    (disk / "sshd_config").write_text(
        f"ListenAddress {address}\nHostKey /run/host_key\nPidFile none\nUsePAM no\nPasswordAuthentication no\n"
        "PermitRootLogin prohibit-password\n"
    )


def _patch(patch: Path) -> None:
    """Put files into ``patch`` that make the environment what it is after `make .venv/.installed` in ~/qfleet."""
    packages = Path(sys.prefix, "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
    scripts = [file for file in Path(sys.prefix, "bin").iterdir() if file.is_file() and not file.is_symlink()]
    for file in [*scripts, Path(sys.prefix, "pyvenv.cfg")]:
        if sys.prefix.encode() in (content := file.read_bytes()) and b"\0" not in content:
            _write_like(file, patch, content.replace(sys.prefix.encode(), VENV.encode()))
    for file in packages.glob("__editable__*qfleet*.pth"):  # otherwise it leads to this checkout
        _write_like(file, patch, f"{HOME}/qfleet\n".encode())
    (patch / ".installed").touch()


def _write_like(file: Path, patch: Path, content: bytes) -> None:
    """Write ``content`` for ``file``, a file of the environment, below ``patch``, with the same mode."""
    target = patch / file.relative_to(sys.prefix)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    target.chmod(file.stat().st_mode)


def _keygen(file: Path, comment: str) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", file], check=True)
