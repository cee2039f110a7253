"""What a machine that trains has, as far as plans depend on it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from alrq_core.memory.cores import usable_cores
from alrq_core.memory.machine import pick_compute_dtype, pick_device, processor_name
from search_spaces.costs import format_gigabytes

# A worker that has imported torch, transformers, PEFT, bitsandbytes, HQQ and Ray holds 660 MB of
# resident memory on Linux before it loads a model.
PROCESS_BASELINE_BYTES = 700_000_000
# What is free of a card, before a process of the study is on it.
CARDS: dict[str, Callable[[], int]] = {
    "cuda": lambda: torch.cuda.mem_get_info()[0],
    "mps": lambda: torch.mps.recommended_max_memory(),
}
# Of one process on a card, beside its tensors: CUDA's context, torch's kernels, the workspace of
# cuBLAS.
CONTEXT_BYTES = 600_000_000
# Part of a card that is planned for: allocators keep blocks that they can't use.
USED_PART = 0.9


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine, or what several have in common.

    Attributes:
        device: `cpu`, `cuda` or `mps`.
        name: Of its card or processor.
        memory_bytes: What is free of a card, or what machine and container have; None where
            that is unknown.
        cores: Processes that train on its CPU at the same time.
        compute_dtype: Type of its matrix products, as torch names it.
        multiprocessors: Of a CUDA card.
    """

    device: str
    name: str
    memory_bytes: int | None
    cores: int
    compute_dtype: str
    multiprocessors: int = 1

    @staticmethod
    def here(device: str | None = None, cpu_dtype: str | None = None) -> "Host":
        """Return this machine.

        Args:
            device: Type of the device that shall train; None for the fastest.
            cpu_dtype: See `pick_compute_dtype`.

        Raises:
            ValueError: It has no such device.
        """
        found = pick_device(device)
        name, processors = processor_name(), 1
        if found.type == "cuda":
            card = torch.cuda.get_device_properties(0)
            name, processors = card.name, card.multi_processor_count
        memory = CARDS[found.type]() if found.type in CARDS else machine_bytes()
        return Host(
            device=found.type,
            name=name,
            memory_bytes=memory,
            cores=usable_cores(),
            compute_dtype=str(pick_compute_dtype(found, cpu_dtype)).removeprefix("torch."),
            multiprocessors=processors,
        )

    def describe(self) -> str:
        """Return what it has, for people."""
        memory = (
            "memory unknown" if self.memory_bytes is None else format_gigabytes(self.memory_bytes)
        )
        cores = f"{self.cores} core{'' if self.cores == 1 else 's'}"
        return f"{self.name}, {memory}{' free' if self.device == 'cuda' else ''}, {cores}"

    @property
    def dtype(self) -> torch.dtype:
        """Type of its matrix products."""
        found: torch.dtype = getattr(torch, self.compute_dtype)
        return found

    def limit_bytes(self, most: int | None = None) -> int | None:
        """Return the memory that a trial may use; None where that is unknown.

        Of a card: what is free, without what a process takes that has no tensor there yet. Of a
        CPU: a core's share, without what a process takes before it loads a model. Such processes
        also share the base model, see `alrq_core.memory.prediction.base_bytes`.

        Args:
            most: The device counts as having no more than that; None for all it has.

        Raises:
            ValueError: The processes leave nothing to each other.
        """
        known = [value for value in (self.memory_bytes, most) if value is not None]
        if not known:
            return None
        memory = min(known)
        if self.device == "mps":
            # Metal says itself what it recommends.
            return memory
        if self.device == "cuda":
            return int(USED_PART * memory) - CONTEXT_BYTES
        share = memory // self.cores - PROCESS_BASELINE_BYTES
        if share <= 0:
            raise ValueError(
                f"`--device-memory` must leave each of {self.cores} workers more than "
                f"{format_gigabytes(PROCESS_BASELINE_BYTES)}, got {format_gigabytes(memory)}. Give "
                "fewer cores (taskset -c 0), or use a machine with more memory."
            )
        return share


def common(hosts: Sequence[Host]) -> Host:
    """Return what all of some machines with the same type of device have."""
    dtypes = {host.compute_dtype for host in hosts}
    memory = [host.memory_bytes for host in hosts if host.memory_bytes is not None]
    # Cards before Ampere lack bfloat16, processors without its instructions are slow in it.
    narrow = {"cpu": "float32", "cuda": "float16", "mps": "float32"}[hosts[0].device]
    return Host(
        device=hosts[0].device,
        name=" or ".join(dict.fromkeys(host.name for host in hosts)),
        memory_bytes=min(memory, default=None),
        cores=min(host.cores for host in hosts),
        compute_dtype=dtypes.pop() if len(dtypes) == 1 else narrow,
        multiprocessors=min(host.multiprocessors for host in hosts),
    )


def machine_bytes(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the memory of this machine or its container; None where that is unknown.

    Args:
        meminfo: Linux's report on its memory.
        cgroup: Where the container's limits are, version 1 or 2.
    """
    limits = [_physical_bytes(meminfo)]
    # Version 2 writes `max` and version 1 a number near 2**63 where there is no limit.
    for path in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        text = path.read_text(encoding="ascii").strip() if path.is_file() else ""
        limits.append(int(text) if text.isdigit() else None)
    return min((value for value in limits if value is not None), default=None)


def _physical_bytes(meminfo: Path) -> int | None:
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    if not hasattr(os, "sysconf"):
        return None
    # Other systems than Linux.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
