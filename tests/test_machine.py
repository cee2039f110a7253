"""Cores, devices and compute types are found from the machine, by measurement where it matters."""

from collections.abc import Iterator

import pytest
import torch

from alrq_core.memory import machine
from alrq_core.memory.cores import usable_cores
from alrq_core.randomness import Randomness


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
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda _: supported)
    expected = torch.bfloat16 if supported else torch.float16

    assert machine.pick_compute_dtype(torch.device("cuda"), "float32") == expected


def test_peak_memory_follows_an_allocation() -> None:
    device = torch.device("cpu")
    machine.reset_peak_memory(device)
    before = machine.peak_memory_bytes(device)
    block = torch.ones(50_000_000)
    after = machine.peak_memory_bytes(device)

    assert after - before > 0.9 * block.nbytes


def test_the_machine_is_described_for_the_results() -> None:
    description = machine.describe_machine()

    assert description["cores"] == usable_cores()
    assert description["compute_dtype"] in {"float32", "bfloat16"}


@pytest.mark.parametrize(
    ("cuda", "mps", "found"),
    [
        (True, False, ("cuda", "cpu")),
        (False, True, ("mps", "cpu")),
        (False, False, ("cpu",)),
    ],
)
def test_devices_are_found_fastest_first(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, found: tuple[str, ...]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.mps.is_available", lambda: mps)

    assert machine.found_devices() == found
    assert machine.pick_device() == torch.device(found[0])
    assert machine.pick_device("cpu") == torch.device("cpu")
    absent = "mps" if cuda else "cuda"
    with pytest.raises(ValueError, match=rf"`--device` must be one that .*, got '{absent}'"):
        machine.pick_device(absent)


def test_mps_computes_in_float32_and_says_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr("torch.mps.driver_allocated_memory", lambda: 123)
    monkeypatch.setattr("torch.mps.empty_cache", lambda: emptied.append(True))
    device = torch.device("mps")
    machine.reset_peak_memory(device)

    assert emptied == [True]
    assert machine.pick_compute_dtype(device, "bfloat16") == torch.float32
    assert machine.peak_memory_bytes(device) == 123


def test_a_trial_on_mps_has_its_own_stream_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in holds the state of the device's generator."""
    held = [torch.tensor([1])]
    monkeypatch.setattr("torch.mps.get_rng_state", lambda: held[-1].clone())
    monkeypatch.setattr("torch.mps.set_rng_state", held.append)
    stream = Randomness(5, torch.device("mps"))
    cpu = torch.get_rng_state()
    with stream:
        drawn = torch.rand(3)
        held.append(torch.tensor([7]))

    assert torch.equal(torch.get_rng_state(), cpu)
    assert held[-1].tolist() == [1]
    assert stream.states[1].tolist() == [7]
    again = Randomness(5, torch.device("cpu"))
    with again:
        assert torch.equal(torch.rand(3), drawn)
