"""The built model: exact ranks, PEFT's own function, dropout as asked, an untouched base."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from alrq_core.adapters.lora import ADAPTER, frozen_layer, lora_layers
from alrq_core.build import build_model
from alrq_core.models.loading import load_model
from search_spaces.allocation import Allocation, Choice
from search_spaces.formats import DEFAULT_METHODS
from tests.tiny import make_context, mixed, uniform

CPU = torch.device("cpu")


def built(folder: Path, allocation: Allocation | None = None, bits: int = 16) -> nn.Module:
    context = make_context(folder, "classification")
    chosen = allocation or uniform(context.inventory, bits, 4)
    torch.manual_seed(0)
    return build_model(context.base, chosen, ("classifier",), 2.0, torch.float32, CPU)


@pytest.mark.parametrize("bits", sorted(DEFAULT_METHODS))
def test_the_fused_product_is_pefts_forward(bert_folder: Path, bits: int) -> None:
    model = built(bert_folder, bits=bits)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B[ADAPTER].weight)
        x = torch.randn(3, 5, layer.in_features)
        results: list[list[Tensor]] = []
        for forward in (layer.forward, type(layer).forward.__get__(layer)):
            layer.zero_grad()
            source = x.clone().requires_grad_()
            output = forward(source)
            output.square().sum().backward()
            halves = [half[ADAPTER].weight.grad for half in (layer.lora_A, layer.lora_B)]
            results.append([output.detach(), source.grad, *halves])  # type: ignore[list-item]
        for fused, theirs in zip(*results, strict=True):
            torch.testing.assert_close(fused, theirs, rtol=1e-4, atol=1e-3)
        with torch.inference_mode():
            torch.testing.assert_close(layer.forward(x), results[1][0], rtol=1e-4, atol=1e-3)


def test_ranks_and_scaling_are_exact(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    names = [target.name for target in context.inventory.targets]
    ranks = (0, 2, 4, 8, 16, 32)
    allocation = Allocation({n: Choice(4, ranks[i % 6]) for i, n in enumerate(names)})
    layers = lora_layers(built(bert_folder, allocation))

    assert set(layers) == set(allocation.rank_pattern)
    for name, layer in layers.items():
        assert layer.r[ADAPTER] == allocation.choices[name].rank
        assert layer.scaling[ADAPTER] == 2.0


def test_only_adapters_and_the_head_are_trained(bert_folder: Path) -> None:
    model = built(bert_folder)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}

    assert all("lora_" in name or name.startswith("classifier.") for name in trained)
    assert {"classifier.weight", "classifier.bias"} <= trained


def test_a_new_adapter_changes_nothing(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    ids = torch.arange(4, 10).reshape(1, 6)
    with torch.no_grad():
        plain = context.base.eval()(input_ids=ids).logits
        adapted = built(bert_folder).eval()(input_ids=ids).logits

    torch.testing.assert_close(plain, adapted, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("stored", [(8, "int8"), (4, "nf4-double"), (4, "hqq"), (2, "hqq")])
def test_layers_of_libraries_get_pefts_quantised_classes(
    bert_folder: Path, stored: tuple[int, str]
) -> None:
    """As plain layers they would merge wrongly."""
    names = make_context(bert_folder, "classification").inventory.names
    choices = {name: Choice(stored[0], 2, stored[1]) for name in names}
    choices = {n: c if "word_embeddings" not in n else Choice(16, 0) for n, c in choices.items()}
    for name, layer in lora_layers(built(bert_folder, Allocation(choices))).items():
        assert isinstance(layer, LoraLayer)
        assert type(layer).__name__ != "Linear", name


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_an_adapter_does_not_merge_into_calibrated_codes(bert_folder: Path, bits: int) -> None:
    for layer in lora_layers(built(bert_folder, bits=bits)).values():
        before = layer.get_base_layer().weight.clone()
        with pytest.raises(RuntimeError):
            layer.merge()
        assert torch.equal(layer.get_base_layer().weight, before)


def test_a_name_that_is_neither_layer_nor_embedding_is_refused(bert_folder: Path) -> None:
    wrong = Allocation({"bert.embeddings.LayerNorm": Choice(4, 2)})
    with pytest.raises(ValueError, match=r"`allocation` must name linear layers.*\(LayerNorm\)"):
        built(bert_folder, wrong)


def test_a_choice_that_no_module_can_have_is_refused_by_name(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    fits = uniform(context.inventory, 4, 2).choices
    first = context.inventory.names[0]
    embedding = context.inventory.embeddings[0].name
    for name, choice, message in (
        (first, Choice(4, 65), f"`rank` must lie from 0 to 64 for {first}, got 65"),
        (first, Choice(4, -1), f"`rank` must lie from 0 to 64 for {first}, got -1"),
        (embedding, Choice(8, 2), f"`rank` must be 0 for an embedding, got 2 for {embedding}"),
        (embedding, Choice(4, 0, "nf4", 128), f"must divide {embedding} of 32 x 64, got 128"),
        (embedding, Choice(2, 0, "hqq"), f"of hqq at 2 bits must divide {embedding}"),
        (first, Choice(2, 0, "gptq", 128), f"of gptq at 2 bits must divide {first} of 64 x 64"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            built(bert_folder, Allocation({**fits, name: choice}))


def test_frozen_layer_is_found_with_and_without_an_adapter(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    first, second = context.inventory.names[:2]
    choices = uniform(context.inventory, 4, 0).choices
    model = built(bert_folder, Allocation({**choices, first: Choice(4, 2)}))

    assert type(frozen_layer(model, first)) is type(frozen_layer(model, second))


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_every_dropout_gets_the_recipes_probability(bert_folder: Path, dropout: float) -> None:
    model = load_model(str(bert_folder), "classification", 2, dropout)
    config = model.config

    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {dropout}
    assert config.attention_probs_dropout_prob == config.hidden_dropout_prob == dropout
    ids = torch.arange(4, 10).reshape(1, 6)
    with torch.no_grad():
        one, two = (model.train()(input_ids=ids).logits for _ in range(2))
    assert torch.equal(one, two) == (dropout == 0)


def test_blocks_below_the_lowest_adapter_keep_nothing_for_backward(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    last = max(target.block for target in context.inventory.targets)
    ranks = {t.name: 2 for t in context.inventory.targets if t.block == last}
    allocation = mixed(context.inventory).with_ranks(ranks)
    model: Any = build_model(context.base, allocation, (), 2.0, torch.float32, CPU)
    graphs: list[bool] = []
    for block in model.base_model.encoder.layer:
        block.register_forward_pre_hook(lambda _, args: graphs.append(args[0].requires_grad))
    logits = model(input_ids=torch.tensor([[1, 2, 3, 4]])).logits

    assert not any(graphs)
    assert logits.requires_grad
