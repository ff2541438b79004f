"""docs/design.md and the repository name the same files."""

from __future__ import annotations

import re
import subprocess
from pathlib import PurePosixPath

from tests.conftest import ROOT

ROOMS = {"rl", "protos", "replay", "actors", "learner", "qfleet", "report", "classic"}
UNNAMED = {"__init__.py", "__main__.py", "replay_pb2.py", "replay_pb2_grpc.py"}


def tracked():
    out = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [PurePosixPath(name) for name in out.split("\n") if name]


def drawn():
    """{folder: names of its files} of the tree in the design, and the folders in front of its lines."""
    tree = (ROOT / "docs" / "design.md").read_text().split("## The house")[1].split("```")[1]
    found, folder = {}, ""
    for line in tree.splitlines():
        if m := re.match(r"(  )?([a-z_]+)/ ", line):
            folder = f"{folder.split('/')[0]}/{m[2]}" if m[1] else m[2]
        if folder:
            found.setdefault(folder, set()).update(
                re.findall(r"[\w.]+\.(?:py|proto)\b", re.sub(r"\([^)]*\)", "", line))
            )
    return found


def test_every_file_of_the_house_is_in_the_design_and_no_other():
    here = {}
    for path in tracked():
        if path.parts[0] in ROOMS and path.suffix in (".py", ".proto") and path.name not in UNNAMED:
            here.setdefault(str(path.parent), set()).add(path.name)
    there = {folder: names for folder, names in drawn().items() if folder.split("/")[0] in ROOMS}
    assert there == here


def test_every_folder_of_the_design_is_there():
    folders = {path.parts[0] for path in tracked() if len(path.parts) > 1}
    assert set(drawn()) - {name for name in drawn() if "/" in name} <= folders
    assert not folders - set(drawn()) - {".ci", "docs"}
