"""The installed versions of the packages that a result depends on, for its summary."""

from __future__ import annotations

import importlib.metadata


def package_versions() -> dict[str, str]:
    """The installed versions of the packages that a result depends on, by package."""
    names = ("qfleet", "torch", "numpy", "ray", "gymnasium", "ale-py", "grpcio", "protobuf", "lz4")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
