"""Run directories on which the tests run commands."""

from __future__ import annotations

import shutil

import pytest

from qfleet.api import train
from qfleet.config import to_yaml
from rl.networks import NetworkConfig
from tests.qfleet.configs import short


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    train(short(max_steps=300), run_dir=base / "run", serial=True)
    (base / "empty").mkdir()
    (base / "fresh").mkdir()
    shutil.copy(base / "run" / "config.yaml", base / "fresh" / "config.yaml")
    other = base / "other"
    shutil.copytree(base / "run", other)
    (other / "config.yaml").write_text(to_yaml(short(network=NetworkConfig(kind="mlp", hidden=(7,)))))
    places = {"NOWHERE": base / "nowhere", "EMPTY": base / "empty", "FRESH": base / "fresh"}
    return {**places, "RUN": base / "run", "OTHER": other}
