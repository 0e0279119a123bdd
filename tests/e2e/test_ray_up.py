"""The files that Ray's own cluster launcher reads: checked by Ray's functions, in a process of their own.

One process answers for all files and all broken variants.
"""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ka2l_ray.config.yaml_file import read_yaml

ROOT = Path(__file__).parents[2]
LAUNCHED = ("aws", "local-autoscaling")
CHECK = """
import json, sys
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray._private.label_utils import validate_node_label_syntax

def fault(config):
    try:
        validate_config({"cluster_synced_files": []} | config)
        validate_config(prepare_config(config))
        types = AutoscalingConfig(config, skip_content_hash=True).get_node_type_configs()
        for one in types.values():
            validate_node_label_syntax(one.labels)
    except Exception as error:
        return str(error).splitlines()[0] or type(error).__name__
    return None

json.dump([fault(config) for config in json.load(sys.stdin)], sys.stdout)
"""
"""What `ray up` and autoscaler v2 do with a file before they call a cloud."""
LAUNCH = """
import copy, json, sys
import boto3
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config

def shown(machine):
    tags = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
    return {
        "type": tags["ray-user-node-type"],
        "cluster": tags["ray-cluster-name"],
        "machine": machine["InstanceType"],
        "market": machine.get("InstanceLifecycle", "on-demand"),
        "profile": machine["IamInstanceProfile"]["Arn"].rpartition("/")[2],
    }

with mock_aws():
    for name in ("ka2l-head", "ka2l-worker"):
        boto3.client("iam").create_instance_profile(InstanceProfileName=name)
    config = bootstrap_aws(prepare_config(json.load(sys.stdin)))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, one in config["available_node_types"].items():
        provider.create_node(one["node_config"], {"ray-user-node-type": name}, 1)
        one["resources"] = {}
    detected = AWSNodeProvider.fillout_available_node_types_resources(config)["available_node_types"]
    ec2 = boto3.client("ec2")
    machines = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    groups = ec2.describe_security_groups(GroupIds=list({g["GroupId"] for m in machines for g in m["SecurityGroups"]}))
    rules = [rule for group in groups["SecurityGroups"] for rule in group["IpPermissions"]]

asked = {
    "machines": [shown(machine) for machine in machines],
    "open": [rule["FromPort"] for rule in rules if rule["IpRanges"]],
    "detected": {name: one["resources"] for name, one in detected.items()},
}
json.dump(asked, open(sys.argv[1], "w"))
"""
"""What `ray up` and its head ask of AWS for one machine of each type, with moto in AWS' place."""


def load(name: str) -> Any:
    return read_yaml((ROOT / f"cluster/{name}.yaml").read_text(encoding="utf-8"), name)


def types(config: dict[str, Any]) -> dict[str, Any]:
    return config["available_node_types"]


BREAKS: list[tuple[str, str, Callable[[dict[str, Any]], object]]] = [
    ("aws", "'idle_timeout' was unexpected", lambda c: c.update(idle_timeout=5)),
    ("aws", "'worker_nodes'", lambda c: c.update(worker_nodes={"InstanceType": "m7i.large"})),
    ("aws", "'marketType' was unexpected", lambda c: types(c)["gpu-spot"].update(marketType="spot")),
    ("aws", "'node_config' is a required property", lambda c: types(c)["gpu-spot"].pop("node_config")),
    ("aws", "is not of type 'integer'", lambda c: types(c)["gpu-spot"]["resources"].update(GPU="1")),
    ("aws", "`head_node_type` must be one of", lambda c: c.update(head_node_type="ray.head.default")),
    ("aws", "smaller than the sum of `min_workers`", lambda c: types(c)["gpu-spot"].update(min_workers=13)),
    ("aws", "spot market", lambda c: types(c)["gpu-spot"]["labels"].update({"ray.io/market-type": "spot market"})),
    ("local-autoscaling", "'type' is a required property", lambda c: c["provider"].pop("type")),
    ("local-autoscaling", "less than the minimum", lambda c: types(c)["cpu-spot"]["resources"].update(CPU=-1)),
]


@pytest.fixture(scope="module")
def judged() -> list[str | None]:
    """What Ray says about the files, in the order of `LAUNCHED`, then about the broken variants."""
    configs = [load(name) for name in LAUNCHED]
    for name, _, broken in BREAKS:
        configs.append(copy.deepcopy(load(name)))
        broken(configs[-1])
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        input=json.dumps(configs),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(LAUNCHED)), ids=LAUNCHED)
def test_ray_accepts_a_file(number: int, judged: list[str | None]):
    assert judged[number] is None


@pytest.mark.parametrize("number", range(len(BREAKS)), ids=[f"{n}: {m}" for n, m, _ in BREAKS])
def test_ray_refuses_a_broken_file(number: int, judged: list[str | None]):
    assert BREAKS[number][1] in (judged[len(LAUNCHED) + number] or "accepted")


def test_the_head_of_aws_is_on_demand_and_workers_are_labelled_by_their_market():
    for name, one in types(load("aws")).items():
        is_spot = one["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
        assert one["labels"]["ray.io/market-type"] == ("spot" if is_spot else "on-demand"), name
    assert types(load("aws"))["head"]["labels"]["ray.io/market-type"] == "on-demand"
    assert {one["labels"]["ray.io/market-type"] for one in types(load("aws")).values()} == {"spot", "on-demand"}


@pytest.mark.parametrize("name", LAUNCHED)
def test_spot_is_the_first_choice_and_the_head_holds_no_work(name: str):
    config = load(name)
    head = types(config)[config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    priorities: dict[str, set[int]] = {}
    for worker in (one for one in types(config).values() if one is not head):
        priorities.setdefault(worker["labels"]["ray.io/market-type"], set()).add(worker["priority"])
    assert min(priorities["spot"]) > max(priorities["on-demand"])


def test_the_dashboard_of_aws_is_private_and_both_starts_need_the_token():
    config = load("aws")
    starts = [c for c in config["head_start_ray_commands"] + config["worker_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all(start.startswith("export RAY_AUTH_MODE=token; ray start ") for start in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "0.0.0.0" not in " ".join(starts)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_local_nodes_fit_their_provider():
    """Facts of Ray's provider for nodes that are processes, in the version that is pinned."""
    config = load("local-autoscaling")
    assert config["head_node_type"] == "ray.head.default"
    assert config["provider"]["head_node_id"] == "f" * 51 + "00000"
    comments = (ROOT / "cluster/local-autoscaling.yaml").read_text(encoding="utf-8")
    host, _, port = config["provider"]["gcs_address"].partition(":")
    assert f"--node-ip-address={host} --port={port}" in comments
    assert config["max_workers"] == sum(one.get("max_workers", 0) for one in types(config).values())


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What AWS was asked for; the key pair that Ray makes is written to a home folder of its own."""
    home = tmp_path_factory.mktemp("home")
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "none")
    environment = os.environ | keys | {"HOME": str(home), "AWS_DEFAULT_REGION": load("aws")["provider"]["region"]}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(home / "asked.json")],
        input=json.dumps(load("aws")),
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((home / "asked.json").read_text())


def test_aws_is_asked_for_machines_of_the_right_market(launched: dict[str, Any]):
    asked = {m.pop("type"): m for m in launched["machines"]}
    assert asked == {
        "head": _machine("m7i.xlarge", "on-demand", "ka2l-head"),
        "gpu-spot": _machine("g6e.2xlarge", "spot", "ka2l-worker"),
        "gpu-on-demand": _machine("g6e.2xlarge", "on-demand", "ka2l-worker"),
        "cpu-spot": _machine("m7i.2xlarge", "spot", "ka2l-worker"),
    }


def _machine(kind: str, market: str, profile: str) -> dict[str, str]:
    return {"cluster": "ka2l", "machine": kind, "market": market, "profile": profile}


def test_only_ssh_is_open_to_the_world(launched: dict[str, Any]):
    """Ray opens it, as cluster/README.md says; the dashboard and the head's ports are for the nodes alone."""
    assert launched["open"] == [22]


def test_nodes_have_what_their_machines_have(launched: dict[str, Any]):
    """A resource that no machine has would be asked for in vain. Ray's list of machines is AWS' own."""
    for name, one in types(load("aws")).items():
        detected = launched["detected"][name]
        assert name == "head" or one["resources"] == {k: detected[k] for k in ("CPU", "GPU") if k in detected}
    assert launched["detected"]["gpu-spot"]["accelerator_type:L40S"] == 1
