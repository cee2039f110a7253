"""What a machine that trains has, and what its trials may use of it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alrq_core.memory import host as module
from alrq_core.memory import machine
from alrq_core.memory.cores import usable_cores
from alrq_core.memory.host import (
    CONTEXT_BYTES,
    PROCESS_BASELINE_BYTES,
    USED_PART,
    Host,
    common,
    machine_bytes,
)

WHOLE = 16 * 10**9 // 1024 * 1024


def host(device: str = "cpu", memory: int | None = WHOLE, **changes: Any) -> Host:
    found = Host(device=device, name="one", memory_bytes=memory, cores=2, compute_dtype="bfloat16")
    return replace(found, **changes)


def meminfo(folder: Path) -> Path:
    path = folder / "meminfo"
    path.write_text(f"MemTotal:       {WHOLE // 1024} kB\nMemFree:          100 kB\n")
    return path


def test_a_machine_has_what_its_system_reports(tmp_path: Path) -> None:
    assert machine_bytes(meminfo(tmp_path), tmp_path) == WHOLE


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [("4000000000\n", 4_000_000_000), ("max\n", WHOLE), ("9223372036854771712\n", WHOLE)],
)
def test_a_container_may_have_less(tmp_path: Path, name: str, text: str, expected: int) -> None:
    """Version 2 of control groups says `max` for no limit, version 1 a number near 2**63."""
    limit = tmp_path / name
    limit.parent.mkdir(exist_ok=True)
    limit.write_text(text)

    assert machine_bytes(meminfo(tmp_path), tmp_path) == expected


@pytest.mark.parametrize("cores", [1, 4])
def test_a_cpu_shares_its_memory_among_workers(cores: int) -> None:
    assert host(cores=cores).limit_bytes() == WHOLE // cores - PROCESS_BASELINE_BYTES


def test_too_many_workers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must leave each of 64 workers .*Give fewer cores"):
        host(cores=64).limit_bytes()


def usable(free: int) -> int:
    return int(USED_PART * free) - CONTEXT_BYTES


def test_of_cards_what_is_free_is_planned_for() -> None:
    assert host("cuda", 20_000_000_000).limit_bytes() == usable(20_000_000_000)
    assert host("mps", 11_000_000_000).limit_bytes() == 11_000_000_000


def test_a_device_can_count_as_a_smaller_one_and_not_as_a_larger_one() -> None:
    most = 8_000_000_000
    assert host("cuda", 24_000_000_000).limit_bytes(most) == usable(most)
    assert host("cuda", 24_000_000_000).limit_bytes(10**12) == usable(24_000_000_000)
    assert host().limit_bytes(most) == most // 2 - PROCESS_BASELINE_BYTES
    assert host(memory=None).limit_bytes() is None
    assert host(memory=None).limit_bytes(most) == most // 2 - PROCESS_BASELINE_BYTES


def test_this_machine_is_asked_for_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Host.here("cpu", "float32")
    assert (here.device, here.cores, here.compute_dtype) == ("cpu", usable_cores(), "float32")
    assert here.memory_bytes == machine_bytes()
    assert here.dtype == torch.float32

    card = SimpleNamespace(name="NVIDIA L4", multi_processor_count=58)
    monkeypatch.setattr(machine, "found_devices", lambda: ("cuda", "cpu"))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: card)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda _: False)
    monkeypatch.setitem(module.CARDS, "cuda", lambda: 20_000_000_000)
    there = Host.here()
    assert (there.device, there.multiprocessors, there.compute_dtype) == ("cuda", 58, "float16")
    assert there.describe().startswith("NVIDIA L4, 20.00 GB free, ")


def test_what_machines_have_in_common_is_the_least_of_each() -> None:
    first = host("cuda", 24_000_000_000, name="NVIDIA L4", cores=4, multiprocessors=58)
    second = host("cuda", 80_000_000_000, name="NVIDIA H100", cores=2, multiprocessors=132)
    both = common([first, second, first])

    assert both == replace(first, name="NVIDIA L4 or NVIDIA H100", cores=2)
    old = replace(second, compute_dtype="float16", memory_bytes=None)
    assert common([first, old]).compute_dtype == "float16"
    assert common([first, old]).memory_bytes == 24_000_000_000
    slow = host(compute_dtype="float32")
    assert common([host(), slow]).compute_dtype == "float32"
    assert common([host(), host()]).compute_dtype == "bfloat16"
