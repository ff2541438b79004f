"""Ray's own bootstrap of deploy/aws.yaml, and the start of its instances, in a simulated AWS (moto)."""

from __future__ import annotations

import copy

import boto3
import pytest
import yaml
from botocore.exceptions import BotoCoreError, ClientError
from moto import mock_aws
from ray.autoscaler._private import util
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.aws.utils import resource_cache
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_USER_NODE_TYPE

from tests.conftest import ROOT

REGION = "us-west-2"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An empty home directory."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def aws(home):
    """A client of EC2 in an account that has nothing but what AWS gives to each."""
    with pytest.MonkeyPatch.context() as patch, mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("HOME", str(home))
        patch.setattr(aws_config.time, "sleep", lambda seconds: None)  # Ray waits until a new role is known everywhere
        resource_cache.cache_clear()
        yield boto3.client("ec2", region_name=REGION)
    resource_cache.cache_clear()


@pytest.fixture(scope="module")
def config(aws):
    """deploy/aws.yaml after Ray's bootstrap."""
    return aws_config.bootstrap_aws(filled_in(aws))


def load():
    return yaml.safe_load((ROOT / "deploy" / "aws.yaml").read_text())


def filled_in(ec2):
    """deploy/aws.yaml with the images filled in, prepared by Ray."""
    config = load()
    image = ec2.describe_images()["Images"][0]["ImageId"]
    for node_type in config["available_node_types"].values():
        assert node_type["node_config"]["ImageId"].startswith("ami-")
        node_type["node_config"]["ImageId"] = image
    config = util.prepare_config(config)
    util.validate_config(config)
    return config


def launch(config, name):
    """Let Ray start one instance of the node type ``name``; returns what EC2 says about it."""
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    node_config = dict(config["available_node_types"][name]["node_config"])
    if name == config["head_node_type"]:
        node_config.update(config["head_node"])
    kind = "head" if name == config["head_node_type"] else "worker"
    tags = {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: name, TAG_RAY_NODE_NAME: f"ray-{name}"}
    (instance,) = provider.create_node(node_config, tags, 1)
    return provider._get_node(instance)


def test_ray_finds_or_makes_what_the_nodes_need_and_starts_them(aws, config, home):
    key = home / ".ssh" / f"ray-autoscaler_{REGION}.pem"
    assert config["auth"]["ssh_private_key"] == str(key)
    assert key.stat().st_mode & 0o777 == 0o600
    head, actors = launch(config, "head"), launch(config, "actors")
    assert (head.instance_type, actors.instance_type) == ("g5.2xlarge", "c7i.4xlarge")
    assert (head.instance_lifecycle, actors.instance_lifecycle) == (None, "spot")
    assert head.iam_instance_profile["Arn"].endswith("/ray-autoscaler-v1")  # it starts the others
    for node in (head, actors):
        assert node.key_name == key.stem
        assert node.placement["AvailabilityZone"] == f"{REGION}a"
    (group,) = {g["GroupId"] for node in (head, actors) for g in node.security_groups}
    rules = aws.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
    inside, ssh = sorted(rules, key=lambda rule: rule["IpProtocol"])
    assert inside["IpProtocol"] == "-1"
    assert inside["UserIdGroupPairs"][0]["GroupId"] == group
    assert not inside["IpRanges"]
    assert (ssh["FromPort"], ssh["ToPort"]) == (22, 22)


def test_the_declared_cpus_and_gpus_are_those_of_the_instance_types(aws):
    declared = {}
    for node_type in load()["available_node_types"].values():
        resources = node_type["resources"]
        declared[node_type["node_config"]["InstanceType"]] = (resources["CPU"], resources.get("GPU", 0))
    found = aws.describe_instance_types(InstanceTypes=list(declared))["InstanceTypes"]
    gpus = {t["InstanceType"]: sum(g["Count"] for g in t.get("GpuInfo", {}).get("Gpus", [])) for t in found}
    assert declared == {t["InstanceType"]: (t["VCpuInfo"]["DefaultVCpus"], gpus[t["InstanceType"]]) for t in found}


def test_a_typo_in_a_node_config_is_an_error(aws, config):
    for name, node_type in load()["available_node_types"].items():
        for key in node_type["node_config"]:
            wrong = copy.deepcopy(config)
            inner = wrong["available_node_types"][name]["node_config"]
            inner[key + "s"] = inner.pop(key)
            with pytest.raises((KeyError, BotoCoreError, ClientError, SystemExit)):
                launch(wrong, name)
                pytest.fail(f"a typo in {name}.node_config.{key} is not found", pytrace=False)
