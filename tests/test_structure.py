"""What may vary in a model is found by structure; weights that would stay as they are, refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertLMHeadModel, LlamaConfig, LlamaForCausalLM

from alrq_core.models.loading import load_model
from alrq_core.models.structure import check_structure, find_embeddings, find_targets

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 32,
}


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=128))


def test_targets_are_the_linear_layers_inside_blocks(llama_folder: Path) -> None:
    model = load_model(str(llama_folder), "language-modelling", 0)
    names = [target.name for target in find_targets(model)]

    assert len(names) == 14
    assert "lm_head" not in names
    assert [t.part for t in find_targets(model)].count("attention") == 8


def test_a_list_within_a_list_counts_for_its_outer_block() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    model = nn.Module()
    model.layers = nn.ModuleList(Experts() for _ in range(2))
    blocks = [target.block for target in find_targets(model)]

    assert blocks == [0, 0, 0, 1, 1, 1]


def test_the_name_of_the_list_counts_too() -> None:
    model = nn.Module()
    model.attentions = nn.ModuleList([nn.Linear(8, 8)])
    model.T5 = nn.ModuleList([nn.ModuleDict({"SelfAttention": nn.Linear(8, 8)})])
    model.ffns = nn.ModuleList([nn.Linear(8, 8)])

    parts = [target.part for target in find_targets(model)]
    assert parts == ["attention", "attention", "feed-forward"]


def test_a_plain_model_passes(llama: LlamaForCausalLM) -> None:
    check_structure(llama, "m")


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="`--model` must have linear layers inside a list"):
        check_structure(nn.Sequential(nn.Linear(8, 8)), "m")


def test_a_large_parameter_outside_of_linear_layers_is_refused(llama: LlamaForCausalLM) -> None:
    llama.model.layers[1].mlp.experts = nn.Parameter(torch.zeros(2, 64, 64))
    match = r"got model\.layers\.1\.mlp\.experts of 'm' of 3 dimensions \(2 x 64 x 64\)"
    with pytest.raises(ValueError, match=match):
        check_structure(llama, "m")


def test_many_small_ones_add_up(llama: LlamaForCausalLM) -> None:
    half_a_percent = sum(p.numel() for p in llama.parameters()) // 200
    for number, layer in enumerate(llama.model.layers):
        layer.mlp.router = nn.Parameter(torch.zeros(1, half_a_percent))
        if not number:
            check_structure(llama, "m")
    llama.model.layers[0].mlp.other = nn.Parameter(torch.zeros(2, 64))
    with pytest.raises(ValueError, match=r"router of 'm' of 2 dimensions"):
        check_structure(llama, "m")


def test_a_layer_in_two_places_is_refused(llama: LlamaForCausalLM) -> None:
    llama.model.layers[1].mlp = llama.model.layers[0].mlp
    with pytest.raises(ValueError, match=r"one matrix in several places, got .*gate_proj"):
        check_structure(llama, "m")


def test_a_weight_of_two_layers_is_refused(llama: LlamaForCausalLM) -> None:
    first, second = (layer.self_attn for layer in llama.model.layers)
    second.q_proj.weight = first.q_proj.weight
    match = r"got model\.layers\.0\.self_attn\.q_proj\.weight and model\.layers\.1\.self_attn"
    with pytest.raises(ValueError, match=match):
        check_structure(llama, "m")


def test_a_tied_head_with_a_bias_keeps_its_embedding_plain() -> None:
    model = BertLMHeadModel(BertConfig(**SIZES, intermediate_size=128, is_decoder=True))
    check_structure(model, "m")

    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert find_embeddings(model) == ()
