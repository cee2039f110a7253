"""The receipt catches what earlier studies did not see."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit, has_avx512bf16
from torch import Tensor, nn

import alrq_core.build
from alrq_core.adapters.lora import frozen_layer, lora_layers
from alrq_core.receipt import ReceiptError, check_receipt
from alrq_core.records import Receipt
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation, Choice
from search_spaces.costs import average_bits, memory_bytes, target_bytes
from tests.tiny import make_context, mixed, uniform


def test_agrees_with_the_prediction_byte_for_byte(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    allocation = mixed(context.inventory)
    receipt = TrialRun(context, allocation, seed=0).receipt

    assert receipt.memory_bytes == memory_bytes(allocation, context.inventory)
    assert receipt.target_bytes == target_bytes(allocation, context.inventory)
    assert receipt.average_bits == pytest.approx(average_bits(allocation, context.inventory))
    realised = {
        n: Choice(m.bits, m.rank, m.method, m.group_size) for n, m in receipt.modules.items()
    }
    assert realised == dict(allocation.choices)


def test_is_complete_after_training(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    allocation = mixed(context.inventory)
    run = TrialRun(context, allocation, seed=0)
    assert run.receipt.lora_pairs_with_gradient == 0
    assert run.receipt.unchanged_after_training is None
    run.advance(context.recipe.max_steps)

    assert run.receipt.lora_pairs == len(allocation.rank_pattern)
    assert run.receipt.lora_pairs_with_gradient == run.receipt.lora_pairs
    assert run.receipt.unchanged_after_training is True
    assert Receipt.from_json(run.receipt.to_json()) == run.receipt


def test_catches_a_quantiser_that_did_nothing(
    bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def do_nothing(module: nn.Module, *_: Any) -> nn.Module:
        return copy.deepcopy(module).requires_grad_(False)

    monkeypatch.setattr(alrq_core.build, "pack", do_nothing)
    context = make_context(bert_folder, "classification")
    allocation = uniform(context.inventory, 4, 2)
    with pytest.raises(ReceiptError, match=r"query was built with 32 bits instead of 4"):
        TrialRun(context, allocation, seed=0)


def test_catches_an_adapter_of_another_rank(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    allocation = uniform(context.inventory, 4, 2)
    receipt = TrialRun(context, allocation, seed=0).receipt
    name = context.inventory.names[0]
    wrong = {**receipt.modules, name: replace(receipt.modules[name], rank=4)}
    with pytest.raises(ReceiptError, match="built with 4 rank instead of 2"):
        check_receipt(replace(receipt, modules=wrong), allocation, context.inventory)


def forward_of_bitsandbytes(layer: Any, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    output: Tensor = Linear4bit.forward(layer, x)
    return output + scaling * (x @ a.T) @ b.T


@pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit")
@pytest.mark.skipif(not has_avx512bf16(), reason="the trap needs a processor with AVX512-BF16")
def test_catches_the_inference_layout_that_loses_all_gradients(llama_folder: Path) -> None:
    context = make_context(llama_folder, "language-modelling")
    choices = dict(uniform(context.inventory, 16, 2).choices)
    nf4 = {target.name: Choice(4, 2, "nf4-double") for target in context.inventory.targets}
    run = TrialRun(context, Allocation({**choices, **nf4}), seed=0)
    for target in context.inventory.targets:
        layer: Any = frozen_layer(run.model, target.name)
        layer.forward = partial(forward_of_bitsandbytes, layer)
    with pytest.raises(
        ReceiptError, match=r"of 14 LoRA pairs get (no|another) gradient after an evaluation"
    ):
        run.advance(1)


def test_catches_gradients_that_end_with_an_evaluation(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on processors with AVX512-BF16, for those that lack it."""
    context = make_context(llama_folder, "language-modelling")
    allocation = uniform(context.inventory, 16, 2)
    run = TrialRun(context, allocation, seed=0)
    layer = lora_layers(run.model)[context.inventory.names[3]]
    evaluated = []
    forward = layer.forward

    def dies_after_evaluation(x: Tensor) -> Tensor:
        evaluated.append(not layer.training)
        output: Tensor = forward(x)
        return output.detach() if any(evaluated) else output

    monkeypatch.setattr(layer, "forward", dies_after_evaluation)
    with pytest.raises(ReceiptError, match=r"4 of 14 LoRA pairs get no gradient.*q_proj"):
        run.advance(1)


def test_catches_base_weights_that_train(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    allocation = uniform(context.inventory, 16, 2)
    run = TrialRun(context, allocation, seed=0)
    name = context.inventory.names[5]
    run.advance(4)
    with torch.no_grad():
        frozen_layer(run.model, name).get_parameter("weight").mul_(1.5)
    with pytest.raises(ReceiptError, match="changed in training"):
        run.advance(context.recipe.max_steps)


def test_another_version_is_refused(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    allocation = uniform(context.inventory, 16, 0)
    content = TrialRun(context, allocation, seed=0).receipt.to_json()
    with pytest.raises(ValueError, match="`version` of a receipt must be 2, got 7"):
        Receipt.from_json({**content, "version": 7})
