"""How many cores this process may use, asked without torch."""

import os
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
# Trials that share a GPU unless a user asks for more. One of MiniLM keeps an H100 busy for 4 to 9 %
# of the time, and four did 5 times the steps of one.
MOST_TRIALS = 8


def usable_cores(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int:
    """Return the cores that this process may use, at least 1: fractions round down.

    The least of the cores that it may run on and of the processor time that its control groups
    allow, its own and all above it.

    Args:
        cgroups: Where the hierarchies of control groups are mounted, version 1 or 2 (cgroups(7)).
        own: The paths of this process in them.
    """
    pinned = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if pinned else os.cpu_count() or 1
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for mount in _mounts(cgroups, controllers):
            for folder in _with_parents(mount, path):
                limit = _limit(folder)
                cores = cores if limit is None else min(cores, limit)
    return max(1, cores)


def _mounts(cgroups: Path, controllers: str) -> tuple[Path, ...]:
    """Return where a hierarchy that limits processor time may be mounted."""
    if not controllers:
        # Version 2, which has one hierarchy.
        return (cgroups,)
    return (cgroups / controllers, cgroups / "cpu") if "cpu" in controllers.split(",") else ()


def _with_parents(mount: Path, path: str) -> list[Path]:
    """Return the folders of a control group and of all above it, as far as they are mounted.

    Within a container the path can begin outside of what it sees: then only the top counts.
    """
    inner = PurePosixPath(path.lstrip("/"))
    if ".." in inner.parts:
        return [mount]
    return [mount / inner, *(mount / parent for parent in inner.parents)]


def _limit(folder: Path) -> int | None:
    """Return the whole cores' worth of time that a control group may take; None for no limit."""
    both = folder / "cpu.max"
    if both.is_file():
        quota, _, period = both.read_text(encoding="ascii").strip().partition(" ")
    elif (folder / "cpu.cfs_quota_us").is_file() and (folder / "cpu.cfs_period_us").is_file():
        quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
        period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
    else:
        return None
    # Without a limit, version 2 writes `max` and version 1 writes -1.
    return int(quota) // int(period) if quota.isdigit() else None
