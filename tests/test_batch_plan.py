"""The choice of micro-batches, on limits that are made up."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from alrq_core.memory import batch_plan
from alrq_core.memory.batch_plan import (
    MPS_TENSOR_LIMIT,
    BatchPlan,
    plan_batch,
    tensor_limit_bytes,
)
from alrq_core.memory.prediction import StepMemory, step_memory
from alrq_core.models.loading import inspect_model
from search_spaces.allocation import Allocation
from search_spaces.inventory import Inventory
from tests.test_prediction import with_config
from tests.tiny import uniform

BATCH, LENGTH = 24, 32


@pytest.fixture(scope="module")
def bert(bert_folder: Path) -> Inventory:
    return inspect_model(str(bert_folder), "classification", 2)


@pytest.fixture(scope="module")
def allocation(bert: Inventory) -> Allocation:
    return uniform(bert, 16, 4)


def plan(
    inventory: Inventory, allocation: Allocation, limit: int | None, tensor: int | None = None
) -> BatchPlan:
    size = (BATCH, LENGTH, torch.float32, limit, tensor)
    return plan_batch(inventory, "classification", 2, allocation, *size)


def memory(inventory: Inventory, allocation: Allocation, size: int) -> StepMemory:
    """The whole batch is one pass; all but the first of several begin with gradients."""
    shape = (size, LENGTH, torch.float32)
    alone = size == BATCH
    return step_memory(inventory, "classification", 2, allocation, *shape, alone=alone)


def test_without_limits_the_whole_batch_goes_at_once(
    bert: Inventory, allocation: Allocation
) -> None:
    found = plan(bert, allocation, None)
    assert (found.micro_batch, found.accumulation_steps) == (BATCH, 1)
    assert found.memory == memory(bert, allocation, BATCH)
    assert found.reason.startswith("micro-batch 24 x 1, predicted peak ")
    assert found.reason.endswith(": the whole batch at once")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 8, 12, 24])
def test_the_largest_micro_batch_that_fits_is_taken(
    bert: Inventory, allocation: Allocation, size: int
) -> None:
    exact = plan(bert, allocation, memory(bert, allocation, size).peak_bytes)
    assert exact.micro_batch == size
    assert exact.micro_batch * exact.accumulation_steps == BATCH
    assert exact.memory == memory(bert, allocation, size)
    if size > 1:
        less = plan(bert, allocation, memory(bert, allocation, size).peak_bytes - 1)
        assert less.micro_batch < size
        assert less.micro_batch * less.accumulation_steps == BATCH


def test_the_reason_names_what_did_not_fit(bert: Inventory, allocation: Allocation) -> None:
    limit = memory(bert, allocation, 8).peak_bytes
    whole = memory(bert, allocation, BATCH)
    found = plan(bert, allocation, limit)
    assert found.reason == (
        f"micro-batch 8 x 3, predicted peak {limit / 1e6:.2f} MB: 24 at once would take "
        f"{whole.peak_bytes / 1e6:.2f} MB of {limit / 1e6:.2f} MB, "
        f"{whole.largest_tensor_bytes / 1e6:.2f} MB of it {whole.largest_tensor}"
    )


def test_few_steps_are_traced(
    bert: Inventory, allocation: Allocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = []

    def count(*args: object, **options: object) -> StepMemory:
        traced.append(args[4])
        return step_memory(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(batch_plan, "step_memory", count)
    limit = memory(bert, allocation, 2).peak_bytes
    assert plan(bert, allocation, limit).micro_batch == 2
    assert len(set(traced)) <= 4


def test_a_sequence_that_does_not_fit_is_refused(bert: Inventory, allocation: Allocation) -> None:
    limit = memory(bert, allocation, 1).peak_bytes - 1
    with pytest.raises(ValueError, match=r"`--max-length` must .*got 32 tokens.*Use a smaller one"):
        plan(bert, allocation, limit)


def test_a_model_that_can_not_be_built_is_refused(bert: Inventory, allocation: Allocation) -> None:
    with pytest.raises(ValueError, match=r"`allocation` must .*got a peak of .*Give fewer cores"):
        plan(bert, allocation, memory(bert, allocation, 1).build_bytes - 1)


@dataclass(frozen=True)
class Large:
    """A vocabulary so large that one batch's logits pass what Metal takes."""

    inventory: Inventory
    allocation: Allocation


@pytest.fixture(scope="module")
def large(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Large:
    config = AutoConfig.from_pretrained(llama_folder)
    config.vocab_size = 2**20
    inventory = with_config(llama_folder, tmp_path_factory.mktemp("large"), config)
    return Large(inventory, uniform(inventory, 4, 2))


def large_plan(large: Large, batch: int, length: int) -> BatchPlan:
    limit = tensor_limit_bytes("mps")
    return plan_batch(
        large.inventory,
        "language-modelling",
        0,
        large.allocation,
        batch,
        length,
        torch.float32,
        None,
        limit,
        device_type="mps",
    )


def test_no_tensor_reaches_what_metal_takes(large: Large) -> None:
    # The 64 answers of 16 sequences of 65 tokens, 2**20 float32 numbers each, are 2**32 bytes.
    found = large_plan(large, 16, 65)
    assert (found.micro_batch, found.accumulation_steps) == (8, 2)
    assert found.memory.largest_tensor_bytes == MPS_TENSOR_LIMIT // 2
    assert "one tensor of 4.29 GB of at most 4.29 GB, logits 16 x 64 x 1048576" in found.reason
    # One token less, and it is below.
    assert large_plan(large, 16, 64).micro_batch == 16


def test_a_sequence_above_what_metal_takes_is_refused(large: Large) -> None:
    with pytest.raises(ValueError, match=r"got 1025 tokens, which take one tensor of 4\.29 GB"):
        large_plan(large, 2, 1025)


def test_only_metal_limits_single_tensors() -> None:
    assert [tensor_limit_bytes(name) for name in ("cpu", "cuda", "mps")] == [None, None, 2**32]
