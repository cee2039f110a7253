"""Attention over one type, by the kernel that suits a device.

On a CPU in float32, where everything else computes in bfloat16.

Torch's kernel for bfloat16 there takes 23 ms backwards where float32 takes 3.5 (a mask, 32
sequences of 28 tokens, 12 heads of 32, one thread of a Zen 4, torch 2.13): a quarter of MiniLM's
step. On a GPU not by cuDNN, which plans anew for each length that it has not seen: 0.15 s more for
a step of MiniLM that else takes 0.04 s (an H100, torch 2.11). To import this module is to register
it with transformers.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from alrq_core.precision import kind_of

GPU_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> Tensor:
    """Compute torch's `scaled_dot_product_attention`.

    Args:
        query: batch x heads x queries x width.
        key: batch x heads x tokens x width.
        value: Like the keys.
        mask: Broadcast to batch x heads x queries x tokens; what is added, or what is seen.
        options: See torch.

    Returns:
        batch x heads x queries x width, of the type of the values.
    """
    attention = partial(nn.functional.scaled_dot_product_attention, **options)
    return _in_one_type(attention, query, key, value, mask)


def _sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute transformers' `sdpa`: see there."""

    def attention(*tensors: Any) -> Tensor:
        return sdpa_attention_forward(module, *tensors, **options)[0]

    return _in_one_type(attention, query, key, value, attention_mask), None


def _in_one_type(
    attention: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Compute attention in float32 on a CPU, elsewhere in the type of the values."""
    dtype = torch.float32 if kind_of(query.device) == "cpu" else value.dtype
    # Rotary embeddings make float32 of queries and keys alone.
    parts = [tensor.to(dtype) for tensor in (query, key, value)]
    if mask is not None and mask.is_floating_point():
        mask = mask.to(dtype)
    # Autocast would turn the copies back.
    with torch.autocast(query.device.type, enabled=False), _kernels(query):
        found = attention(*parts, mask)
    return found.to(value.dtype)


def _kernels(like: Tensor) -> AbstractContextManager[object]:
    """Return in what attention over such a tensor runs."""
    return sdpa_kernel(GPU_KERNELS) if like.is_cuda else nullcontext()


AttentionInterface.register("sdpa", _sdpa)
