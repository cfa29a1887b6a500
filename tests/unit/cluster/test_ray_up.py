"""The files for `ray up`, judged by Ray's own validator and by what docs/security.md says."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import load_run_config

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "cluster" / "ray-up").glob("*.yaml"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture
def config(path: Path) -> dict[str, Any]:
    """The file with its anchors written out."""
    loaded: dict[str, Any] = json.loads(json.dumps(yaml.safe_load(path.read_text())))
    return loaded


def validate(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` does with a file before it calls the cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(config)
    validate_config(prepared)
    return prepared


def is_spot(node_config: dict[str, Any]) -> bool:
    market = node_config.get("InstanceMarketOptions", {}).get("MarketType")
    return market == "spot" or node_config.get("scheduling", {}).get("provisioningModel") == "SPOT"


def test_files_are_there_for_both_clouds() -> None:
    assert [path.stem for path in FILES] == ["aws", "gcp"]


def test_ray_takes_the_file_and_adds_no_command_of_its_own(config: dict[str, Any]) -> None:
    prepared = validate(config)
    for key in ("setup_commands", "head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        ours = {*config.get(key, []), *config["setup_commands"]}
        assert [command for command in prepared[key] if command not in ours] == []


def test_ray_refuses_an_unknown_key(config: dict[str, Any]) -> None:
    config["idle_timeout_minuets"] = 5
    with pytest.raises(Exception, match="idle_timeout_minuets"):
        validate(config)


def test_head_and_student_are_on_demand_and_the_others_on_spot(config: dict[str, Any]) -> None:
    spot = {name: is_spot(node["node_config"]) for name, node in config["available_node_types"].items()}
    assert spot == {"head": False, "cpu": True, "teacher-gpu": True, "student-gpu": False}


def test_nodes_scale_from_nothing_and_go_when_idle(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    assert {node["min_workers"] for node in types.values()} == {0}
    assert config["max_workers"] == sum(node["max_workers"] for node in types.values())
    assert 0 < config["idle_timeout_minutes"] <= 10
    assert all(0 < types[name]["idle_timeout_s"] <= 300 for name in ("teacher-gpu", "student-gpu"))


def test_no_work_lands_on_the_head(config: dict[str, Any]) -> None:
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]


def test_pools_are_labelled_as_on_kubernetes(config: dict[str, Any]) -> None:
    pools = {name: node["labels"]["stillhouse/pool"] for name, node in config["available_node_types"].items()}
    assert pools == {"head": "head", "cpu": "cpu", "teacher-gpu": "teacher", "student-gpu": "student"}


def test_gpu_nodes_offer_what_the_recipe_asks_for(config: dict[str, Any]) -> None:
    recipe = load_run_config(ROOT / "configs" / "recipes" / "qwen3-32b-to-1.7b.yaml", ())
    for name in ("teacher-gpu", "student-gpu"):
        resources = config["available_node_types"][name]["resources"]
        assert f"accelerator_type:{recipe.teacher.accelerator_type}" in resources
        assert resources["GPU"] == 8


def test_nothing_is_public_and_ray_asks_for_a_token(config: dict[str, Any]) -> None:
    assert config["provider"]["use_internal_ips"] is True
    for node in config["available_node_types"].values():
        interfaces = node["node_config"].get("networkInterfaces", [])
        assert [interface for interface in interfaces if "accessConfigs" in interface] == []
        if config["provider"]["type"] == "aws":  # Ray's own security group lets everyone try port 22
            assert {"SubnetIds", "SecurityGroupIds"} <= node["node_config"].keys()
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert " RAY_AUTH_MODE=token" in config[key][-1]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_secrets_are_not_written_into_the_file(path: Path) -> None:
    text = path.read_text()
    assert [word for word in ("RAY_AUTH_TOKEN=", "AWS_SECRET", "PRIVATE KEY", "password") if word in text] == []


def test_checkout_travels_without_what_is_made(config: dict[str, Any]) -> None:
    assert config["file_mounts"]["~/stillhouse"] == "."
    assert {".venv/**", "runs/**", ".git/**"} <= set(config["rsync_exclude"])
    assert "make setup DEVICE=gpu" in config["setup_commands"][-1]


def test_cloud_client_of_the_head_is_pinned(config: dict[str, Any]) -> None:
    [command] = config["head_setup_commands"]
    name, _, version = command.split()[-1].partition("==")
    assert version
    if name == "boto3":  # must fit the botocore that is locked
        assert f"botocore=={version}" in (ROOT / "requirements" / "gpu.lock").read_text().splitlines()
