"""Versions in a summary."""

from __future__ import annotations

from qfleet.run.versions import package_versions


def test_versions_are_those_of_the_installed_packages():
    found = package_versions()
    assert found["numpy"][0].isdigit()
    assert "torch" in found
