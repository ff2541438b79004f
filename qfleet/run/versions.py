"""The installed versions of packages: for the summary of a run, and to compare the nodes of a cluster."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

PACKAGES = ("qfleet", "torch", "numpy", "ray", "gymnasium", "ale-py", "grpcio", "protobuf", "lz4")


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The installed versions of packages, by name, without importing them; by default those that a result depends on."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
