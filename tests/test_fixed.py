"""The six fixed configurations: each runs as what it says, and no two are the same."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alrq_core.adapters.lora import adapter_tensors, lora_layers
from alrq_core.records import TaskKind
from alrq_core.trial import TrialRun
from search_spaces.costs import memory_bytes
from search_spaces.fixed import FIXED, fixed_allocation
from tests.tiny import RECIPE, make_context

IDS = torch.tensor([[2, 5, 7, 9, 4, 3], [2, 8, 8, 6, 10, 3]])
KINDS: tuple[TaskKind, ...] = ("classification", "language-modelling")
ADAPTIVE = ("B-Ada", "Joint-1", "Joint-2")
both_kinds = pytest.mark.parametrize("kind", KINDS)
adaptive_ones = pytest.mark.parametrize("name", ADAPTIVE)


@pytest.fixture
def folders(bert_folder: Path, llama_folder: Path) -> dict[TaskKind, Path]:
    return {"classification": bert_folder, "language-modelling": llama_folder}


def built(name: str, kind: TaskKind, folder: Path) -> TrialRun:
    context = make_context(folder, kind)
    return TrialRun(context, fixed_allocation(name, context.inventory), seed=0)


@cache
def trained(name: str, kind: TaskKind, folder: Path, steps: int = RECIPE.max_steps) -> TrialRun:
    run = built(name, kind, folder)
    run.advance(steps)
    return run


def logits(run: TrialRun) -> Tensor:
    with torch.inference_mode():
        result: Tensor = run.model.eval()(input_ids=IDS).logits
    return result


@both_kinds
def test_no_two_have_the_same_receipt_or_logits(
    kind: TaskKind, folders: dict[TaskKind, Path]
) -> None:
    runs = {name: trained(name, kind, folders[kind]) for name in FIXED}
    receipts = {name: str(run.receipt.modules) for name, run in runs.items()}

    assert len(set(receipts.values())) == len(FIXED) == 6
    for first in FIXED:
        for second in FIXED:
            same = torch.equal(logits(runs[first]), logits(runs[second]))
            assert same == (first == second), (first, second)


@both_kinds
@pytest.mark.parametrize("name", FIXED)
def test_the_receipt_is_complete(name: str, kind: TaskKind, folders: dict[TaskKind, Path]) -> None:
    run = trained(name, kind, folders[kind])

    assert run.receipt.unchanged_after_training is True
    assert run.receipt.lora_pairs == run.receipt.lora_pairs_with_gradient > 0
    bits = {n: module.bits for n, module in run.receipt.modules.items()}
    assert bits == {n: choice.bits for n, choice in run.allocation.choices.items()}


@both_kinds
@adaptive_ones
def test_adalora_reaches_its_budget_and_the_bytes_fall(
    name: str, kind: TaskKind, folders: dict[TaskKind, Path]
) -> None:
    run = trained(name, kind, folders[kind])
    half = trained(name, kind, folders[kind], steps=4)
    targets = len(run.context.inventory.targets)
    ranks = {n: module.rank for n, module in run.receipt.modules.items()}
    held = {n: len(adapter_tensors(layer)[0]) for n, layer in lora_layers(run.model).items()}
    adalora = run.receipt.adalora

    assert adalora is not None
    assert adalora.initial_ranks == 12 * targets
    assert adalora.final_ranks == adalora.budget == 4 * targets == sum(ranks.values())
    assert adalora.allocations == RECIPE.max_steps
    assert held == {n: rank for n, rank in ranks.items() if rank}
    assert len(set(ranks.values())) > 1
    realised = run.allocation.with_ranks(ranks)
    assert run.receipt.memory_bytes == memory_bytes(realised, run.context.inventory)
    assert run.receipt.memory_bytes < half.receipt.memory_bytes
    assert run.receipt.trainable_parameters < half.receipt.trainable_parameters
    assert half.receipt.adalora is None


@both_kinds
@pytest.mark.parametrize("at", [2, 4, 8])
def test_an_adalora_checkpoint_continues_exactly(
    kind: TaskKind, at: int, folders: dict[TaskKind, Path], tmp_path: Path
) -> None:
    whole = trained("Joint-2", kind, folders[kind])
    expected = whole.receipt
    first = built("Joint-2", kind, folders[kind])
    first.advance(at)
    first.save_checkpoint(tmp_path / "t.pt")
    resumed = TrialRun(whole.context, whole.allocation, seed=0)
    resumed.load_checkpoint(tmp_path / "t.pt")
    if at < RECIPE.max_steps:
        resumed.advance(RECIPE.max_steps)

    assert resumed.receipt == expected
    assert torch.equal(logits(resumed), logits(whole))


def test_the_penalty_is_not_part_of_the_reported_loss(bert_folder: Path) -> None:
    run = built("B-Ada", "classification", bert_folder)
    assert run.training.adaptive is not None
    penalty = float(run.training.adaptive.regularisation().detach())

    assert penalty > 1
    assert run.advance(1).train_loss < 1


def test_adalora_needs_steps_enough_for_its_schedule(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification", replace(RECIPE, max_steps=4))
    with pytest.raises(ValueError, match="`--max-steps` must be at least 5 with AdaLoRA, got 4"):
        TrialRun(context, fixed_allocation("B-Ada", context.inventory), seed=0)
