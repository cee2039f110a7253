"""The number of cores, from affinity and from control groups of both versions, with fake trees."""

import subprocess
import sys
from pathlib import Path

import pytest

from alrq_core.memory.cores import usable_cores

CORES = 8


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(CORES)), raising=False)


def cores(folder: Path, own: str, files: dict[str, str]) -> int:
    """Return the cores with these control groups, of which `own` names the process's."""
    (folder / "own").write_text(own, encoding="utf-8")
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return usable_cores(folder / "cgroup", folder / "own")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000\n", CORES),
        ("300000 100000\n", 3),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("1600000 100000\n", CORES),
    ],
)
def test_a_limit_of_version_2_rounds_down(tmp_path: Path, limit: str, expected: int) -> None:
    assert cores(tmp_path, "0::/\n", {"cpu.max": limit}) == expected


def test_the_least_of_all_groups_above_counts(tmp_path: Path) -> None:
    files = {
        "cpu.max": "max 100000",
        "user/cpu.max": "200000 100000",
        "user/job/cpu.max": "400000 100000",
        "other/cpu.max": "100000 100000",
    }

    assert cores(tmp_path, "0::/user/job\n", files) == 2
    assert cores(tmp_path, "0::/user/job/without/files\n", files) == 2
    assert cores(tmp_path, "0::/\n", files) == CORES


@pytest.mark.parametrize(("quota", "expected"), [("-1\n", CORES), ("350000\n", 3), ("20000\n", 1)])
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_a_limit_of_version_1(tmp_path: Path, mount: str, quota: str, expected: int) -> None:
    own = f"5:memory:/else\n4:{mount}:/job\n1:cpuset:/\n0::/\n"
    files = {
        f"{mount}/cpu.cfs_quota_us": "-1\n",
        f"{mount}/cpu.cfs_period_us": "100000\n",
        f"{mount}/job/cpu.cfs_quota_us": quota,
        f"{mount}/job/cpu.cfs_period_us": "100000\n",
    }

    assert cores(tmp_path, own, files) == expected


def test_a_containers_own_group_may_be_mounted_at_the_top(tmp_path: Path) -> None:
    """Version 1 shows the host's path in a container that sees its own group only."""
    files = {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}

    assert cores(tmp_path, "4:cpu:/docker/0123\n", files) == 2


def test_a_path_that_begins_outside_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000", encoding="ascii")

    assert cores(tmp_path, "0::/../job\n", {"cpu.max": "300000 100000"}) == 3


def test_without_control_groups_all_cores_count(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path / "neither") == CORES


def test_cores_are_counted_without_torch() -> None:
    code = "import sys, alrq_core.memory.cores; assert not {'torch', 'numpy'} & set(sys.modules)"

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
