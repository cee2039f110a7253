"""The cluster file: Ray's own checks, and the mistakes that these let through."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.authentication.authentication_token_setup import generate_and_save_token
from ray.autoscaler._private.util import prepare_config, validate_config

from tune.study.config import StudyConfig

REPOSITORY = Path(__file__).parents[1]
# All that the file uses of EC2's create_instances; Ray hands over any other word unseen.
EC2_KEYS = {
    "InstanceType",
    "ImageId",
    "InstanceMarketOptions",
    "MarketType",
    "BlockDeviceMappings",
    "DeviceName",
    "Ebs",
    "VolumeSize",
    "VolumeType",
}


@pytest.fixture
def cluster() -> dict[str, Any]:
    text = (REPOSITORY / "ray_cluster.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


@pytest.fixture
def head(cluster: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = cluster["available_node_types"][cluster["head_node_type"]]
    return node


@pytest.fixture
def workers(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    types = cluster["available_node_types"]
    return [node for name, node in types.items() if name != cluster["head_node_type"]]


def keys_within(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys_within(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys_within(inner)


def run_options(cluster: dict[str, Any]) -> list[list[str]]:
    """Return the words of each option that every container is started with."""
    return [shlex.split(option) for option in cluster["docker"]["run_options"]]


def image_setting(pattern: str) -> str:
    """Return what the image's build sets, the first group of the pattern."""
    found = re.search(pattern, (REPOSITORY / "Dockerfile").read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def test_ray_accepts_the_file(cluster):
    validate_config(prepare_config(cluster))


def test_head_node_type_is_one_of_the_node_types(cluster, workers):
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert workers


def test_node_configs_use_known_ec2_keys(cluster):
    for name, node in cluster["available_node_types"].items():
        assert set(keys_within(node["node_config"])) <= EC2_KEYS, name
        assert {"InstanceType", "ImageId"} <= set(node["node_config"]), name


def test_resources_are_spelled_as_ray_knows_them(cluster):
    for name, node in cluster["available_node_types"].items():
        assert set(node["resources"]) <= {"CPU", "GPU"}, name


def test_trials_run_on_gpu_workers_only(head, workers):
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    for node in workers:
        assert node["resources"]["GPU"] >= 1
        assert node["resources"]["CPU"] >= node["resources"]["GPU"]


def test_workers_are_spot_instances_and_the_head_is_not(head, workers):
    assert "InstanceMarketOptions" not in head["node_config"]
    for node in workers:
        assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_number_of_workers_is_bounded(cluster, workers):
    assert cluster["idle_timeout_minutes"] > 0
    for node in workers:
        assert 0 <= node["min_workers"] <= node["max_workers"] <= cluster["max_workers"]


def test_file_mounts_exist_once_ray_has_made_the_token(cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    generate_and_save_token()
    for source in cluster["file_mounts"].values():
        assert Path(source).expanduser().exists(), source


def test_every_container_asks_for_the_token_and_finds_it(cluster):
    options = run_options(cluster)
    assert ["--env", "RAY_AUTH_MODE=token"] in options
    mounted = [path for path, source in cluster["file_mounts"].items() if "auth_token" in source]
    assert [["--env", f"RAY_AUTH_TOKEN_PATH={path}"] in options for path in mounted] == [True]
    assert mounted[0] == image_setting(r"HOME=(\S+)") + "/.ray/auth_token"


def test_containers_of_workers_get_the_gpus(cluster):
    assert "--gpus all" in cluster["docker"]["worker_run_options"]


def test_results_are_one_folder_on_all_nodes(cluster):
    [mount] = [words[1] for words in run_options(cluster) if words[0] == "--mount"]
    parts = dict(part.split("=") for part in mount.split(","))
    results = Path(image_setting(r"WORKDIR (\S+)")) / StudyConfig().output_dir
    assert (parts["type"], parts["target"]) == ("bind", str(results))
    [command] = [line for line in cluster["initialization_commands"] if " mount -t " in line]
    assert command.startswith(f"mountpoint -q {parts['source']} ||")
    assert command.endswith(f" {parts['source']}")
    assert f".efs.{cluster['provider']['region']}.amazonaws.com:/ " in command


def test_results_belong_to_the_user_of_the_image(cluster):
    uid = image_setting(r"useradd --uid (\d+)")
    assert any(
        command.startswith(f"sudo chown {uid}:{uid} ")
        for command in cluster["initialization_commands"]
    )


def test_nothing_is_installed_over_the_image(cluster):
    prepared = prepare_config(cluster)
    assert prepared["head_setup_commands"] == prepared["worker_setup_commands"] == []


def test_stopped_nodes_are_not_kept(cluster):
    assert cluster["provider"]["cache_stopped_nodes"] is False
