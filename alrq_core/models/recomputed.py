"""Computes the activations of blocks again when their gradients are taken, instead of keeping them.

Training deep nets with sublinear memory cost, arXiv:1604.06174, section 3: a step takes a third
more products, and keeps the inputs of blocks and what one block holds.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from alrq_core.models.structure import override_forward


def recompute_blocks(model: nn.Module, watched: bool = False) -> None:
    """Let all blocks of a model do so.

    Args:
        model: As built.
        watched: Hooks on layers shall see what is computed again, and only that: for a model whose
            inputs of blocks have gradients.

    Raises:
        ValueError: transformers has no blocks in this model.
    """
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not blocks:
        raise ValueError(
            f"`--gradient-checkpointing` must be off for {type(model).__name__}, whose blocks "
            "transformers can't compute again, got on. Leave it out."
        )
    for block in blocks:
        override_forward(block, _watched if watched else _kept)


def _kept(block: Any, *args: Any, **kwargs: Any) -> Any:
    return _again(block, False, *args, **kwargs)


def _watched(block: Any, *args: Any, **kwargs: Any) -> Any:
    return _again(block, True, *args, **kwargs)


def _again(block: Any, watched: bool, *args: Any, **kwargs: Any) -> Any:
    # The class that `override_forward` has derived this one from.
    kind: Any = type(block).__mro__[1]
    usual = kind.forward
    if not torch.is_grad_enabled():
        return usual(block, *args, **kwargs)
    return checkpoint(partial(usual, block, **kwargs), *args, use_reentrant=watched)
