"""Ray starts here, early, and leaves nothing behind when a study can't start."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from alrq_core.memory.cores import MOST_TRIALS
from tests.waiting import HANGS_SECONDS, until
from tune.on_ray import cluster
from tune.on_ray.cluster import ray_started, worker_environment

ROOT = Path(__file__).parents[1]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Ray is started with, without starting it."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "init", lambda **kwargs: calls.append(kwargs))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster, "_check_answers", lambda _: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return calls


def test_ray_starts_here_and_without_a_dashboard(given: list[dict[str, Any]]) -> None:
    """`ray.init()` joins whatever cluster it finds; the dashboard takes 260 MB and 3 s."""
    with ray_started(None):
        pass
    with ray_started("10.0.0.1:6379"):
        pass

    assert given[0]["address"] == "local"
    assert given[0]["include_dashboard"] is False
    assert given[1]["address"] == "10.0.0.1:6379"
    assert given[1]["runtime_env"]["env_vars"] == worker_environment()


@pytest.mark.parametrize(
    ("cards", "device", "asked", "workers"),
    [
        (0, None, None, 40),
        (1, None, None, MOST_TRIALS),
        (2, "cuda", None, 2 * MOST_TRIALS),
        (2, "cuda", 1, 2),
        (1, "cuda", 64, 40),
        (2, "cpu", None, 40),
    ],
)
def test_as_many_workers_get_ready_as_will_be_used(
    given: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    cards: int,
    device: str | None,
    asked: int | None,
    workers: int,
) -> None:
    for number in range(cards):
        (tmp_path / "gpus" / str(number)).mkdir(parents=True)
    monkeypatch.setattr(cluster, "NVIDIA_CARDS", tmp_path / "gpus")
    monkeypatch.setattr(cluster, "usable_cores", lambda: 40)
    with ray_started(None, device, asked):
        pass

    assert set(cluster.PRELOADED.items()).issubset(os.environ.items())
    assert given[0]["num_cpus"] == workers


@pytest.mark.parametrize(
    ("address", "raised"),
    [
        ("auto", ConnectionError("Could not find any running Ray instance.")),
        ("ray://127.0.0.1:10001", ConnectionError("ray client connection timeout")),
        ("nonsense", ValueError("Invalid address format: nonsense")),
        ("10.0.0.1:6379", RuntimeError("Version mismatch:\n  the cluster has Ray 2.40")),
    ],
)
def test_a_cluster_that_can_not_be_joined_is_named_by_its_flag(
    given: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, address: str, raised: Exception
) -> None:
    def fail(**_: Any) -> None:
        raise raised

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ValueError) as caught, ray_started(address):
        pass

    message = str(caught.value)
    assert message.startswith(f"`--address` must be a Ray cluster that answers, got '{address}' (")
    assert " ".join(str(raised).split()).removesuffix(".") in message
    assert "`ray start --head`" in message and "\n" not in message


def test_an_address_at_which_nobody_listens_answers_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray itself tries for minutes."""
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unheard.getsockname()[1]}"
        with pytest.raises(ValueError, match="Connection refused"), ray_started(address):
            pass


def test_a_path_that_is_too_long_for_sockets_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("l" * 100)
    monkeypatch.setattr(os, "environ", os.environ | {"RAY_TMPDIR": str(long)})
    with pytest.raises(ValueError) as caught, ray_started(None):
        pass

    message = str(caught.value)
    assert message.startswith("`RAY_TMPDIR` must be a folder with a short path")
    assert str(long) in message and "107 bytes" in message and "\n" not in message


def test_every_library_gets_one_thread_before_it_is_loaded() -> None:
    environment = worker_environment()
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

    assert [environment[name] for name in names] == ["1"] * len(names)


def test_the_compiler_waits_until_something_is_compiled() -> None:
    code = (
        "import sys, torch; compile = torch.compile; import tune.on_ray.warm, hqq.core.quantize; "
        "assert 'torch._inductor.compile_fx' not in sys.modules; "
        "assert torch.compile is compile; "
        "add = tune.on_ray.warm._compile_when_called(backend='eager')(lambda x: x + 1); "
        "assert add(torch.ones(2)).tolist() == [2.0, 2.0]; "
        "named = tune.on_ray.warm._compile_when_called(model=torch.neg, backend='eager'); "
        "assert named(torch.ones(2)).tolist() == [-1.0, -1.0]"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert process.returncode == 0, process.stderr


def test_a_study_that_can_not_start_leaves_no_process_behind(tmp_path: Path) -> None:
    """Its memory limit is found to be too low when Ray already runs."""
    mark = f"alrq-test-{os.getpid()}-{time.monotonic_ns()}"
    process = subprocess.run(
        [sys.executable, str(ROOT / "run_search.py"), "--max-memory", "1MB"],
        capture_output=True,
        text=True,
        timeout=HANGS_SECONDS,
        cwd=tmp_path,
        env=os.environ | {"ALRQ_TEST_MARK": mark},
    )

    assert process.returncode == 2
    assert process.stderr.startswith("run_search: `--max-memory` must be at least 7.04 MB")
    assert process.stderr.count("\n") == 1
    assert process.stdout == ""
    assert not list(tmp_path.iterdir())
    until(lambda: not marked(mark))


def marked(mark: str) -> list[str]:
    """Return the processes whose environment holds the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found
