"""The upload of a checkout with a job, within Ray's limit of its size."""

from __future__ import annotations

import logging
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from ray._private.runtime_env import packaging

from rl.errors import BadInput

# Not uploaded, besides what the .gitignore files name. Ray does not even look into these folders.
EXCLUDES = [".git", ".venv", "/runs", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "/build", "/dist"]
MIB = 2**20


def upload_of(folder: Path) -> dict[str, Any]:
    """The part of a job's runtime environment that uploads the checkout in ``folder``.

    Raises BadInput if it is no checkout of Qfleet, or larger than Ray accepts.
    """
    project = folder / "pyproject.toml"
    try:
        name = tomllib.loads(project.read_text())["project"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None
    if name != "qfleet":
        raise BadInput("--upload: the current directory is no checkout of Qfleet: change to it, or leave --upload out")
    _check_size(folder)
    return {"working_dir": str(folder.absolute()), "excludes": EXCLUDES}


def uploaded_sizes(folder: Path) -> Counter[str]:
    """Bytes of the files that Ray uploads, by the entry of ``folder`` in which they are."""
    sizes: Counter[str] = Counter()

    def count(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder).parts[0]] += path.stat().st_size

    folder = folder.absolute()
    excludes = [packaging._get_excludes(folder, EXCLUDES)]
    packaging._dir_travel(folder, excludes, count, include_gitignore=True, logger=logging.getLogger("qfleet.upload"))
    return sizes


def _check_size(folder: Path) -> None:
    """Raise BadInput if the files, before their compression, are larger than Ray's limit for the archive."""
    sizes = uploaded_sizes(folder)
    if (total := sum(sizes.values())) >= packaging.GCS_STORAGE_MAX_SIZE:
        largest = ", ".join(f"{name} ({size / MIB:,.1f} MiB)" for name, size in sizes.most_common(3))
        raise BadInput(
            f"--upload: the checkout has {total / MIB:,.1f} MiB, and Ray takes less than "
            f"{packaging.GCS_STORAGE_MAX_SIZE / MIB:,.1f} MiB; the largest are {largest}: name what the "
            "run does not need in .gitignore"
        )
