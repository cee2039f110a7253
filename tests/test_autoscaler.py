"""What an autoscaler says, and what it starts for a study."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import ray

from tests.waiting import HANGS_SECONDS, until
from tune.on_ray import autoscaler as module
from tune.on_ray import nodes
from tune.on_ray.autoscaler import Autoscaler
from tune.on_ray.nodes import hosts, wait_for_room

# Of the head, as its provider of nodes calls it.
HEAD = "f" * 51 + "00000"


@pytest.fixture
def growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A head whose autoscaler starts nodes of one processor, in processes on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    lists = ("initialization_commands", "setup_commands", "cluster_synced_files")
    starting = ("head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    config = tmp_path / "cluster.json"
    content: dict[str, Any] = {
        "cluster_name": "growing",
        "max_workers": 1,
        "provider": {
            "type": "external",
            "module": provider,
            "launch_multiple": True,
            "head_node_id": HEAD,
            "gcs_address": address,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "small": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 1},
        },
        "auth": {},
        **{name: [] for name in (*lists, *(f"{name}_commands" for name in starting))},
    }
    config.write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    settings = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    }
    host, port = address.split(":")
    head = subprocess.Popen(
        [
            *(Path(sys.executable).with_name("ray"), "start", "--head", "--block"),
            *("--num-cpus=0", f"--node-ip-address={host}", f"--port={port}"),
            *("--include-dashboard=false", f"--autoscaling-config={config}"),
        ],
        env=os.environ | settings,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ray.init(address=address, log_to_driver=False)
        yield address
    finally:
        ray.shutdown()
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(HANGS_SECONDS)
        finally:
            head.kill()


def test_an_autoscaler_starts_what_it_can_and_refuses_the_rest(
    growing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first its own head counts as coming."""
    monkeypatch.setattr(nodes, "VERDICT_SECONDS", HANGS_SECONDS)
    settled = Autoscaler(coming=(), failed=(), refused=())
    until(lambda: module.autoscaler() == settled)
    with pytest.raises(ValueError, match=r"which takes 1 CPU, 28\.70 GB of memory") as no:
        wait_for_room({"CPU": 1.0, "memory": 28.7e9}, lambda _: None)
    assert "and its autoscaler can start no larger one" in str(no.value)

    assert [host.cores for host in hosts(None, "float32", lambda _: None)] == [1]


@pytest.mark.parametrize(("cpus", "refused"), [(0.0, True), (1.0, False)])
def test_a_node_that_has_come_and_is_not_coming_any_more_is_waited_for(
    cpus: float, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first worker, for which it is there, has not started yet."""
    request, found = {"CPU": 1.0}, list[nodes.Node]()

    def waited(*_: object) -> Iterator[float]:
        found.append(nodes.Node(id="n", address="here", resources={"CPU": cpus}))
        yield nodes.VERDICT_SECONDS + 1.0

    task, settled = MagicMock(), Autoscaler(coming=(), failed=(), refused=())
    monkeypatch.setattr(nodes, "nodes", lambda: found)
    monkeypatch.setattr(nodes, "autoscaler", lambda: settled)
    monkeypatch.setattr(nodes, "_nothing", task)
    monkeypatch.setattr(nodes, "_until_done", waited)
    monkeypatch.setattr(nodes.ray, "cancel", print)
    if refused:
        with pytest.raises(ValueError, match="its autoscaler began none in 21 s"):
            wait_for_room(request, print)
    else:
        wait_for_room(request, print)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (None, None),
        ({"active_nodes": {"node_abc": 1}}, None),
        (
            {
                "active_nodes": {"head": 1},
                "pending_nodes": [["10.0.0.2", "gpu", "setting-up"]],
                "pending_launches": {"cpu": 1},
                "failed_nodes": [["10.0.0.3", "gpu"], ["10.0.0.4", "gpu"]],
            },
            Autoscaler(coming=("cpu", "gpu"), failed=("gpu",), refused=()),
        ),
    ],
)
def test_the_first_version_reports_what_it_starts(
    report: dict[str, Any] | None, expected: Autoscaler | None
) -> None:
    """Each head runs one, also where there is nothing to start."""
    assert (
        module._first_version({} if report is None else {"autoscaler_report": report}) == expected
    )
