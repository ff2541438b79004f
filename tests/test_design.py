"""The tree in docs/design.md lists the repository's files and folders."""

from __future__ import annotations

import re
import subprocess
from pathlib import PurePosixPath

from tests.conftest import ROOT

PACKAGES = {"rl", "protos", "replay", "actors", "learner", "qfleet", "report", "classic"}  # the tree lists every file
UNLISTED = {"__init__.py", "__main__.py", "replay_pb2.py", "replay_pb2_grpc.py"}


def tracked_files():
    out = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [PurePosixPath(name) for name in out.split("\n") if name]


def documented_tree():
    """{folder: the file names listed for it}, for every folder in the tree of docs/design.md."""
    tree = (ROOT / "docs" / "design.md").read_text().split("## Folders and files")[1].split("```")[1]
    found, folder = {}, ""
    for line in tree.splitlines():
        if m := re.match(r"(  )?([a-z_]+)/ ", line):
            folder = f"{folder.split('/')[0]}/{m[2]}" if m[1] else m[2]
        if folder:
            found.setdefault(folder, set()).update(
                re.findall(r"[\w.]+\.(?:py|proto)\b", re.sub(r"\([^)]*\)", "", line))
            )
    return found


def test_the_tree_lists_exactly_the_files_of_each_package():
    tracked = {}
    for path in tracked_files():
        if path.parts[0] in PACKAGES and path.suffix in (".py", ".proto") and path.name not in UNLISTED:
            tracked.setdefault(str(path.parent), set()).add(path.name)
    documented = {folder: names for folder, names in documented_tree().items() if folder.split("/")[0] in PACKAGES}
    assert documented == tracked


def test_the_tree_lists_exactly_the_top_folders():
    tracked = {path.parts[0] for path in tracked_files() if len(path.parts) > 1} - {".ci"}
    documented = {folder for folder in documented_tree() if "/" not in folder}
    assert documented | {"docs"} == tracked
