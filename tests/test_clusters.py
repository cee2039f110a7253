"""The cluster files for machines of one's own and for Kubernetes: Ray's own checks, and more."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config

from tune.flags import build_parser
from tune.study.config import StudyConfig

REPOSITORY = Path(__file__).parents[1]


def read(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))
    return loaded


def in_image(pattern: str) -> str:
    """Return what the image's build sets, the first group of the pattern."""
    found = re.search(pattern, (REPOSITORY / "Dockerfile").read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


RESULTS = str(Path(in_image(r"WORKDIR (\S+)")) / StudyConfig().output_dir)


@pytest.fixture
def own() -> dict[str, Any]:
    return read("clusters/on_premise.yaml")


@pytest.fixture
def job() -> dict[str, Any]:
    return read("clusters/kuberay.yaml")


def test_ray_accepts_the_file_for_own_machines(own: dict[str, Any]) -> None:
    prepared = prepare_config(own)
    validate_config(prepared)
    [node] = prepared["available_node_types"].values()

    assert node["min_workers"] == node["max_workers"] == len(own["provider"]["worker_ips"])


def test_own_machines_run_as_those_on_aws_do(own: dict[str, Any]) -> None:
    """The same image, token, GPUs and results; no trial on the head, no folder of its own."""
    aws = read("ray_cluster.yaml")
    assert own["docker"]["image"] == aws["docker"]["image"]
    assert own["docker"]["worker_run_options"] == aws["docker"]["worker_run_options"]
    assert set(aws["docker"]["run_options"]) < set(own["docker"]["run_options"])
    assert own["file_mounts"] == aws["file_mounts"]
    [start] = [
        words for words in map(shlex.split, own["head_start_ray_commands"]) if "--head" in words
    ]
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(start)
    [check] = own["initialization_commands"]
    assert check.startswith("mountpoint -q /mnt/alrq || {")
    assert "exit 1" in check


def test_ray_s_autoscaler_reads_the_cluster_of_the_job(job: dict[str, Any]) -> None:
    named = {"metadata": {"name": "alrq", "namespace": "default"}}
    found = _derive_autoscaling_config_from_ray_cr(named | {"spec": job["spec"]["rayClusterSpec"]})
    types = found["available_node_types"]

    assert types[found["head_node_type"]]["resources"]["CPU"] == 0
    assert "GPU" not in types[found["head_node_type"]]["resources"]
    assert (types["gpu"]["resources"]["CPU"], types["gpu"]["resources"]["GPU"]) == (4, 1)
    assert 0 <= types["gpu"]["min_workers"] <= types["gpu"]["max_workers"]
    assert found["idle_timeout_minutes"] > 0


def test_all_pods_of_the_job_have_image_results_and_keys(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        [mount] = container["volumeMounts"]
        [volume] = pod["volumes"]

        assert container["image"] == read("ray_cluster.yaml")["docker"]["image"]
        assert (mount["mountPath"], mount["name"]) == (RESULTS, volume["name"])
        assert volume["persistentVolumeClaim"]["claimName"]
        assert str(pod["securityContext"]["runAsUser"]) == in_image(r"--uid (\d+)")
        assert container["envFrom"] == [{"secretRef": {"name": "alrq-keys", "optional": True}}]
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_job_runs_a_study_of_this_version_once(job: dict[str, Any]) -> None:
    python, script, *flags = shlex.split(job["spec"]["entrypoint"])
    given = vars(build_parser().parse_args(flags))
    pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")

    assert (python, script) == ("python", in_image(r"WORKDIR (\S+)") + "/run_search.py")
    assert (given["address"], given["output_dir"]) == ("auto", RESULTS)
    assert job["spec"]["backoffLimit"] == 0
    assert f"\nray=={job['spec']['rayClusterSpec']['rayVersion']}\n" in pins


def test_the_image_has_what_kuberay_asks_pods_with() -> None:
    assert "wget" in in_image(r"FROM base AS cuda\n(?:#.*\n)*RUN ([\s\S]*?)\nRUN ")
