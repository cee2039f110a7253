"""Builds the model that a trial trains, out of tensors that have sizes and no memory.

The layers are the trial's own classes, so that whatever they compute with them takes the steps of
a real trial. Their tensors are torch's fake tensors: make and use them under one FakeTensorMode.
"""

from typing import Any

import torch
from torch import Tensor, nn

from alrq_core.adapters.adalora import MIN_STEPS, AdaptiveRanks
from alrq_core.adapters.lora import attach_adapters, frozen_layer
from alrq_core.models.finding import resolve_model
from alrq_core.models.first_token import keep_first_token
from alrq_core.models.heads import cast_head_inputs, head_names
from alrq_core.models.loading import model_class, set_dropout, task_config
from alrq_core.models.structure import as_linear, tied_head
from alrq_core.precision import stream_dtype
from alrq_core.records import TaskKind
from alrq_core.weights.layers import (
    STORAGE_DTYPE,
    GPTQLinear,
    HQQLinear,
    Linear4,
    Linear8,
    Linear16,
    PackedEmbedding,
    multiplied_layers,
)
from alrq_core.weights.packing import hqq_meta, layer_tensors, place, quant_state
from search_spaces.allocation import Allocation
from search_spaces.formats import FOUR_BIT, Format
from search_spaces.inventory import Inventory

# Of a 4-bit type, and of the 8-bit type of doubly quantised scales.
CODE_VALUES, NESTED_CODE_VALUES = 16, 256
CPU = torch.device("cpu")


def outline(
    inventory: Inventory,
    kind: TaskKind,
    labels: int,
    allocation: Allocation,
    compute_dtype: torch.dtype,
    dropout: float,
) -> nn.Module:
    """Return the built model on the meta device; its packed layers still lack their tensors.

    Raises:
        ValueError: The model can't be found or doesn't fit the kind of task.
    """
    config = task_config(resolve_model(inventory.model, weights=False), kind, labels)
    set_dropout(config, dropout)
    with torch.device("meta"):
        auto = model_class(kind, config, inventory.model)
        model: nn.Module = auto.from_config(config, dtype=stream_dtype(compute_dtype, CPU))
        as_linear(model)
    model.requires_grad_(False)
    tied, head = tied_head(model, allocation.choices), head_names(model, kind)
    for name, choice in allocation.choices.items():
        source = model.get_submodule(name)
        layer = _empty_layer(source, choice.format, compute_dtype)
        embedding = isinstance(source, nn.Embedding)
        place(model, name, PackedEmbedding(layer, 1.0) if embedding else layer, tied)
    with torch.device("meta"):
        if allocation.final_rank is None:
            attach_adapters(model, allocation, 1.0)
        else:
            AdaptiveRanks(model, allocation.rank_pattern, allocation.final_rank, MIN_STEPS, 1.0)
    for name in head:
        model.get_submodule(name).float().requires_grad_(True)
    cast_head_inputs(model, head)
    keep_first_token(model)
    return model


def fill(model: nn.Module, allocation: Allocation, dequantised: bool) -> None:
    """Give an outlined model new tensors on the CPU, in place. Call it in a FakeTensorMode.

    Args:
        model: As `outline` returned it.
        allocation: Of the model.
        dequantised: Add the copies of `keep_dequantised`.
    """
    made: dict[int, Tensor] = {}
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for owned in tables:
            for key, tensor in owned.items():
                # The single value that a packed layer of a library comes with is replaced below.
                if tensor is not None and tensor.is_meta:
                    owned[key] = made.setdefault(id(tensor), _filled(tensor))
    for name, choice in allocation.choices.items():
        layer: Any = frozen_layer(model, name)
        packed = layer.packed if isinstance(layer, PackedEmbedding) else layer
        _fill_layer(packed, choice.format)
    for layer in multiplied_layers(model) if dequantised else ():
        _keep(layer)


def _keep(layer: Any) -> None:
    if isinstance(layer, Linear16) and layer.compute_dtype == STORAGE_DTYPE:
        # Casting to the type that they have makes no copy.
        layer.kept = layer.weight.detach()
    else:
        shape = (layer.out_features, layer.in_features)
        layer.kept = torch.empty(shape, dtype=layer.compute_dtype)


def _filled(tensor: Tensor) -> Tensor:
    new = torch.empty(tensor.shape, dtype=tensor.dtype)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(new, requires_grad=tensor.requires_grad)
    return new


def _empty_layer(source: Any, stored: Format, compute_dtype: torch.dtype) -> Any:
    """Return a packed layer of the size of a linear layer or an embedding, without its weight."""
    layer: Any
    if stored.method == "plain":
        layer = Linear16(1, 1, bias=False, device="meta")
    elif stored.method == "int8":
        layer = Linear8(1, 1, bias=False, has_fp16_weights=False)
    elif stored.method in FOUR_BIT:
        layer = Linear4(1, 1, bias=False)
    elif stored.method == "gptq":
        layer = GPTQLinear(1, 1, bias=False, device="meta")
        layer.bits = stored.bits
    else:
        layer = HQQLinear(None, {"offload_meta": False}, False, compute_dtype, "cpu", False)
        layer.W_q = nn.Parameter(torch.empty(1, device="meta"), requires_grad=False)
    layer.out_features, layer.in_features = source.weight.shape
    layer.compute_dtype = compute_dtype
    if getattr(source, "bias", None) is not None:
        bias = torch.empty(layer.out_features, dtype=compute_dtype, device="meta")
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer.requires_grad_(False)


def _fill_layer(layer: Any, stored: Format) -> None:
    tensors = layer_tensors(stored, layer.out_features, layer.in_features)
    shape = torch.Size((layer.out_features, layer.in_features))
    codes: Any = nn.Parameter(tensors["codes"], requires_grad=False)
    if stored.method == "hqq":
        layer.W_q, layer.ready = codes, True
        layer.meta = hqq_meta(stored, shape, tensors, layer.compute_dtype)
        return
    if stored.method == "gptq":
        layer.scales = tensors["scales"]
    elif stored.method == "int8":
        codes.SCB = tensors["scales"]
    elif stored.method in FOUR_BIT:
        tables = {
            "values": torch.empty(CODE_VALUES),
            "nested_values": torch.empty(NESTED_CODE_VALUES),
        }
        codes.quant_state = quant_state(stored, shape, tensors | tables)
    # bitsandbytes' own class of parameter can't hold a fake tensor.
    layer._parameters["weight"] = codes
