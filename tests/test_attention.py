"""Attention in float32 under bfloat16: the same as in float32 throughout, but for the rounding."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertConfig, BertModel

from alrq_core.models import attention
from alrq_core.models.attention import attend


def parts(dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 3, 5, 4).to(dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("mask", [None, torch.zeros(2, 1, 5, 5), torch.ones(2, 1, 5, 5).bool()])
def test_half_precision_is_computed_in_float32(mask: torch.Tensor | None) -> None:
    query, key, value = parts(torch.bfloat16)
    if mask is not None and mask.is_floating_point():
        mask = mask.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend(query, key, value, mask)
    exact = scaled_dot_product_attention(query.float(), key.float(), value.float())

    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())
    found.sum().backward()
    assert query.grad is not None


def test_float32_is_left_alone() -> None:
    query, key, value = parts(torch.float32)

    assert torch.equal(
        attend(query, key, value, None), scaled_dot_product_attention(query, key, value)
    )


def test_models_attend_in_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    model = BertModel(config)
    seen = []

    def noted(module: object, query: torch.Tensor, *rest: object, **options: object) -> object:
        seen.append((query.dtype, torch.is_autocast_enabled("cpu")))
        return forward(module, query, *rest, **options)  # type: ignore[arg-type]

    forward = attention.sdpa_attention_forward
    monkeypatch.setattr(attention, "sdpa_attention_forward", noted)
    ids, mask = torch.ones(2, 6, dtype=torch.long), torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=ids, attention_mask=mask)

    assert seen == [(torch.float32, False)] * 2


def test_queries_that_are_float32_already_are_no_reason_to_mix() -> None:
    query, key, value = parts(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend(query.float(), key.float(), value, None)

    assert found.dtype == torch.bfloat16
    assert torch.equal(found, attend(query, key, value, None))
