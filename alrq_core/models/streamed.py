"""Runs a pretrained model in float32 on a device that need not hold its matrices."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alrq_core.models.structure import override_forward

# Of a matrix that is brought at once: the output head of a large vocabulary takes gigabytes.
CHUNK_WEIGHTS = 2**25


def streamed(base: Any, device: torch.device) -> nn.Module:
    """Return a model that computes what `base` does, in float32 on a device.

    It shares the matrices of linear layers and of the token embedding with `base`, in the type and
    the place that they have there. Each is brought to the device when its layer runs, and let go
    after: a model of 26 GB in 16 bits runs on a card of 24 GB. What is small is copied at once.

    Args:
        base: The pretrained model; it is left as it was.
        device: Where inputs are, and outputs will be.
    """
    forwards = {name: _forward(base, module) for name, module in base.named_modules()}
    weights = [base.get_submodule(name).weight for name, way in forwards.items() if way is not None]
    shared = {id(weight): weight for weight in weights}
    model: nn.Module = copy.deepcopy(base, dict(shared))
    for name, module in list(model.named_modules()):
        owned: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in owned:
            for key, tensor in tensors.items():
                if tensor is not None and id(tensor) not in shared:
                    tensors[key] = _moved(tensor, device)
        forward = forwards[name]
        if forward is not None:
            override_forward(module, forward)
    return model


def _forward(base: Any, module: nn.Module) -> Callable[..., Tensor] | None:
    """Return what computes with a matrix where it lies; None for a module that has none."""
    if type(module).forward is nn.Linear.forward:
        return _linear
    # Other embeddings are small, and DeBERTa multiplies one as it is.
    if module is not base.get_input_embeddings():
        return None
    # Gemma's own class multiplies each row. Others compute their indices themselves.
    known = type(module).forward is nn.Embedding.forward or hasattr(module, "scalar_embed_scale")
    return _embedding if known else None


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    moved = tensor.detach().to(device, dtype)
    return nn.Parameter(moved) if isinstance(tensor, nn.Parameter) else moved


def _linear(self: nn.Linear, x: Tensor) -> Tensor:
    weight = self.weight
    rows = max(1, CHUNK_WEIGHTS // weight.shape[1])
    if len(weight) <= rows or (weight.device, weight.dtype) == (x.device, x.dtype):
        return functional.linear(x, weight.to(x), self.bias)
    found = torch.cat([functional.linear(x, part.to(x)) for part in weight.split(rows)], dim=-1)
    return found if self.bias is None else found + self.bias


def _embedding(self: nn.Embedding, ids: Tensor) -> Tensor:
    scale = float(getattr(self, "scalar_embed_scale", 1.0))
    rows = self.weight[ids.to(self.weight.device)].to(ids.device, torch.float32)
    return rows if scale == 1.0 else rows * scale
