"""The last block of a classifier computes one token, and nothing else changes."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from alrq_core.adapters.lora import frozen_layer
from alrq_core.build import build_model
from alrq_core.models.first_token import keep_first_token
from tests.tiny import make_context, mixed

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
CLASSIFIERS = [
    (BertForSequenceClassification, BertConfig),
    (RobertaForSequenceClassification, RobertaConfig),
    (XLMRobertaForSequenceClassification, XLMRobertaConfig),
]
IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 1, 1], [13, 14, 15, 16, 1]])
MASK = (IDS != 1).long()


def random_model(auto: type, config: type, **more: object) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = auto(config(**SIZES, **more))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def logits_and_gradients(model: nn.Module, mask: Tensor | None) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    logits: Tensor = model(input_ids=IDS, attention_mask=mask).logits
    logits.square().sum().backward()
    return [logits, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("mask", [MASK, None], ids=["padded", "full"])
@pytest.mark.parametrize("auto, config", CLASSIFIERS)
def test_logits_and_gradients_stay(auto: type, config: type, mask: Tensor | None) -> None:
    model = random_model(auto, config, pad_token_id=1)
    expected = logits_and_gradients(model, mask)
    keep_first_token(model)
    found = logits_and_gradients(model, mask)

    assert len(found) == len(expected) > 20
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_last_block_computes_one_token_a_sequence() -> None:
    model = random_model(BertForSequenceClassification, BertConfig)
    keep_first_token(model)
    seen: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda _, args, name=name: seen.update({name: args[0][..., 0].numel()})
            )
    model(input_ids=IDS, attention_mask=MASK)
    last = {name.rpartition("layer.1.")[2]: n for name, n in seen.items() if "layer.1." in name}

    assert last.pop("attention.self.key") == last.pop("attention.self.value") == IDS.numel()
    assert set(last.values()) == {len(IDS)}
    assert {n for name, n in seen.items() if "layer.0." in name} == {IDS.numel()}


def test_a_copy_runs_on_its_own_weights() -> None:
    """`build_model` copies first and patches then; a bound copy would run on the original."""
    model = random_model(BertForSequenceClassification, BertConfig)
    other = copy.deepcopy(model)
    keep_first_token(model)
    keep_first_token(other)
    nn.init.zeros_(other.get_parameter("bert.encoder.layer.1.output.dense.weight"))

    assert not torch.equal(model(input_ids=IDS).logits, other(input_ids=IDS).logits)


def test_trials_are_built_that_way(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    allocation = mixed(context.inventory)
    model = build_model(context.base, allocation, (), 2.0, torch.float32, torch.device("cpu"))
    name = [n for n in context.inventory.names if n.endswith("intermediate.dense")][-1]
    rows: list[int] = []
    frozen_layer(model, name).register_forward_pre_hook(
        lambda _, args: rows.append(args[0].shape[1])
    )
    model(input_ids=torch.tensor([[1, 2, 3, 4]]))

    assert rows == [1]


def test_models_that_read_other_tokens_are_left_alone() -> None:
    llama = random_model(LlamaForSequenceClassification, LlamaConfig, pad_token_id=1)
    eager = random_model(BertForSequenceClassification, BertConfig, attn_implementation="eager")
    for model in (llama, eager):
        before = [type(module).forward for module in model.modules()]
        keep_first_token(model)

        assert [type(module).forward for module in model.modules()] == before
