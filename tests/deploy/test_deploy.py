"""The cluster files are valid by Ray's schema, and Ray accepts them."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


@pytest.mark.parametrize("name", ["local.yaml", "aws.yaml"])
def test_a_cluster_file_is_valid_by_rays_schema(name):
    config = yaml.safe_load((DEPLOY / name).read_text())
    jsonschema.validate(config, SCHEMA)
    for command in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
        assert "ray s" in command
    assert any("--autoscaling-config" in c for c in config["head_start_ray_commands"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "max_wrokers": 3}, SCHEMA)


@pytest.mark.parametrize("name", ["local.yaml", "aws.yaml"])
def test_ray_completes_and_accepts_a_cluster_file(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((DEPLOY / name).read_text()))
    validate_config(config)
    assert set(config["available_node_types"]) >= {config["head_node_type"]}
