"""Clusters that lose what they run on: the study is as if they hadn't."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.s3 import Server, serving
from tests.test_kills import BUDGET, ROOT, command, events, finished, story
from tests.waiting import output_of, until
from tune.study.store import Store

# More of them take minutes.
KILLS = int(os.environ.get("ALRQ_TEST_KILLS", "2"))
# Of what nodes share in memory, the least that Ray takes.
STORE_BYTES = 80 * 10**6
ENDS = ("completed", "stopped", "failed")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A store; what a cluster starts later has the keys."""
    with serving(monkeypatch) as found:
        yield found


@pytest.fixture
def cluster(server: Server) -> Iterator[Cluster]:
    """A head on which nothing trains, and two nodes with one processor each."""
    small = {"object_store_memory": STORE_BYTES}
    head = {"num_cpus": 0, "include_dashboard": False, **small}
    found = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        found.add_node(num_cpus=1, **small)
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def undisturbed(
    bert_folder: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Any, ...]]:
    """What is measured on this machine alone."""
    output = tmp_path_factory.mktemp("undisturbed")
    finished(started(command(bert_folder, reviews, output), output / "cache"))
    return story(output)


def started(arguments: list[str], cache: Path) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        arguments, text=True, cwd=ROOT, env={**os.environ, "HF_HOME": str(cache)}, **pipes
    )


def ended(output: Path) -> Counter[str]:
    """Return how often each trial ended."""
    return Counter(event["trial"] for event in events(output) if event["event"] in ENDS)


def check_complete(output: Path, undisturbed: list[tuple[Any, ...]]) -> None:
    """Check that nothing was lost, and that no trial ended twice."""
    assert story(output) == undisturbed
    assert set(ended(output).values()) == {1}
    proposed = [event["trial"] for event in events(output) if event["event"] == "proposed"]
    assert len(proposed) == len(set(proposed)) == len(ended(output))


def test_a_node_that_is_lost_at_half_time_changes_nothing(
    cluster: Cluster,
    bert_folder: Path,
    reviews: Path,
    tmp_path: Path,
    undisturbed: list[tuple[Any, ...]],
) -> None:
    half = sum(("event", "completed") in event for event in undisturbed) // 2
    arguments = [*command(bert_folder, reviews, tmp_path), "--address", cluster.address]
    process = started(arguments, tmp_path / "cache")
    until(lambda: len(ended(tmp_path)) >= half, process)
    lost = max(cluster.worker_nodes, key=lambda node: node.unique_id)
    cluster.remove_node(lost, allow_graceful=False)
    finished(process)

    assert half <= len(ended(tmp_path))
    check_complete(tmp_path, undisturbed)


def test_drivers_that_are_killed_at_random_moments_lose_and_double_nothing(
    cluster: Cluster,
    bert_folder: Path,
    reviews: Path,
    tmp_path: Path,
    undisturbed: list[tuple[Any, ...]],
) -> None:
    """Each lives for a while after its first event, so that all come to something."""
    study, generator = tmp_path / "studies/s", random.Random(0)
    arguments = [*command(bert_folder, reviews, tmp_path), "--address", cluster.address]
    resume = [sys.executable, str(ROOT / "run_search.py"), "--resume", str(study)]
    resume += ["--budget", str(BUDGET), "--address", cluster.address]
    for _ in range(KILLS):
        before, process = len(events(tmp_path)), started(arguments, tmp_path / "cache")
        until(lambda before=before: len(events(tmp_path)) != before, process)
        time.sleep(generator.uniform(0, 8))
        process.send_signal(signal.SIGKILL)
        output_of(process)
        arguments = resume
    finished(started(resume, tmp_path / "cache"))

    check_complete(tmp_path, undisturbed)


# Keeps twice as much in the head's object store as it holds, until its input ends.
FILL = f"""
import sys, numpy, ray
ray.init(address=sys.argv[1], log_to_driver=False)
kept = [ray.put(numpy.full({STORE_BYTES // 8}, number, numpy.uint8)) for number in range(16)]
print("full", flush=True)
sys.stdin.read()
assert [ray.get(one)[0] for one in kept] == list(range(16))
"""


@pytest.fixture
def full(cluster: Cluster) -> Iterator[None]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    arguments = [sys.executable, "-c", FILL, cluster.address]
    with subprocess.Popen(arguments, **pipes) as filling:
        assert filling.stdout is not None
        assert any(line == "full\n" for line in filling.stdout)
        yield
        output_of(filling)
    assert filling.returncode == 0


def test_nodes_that_share_only_a_store_lose_nothing(
    cluster: Cluster,
    full: None,
    server: Server,
    bert_folder: Path,
    reviews: Path,
    tmp_path: Path,
    undisturbed: list[tuple[Any, ...]],
) -> None:
    """Memory for objects is full, the store fails for a while, a node is lost, and then the driver
    with its disk.
    """
    half = sum(("event", "completed") in event for event in undisturbed) // 2
    joined = ["--address", cluster.address, "--storage", server.uri]
    first, second = tmp_path / "first", tmp_path / "second"
    process = started([*command(bert_folder, reviews, first), *joined], tmp_path / "cache")
    until(lambda: len(ended(first)) >= 1, process)
    server.failing = True
    time.sleep(5)
    server.failing = False
    until(lambda: len(ended(first)) >= half, process)
    assert not list((first / "studies/s").glob("checkpoints/*"))
    lost = max(cluster.worker_nodes, key=lambda node: node.unique_id)
    cluster.remove_node(lost, allow_graceful=False)
    process.send_signal(signal.SIGKILL)
    output_of(process)
    shutil.rmtree(first)
    resume = [sys.executable, str(ROOT / "run_search.py"), "--output-dir", str(second)]
    resume += ["--resume", Store(server.uri).below("s").uri, "--budget", str(BUDGET)]
    finished(started([*resume, "--address", cluster.address], tmp_path / "cache"))

    check_complete(second, undisturbed)
    kept = {path.stem for path in (second / "studies/s/checkpoints").iterdir()}
    tested = {event["trial"] for event in events(second) if event["event"] == "tested"}
    assert tested <= kept
    assert not [name for name in Store(server.uri).names() if name.endswith((".tar", "owner.json"))]
