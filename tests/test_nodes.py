"""What the nodes of a cluster are asked, and what a study does where they have too little."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from alrq_core.memory.host import Host
from tests.test_ray_study import command, run
from tests.tiny import save_bert, save_reviews
from tune.on_ray import nodes
from tune.on_ray.nodes import Places, amounts, hosts, of_ray, places, wait_for_room
from tune.on_ray.shared import check_shared
from tune.study.store import Store

MB = 10**6


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A head without processors, two nodes of one kind and a larger one, all small."""
    head = {"num_cpus": 0, "include_dashboard": False, "memory": 900 * MB}
    found = Cluster(initialize_head=True, head_node_args=head)
    for cpus, memory in ((1, 500 * MB), (1, 600 * MB), (2, 650 * MB)):
        found.add_node(num_cpus=cpus, memory=memory)
    ray.init(address=found.address, log_to_driver=False)
    yield found.address
    ray.shutdown()
    found.shutdown()


def told(_: str) -> None:
    raise AssertionError("nothing is waited for")


def test_each_node_that_trains_is_planned_for(cluster: str) -> None:
    """Of a kind, by the one with the least memory; the head has none to train on."""
    found = hosts(None, "float32", print)
    sizes = Counter((host.cores, host.memory_bytes) for host in found)

    assert sizes == {(1, 500 * MB): 2, (2, 650 * MB): 1}
    here = Host.here("cpu", "float32")
    assert {(host.device, host.name, host.compute_dtype) for host in found} == {
        ("cpu", here.name, "float32")
    }


@pytest.mark.parametrize(
    ("request_", "needed"),
    [
        ({"CPU": 1.0, "memory": 28.7e9}, "1 CPU, 28.70 GB of memory"),
        ({"CPU": 1.0, "GPU": 0.25}, "1 CPU, 0.25 GPU"),
        ({"CPU": 3.0}, "3 CPU"),
    ],
)
def test_what_no_node_can_hold_is_refused_with_both_figures(
    cluster: str, request_: dict[str, float], needed: str
) -> None:
    with pytest.raises(ValueError) as caught:
        wait_for_room(request_, told)

    said = str(caught.value)
    assert f"which takes {needed}, got nodes with 0.90 GB of memory; 2 CPU, 0.65 GB of me" in said
    assert "and no autoscaler that could start another. Add a larger node" in said


def test_what_a_node_can_hold_is_not_waited_for(cluster: str) -> None:
    wait_for_room({"CPU": 2.0, "memory": 600.0 * MB}, told)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"CPU": 1.0}, 4),
        ({"CPU": 1.0, "memory": 600.0 * MB}, 2),
        ({"CPU": 1 / 3}, 12),
        ({"CPU": 1.0, "GPU": 0.25}, 0),
    ],
)
def test_places_are_counted_on_all_nodes(
    cluster: str, request_: dict[str, float], expected: int
) -> None:
    """One more trial waits, where nothing grows."""
    assert places(request_) == expected
    assert Places(request_)() == expected + 1


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_the_cluster_lacks_is_refused(cluster: str, device: str) -> None:
    with pytest.raises(ValueError, match=r"must be cpu or cuda|which takes 1 CPU, 1 GPU, got"):
        hosts(device, None, told)


def test_a_folder_that_all_see_stays_as_it_is(cluster: str, tmp_path: Path) -> None:
    check_shared(Store(str(tmp_path)), "--output-dir", print)

    assert not list(tmp_path.iterdir())


def test_a_folder_that_only_this_process_sees_is_refused(cluster: str, tmp_path: Path) -> None:
    """What a number of an open file names is different in each process."""
    opened = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(
            ValueError, match="`--output-dir` must be a place that all no"
        ) as caught:
            check_shared(Store(f"/proc/self/fd/{opened}"), "--output-dir", print)
    finally:
        os.close(opened)

    assert "does not see there what this machine writes" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_another_release_on_a_node_is_refused(
    cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes.importlib.metadata, "version", lambda _: "0.0.1")
    with pytest.raises(ValueError, match=r"whose nodes have alrq 0\.0\.1, as this machine has"):
        hosts(None, "float32", print)


def test_a_study_that_fits_nowhere_ends_and_writes_nothing(cluster: str, tmp_path: Path) -> None:
    """By the plan, and where the user plans for more, by what each trial asks for."""
    bert, reviews = save_bert(tmp_path / "bert"), save_reviews(tmp_path / "reviews.csv")
    whole = ("--accumulation-steps", "1")
    for more, expected in (
        ((), "must leave each of 1 workers more than 0.70 GB, got 0.50 GB"),
        (whole, "must be a cluster with a node that can hold a trial, which takes 1 CPU, 0.7"),
    ):
        process = run(command(bert, reviews, tmp_path / "out", "--address", cluster, *more))

        assert process.returncode == 2, process.stdout + process.stderr
        assert expected in process.stderr
        assert process.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_requests_are_said_in_words() -> None:
    request = of_ray({"cpu": 1.0, "gpu": 0.0, "memory": 1.5e9})

    assert request == {"CPU": 1.0, "memory": 1.5e9}
    assert amounts(request) == "1 CPU, 1.50 GB of memory"
    assert amounts(of_ray({"cpu": 2.0, "gpu": 0.25})) == "2 CPU, 0.25 GPU"
