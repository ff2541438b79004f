#!/usr/bin/env bash
# Sets up one node of a cluster: ~/qfleet/.venv with the pinned versions, and ~/.bashrc. Later it changes nothing.
#   setup.sh PYTHON     the Python of .venv, for example python3 or python3.12; the same version on every node
# Without an NVIDIA GPU it takes PyTorch's CPU build (0.2 GB instead of about 3) from the index named below, unless this
# machine has settings for pip of its own (pip.conf or PIP_... variables); then those alone count.
set -euo pipefail
python=$1
cd ~/qfleet

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

if ! command -v "$python" > /dev/null; then
    echo "setup.sh: $(hostname) has no $python: install it, or name another Python in setup_commands" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup.sh: $python on $(hostname) is Python $(version "$python"), Qfleet needs 3.11 or newer:" \
        "name another in setup_commands" >&2
    exit 1
fi
made_by=$(sed -n 's/^version\(_info\)\? *= *\([0-9]*\.[0-9]*\).*/\2/p' .venv/pyvenv.cfg 2> /dev/null || true)
if [ "$made_by" != "$(version "$python")" ] || [ ! -x .venv/bin/python ]; then
    rm -rf .venv  # there is none, or the system's Python is another one since
    "$python" -m venv .venv
fi

settings=$(.venv/bin/python -m pip config list)
if ! nvidia-smi -L > /dev/null 2>&1 && ! grep -qE 'index|find-links' <<< "$settings"; then
    # the build 2.13.0+cpu is newer than 2.13.0 by pip's rules, so pip prefers it to the one with CUDA
    export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
fi
make .venv/.installed PYTHON="$python"

# `ray down` and `ray exec` type a bare `ray`, and Ray's commands use its token only in this mode. The line goes to the
# top, because the .bashrc of some distributions ends early in shells that are not interactive.
[ -e ~/.bashrc ] || touch ~/.bashrc
line='export PATH=~/qfleet/.venv/bin:$PATH RAY_AUTH_MODE=token  # qfleet'
if [ "$(head -n 1 ~/.bashrc)" != "$line" ]; then
    changed=$(mktemp ~/.bashrc.XXXXXX)  # nodes that share a home directory may come here at the same time
    cp -p ~/.bashrc "$changed"
    { echo "$line"; grep -v '# qfleet$' ~/.bashrc || true; } > "$changed"
    mv "$changed" "$(readlink -f ~/.bashrc)"
fi
