"""Cores, devices and compute types are found from the machine, by measurement where it matters."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from alrq_core import machine


@pytest.fixture(autouse=True)
def forget_measurement() -> Iterator[None]:
    machine.fastest_cpu_dtype.cache_clear()
    yield
    machine.fastest_cpu_dtype.cache_clear()


@pytest.mark.parametrize(
    ("has_it", "seconds", "expected"),
    [
        (True, {torch.float32: 2.0, torch.bfloat16: 1.0}, "bfloat16"),
        (True, {torch.float32: 1.0, torch.bfloat16: 2.0}, "float32"),
        (True, {torch.float32: 1.0, torch.bfloat16: 0.95}, "float32"),
        (False, {torch.float32: 2.0, torch.bfloat16: 1.0}, "float32"),
    ],
)
def test_bfloat16_is_used_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch,
    has_it: bool,
    seconds: dict[torch.dtype, float],
    expected: str,
) -> None:
    monkeypatch.setattr(machine, "_cpu_has_bfloat16", lambda: has_it)
    monkeypatch.setattr(machine, "_matmul_seconds", seconds.__getitem__)

    assert machine.fastest_cpu_dtype() == expected
    assert machine.pick_compute_dtype(torch.device("cpu")) == getattr(torch, expected)


def test_a_recorded_type_is_kept_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "fastest_cpu_dtype", lambda: pytest.fail("measured"))

    assert machine.pick_compute_dtype(torch.device("cpu"), "bfloat16") == torch.bfloat16


def test_measuring_leaves_the_threads_alone() -> None:
    before = torch.get_num_threads()
    machine.fastest_cpu_dtype()

    assert torch.get_num_threads() == before
    assert machine._matmul_seconds(torch.float32) > 0


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_computes_in_bfloat16_where_it_has_it(
    monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda _: supported)
    expected = torch.bfloat16 if supported else torch.float32

    assert machine.pick_compute_dtype(torch.device("cuda"), "float32") == expected


@pytest.mark.parametrize(
    ("limit", "expected"), [("max 100000", 8), ("300000 100000", 3), ("50000 100000", 1)]
)
def test_cores_respect_the_containers_limit(
    monkeypatch: pytest.MonkeyPatch, limit: str, expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: limit)

    assert machine.usable_cores() == expected


def test_peak_memory_follows_an_allocation() -> None:
    device = torch.device("cpu")
    machine.reset_peak_memory(device)
    before = machine.peak_memory_bytes(device)
    block = torch.ones(50_000_000)
    after = machine.peak_memory_bytes(device)

    assert after - before > 0.9 * block.nbytes


def test_the_machine_is_described_for_the_results() -> None:
    description = machine.describe_machine()

    assert description["cores"] == machine.usable_cores()
    assert description["compute_dtype"] in {"float32", "bfloat16"}
