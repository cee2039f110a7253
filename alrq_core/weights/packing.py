"""Makes packed layers from plain ones, and reads exactly what a layer stores."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from hqq.core import quantize
from torch import Tensor, nn

from alrq_core.models.structure import replace_module
from alrq_core.records import ModuleReceipt
from alrq_core.weights.calibrate import SCALE_DTYPE
from alrq_core.weights.layers import (
    HQQ_DTYPE,
    STORAGE_DTYPE,
    GPTQLinear,
    HQQLinear,
    Linear4,
    Linear8,
    Linear16,
    PackedEmbedding,
)
from alrq_core.weights.quantise import hqq_config, quantise
from search_spaces.costs import CODES_PER_INT32, NESTED_BLOCK_SIZE, code_rows
from search_spaces.formats import FOUR_BIT, ROWS, Format

# Weight and format -> the tensors that a packed layer keeps.
Quantiser = Callable[[Tensor, Format], Mapping[str, Tensor]]


def pack(
    module: nn.Module,
    stored: Format,
    compute_dtype: torch.dtype,
    make: Quantiser = quantise,
) -> nn.Module:
    """Return a frozen layer that stores the weights of a linear layer or an embedding.

    The input layer is left as it was.

    Args:
        module: The plain layer.
        stored: The format.
        compute_dtype: Type of the matrix products.
        make: `quantise`, or a cache in front of it.

    Raises:
        ValueError: There is no such format, or an embedding can't have it.
    """
    embedding = isinstance(module, nn.Embedding)
    if embedding and stored.method not in ROWS:
        raise ValueError(
            f"`format` of an embedding must be one of {', '.join(ROWS)}, got {stored.method}. "
            "Choose one of them."
        )
    weight: Tensor = module.get_parameter("weight")
    tensors = make(weight, stored)
    packed = assemble(stored, weight.shape, tensors, compute_dtype)
    if isinstance(module, nn.Embedding):
        # Gemma's own class multiplies each row.
        scale = float(getattr(module, "scalar_embed_scale", 1.0))
        return PackedEmbedding(packed, scale).requires_grad_(False)
    bias: Any = module.bias
    if bias is not None:
        # In the 16 bits that a deployed model keeps of it.
        rounded = bias.detach().to(tensors["codes"].device, STORAGE_DTYPE).to(compute_dtype)
        packed.bias = nn.Parameter(rounded, requires_grad=False)
    return packed


def place(model: nn.Module, name: str, packed: nn.Module, tied: str | None) -> None:
    """Put a packed layer in its place; an embedding's also in that of the tied output head."""
    replace_module(model, name, packed)
    if isinstance(packed, PackedEmbedding) and tied is not None:
        replace_module(model, tied, packed.packed)


def assemble(
    stored: Format, shape: torch.Size, tensors: Mapping[str, Tensor], compute_dtype: torch.dtype
) -> nn.Module:
    """Return a frozen packed layer without a bias over tensors as `quantise` returns them.

    The layer holds these tensors themselves, so that several layers may share them.
    """
    packed: Any
    codes = tensors["codes"]
    if stored.method == "plain":
        packed = Linear16(1, 1, bias=False, device="meta")
        packed.weight = nn.Parameter(codes, requires_grad=False)
    elif stored.method == "int8":
        packed = Linear8(1, 1, bias=False, has_fp16_weights=False)
        packed.weight = Int8Params(codes, requires_grad=False, CB=codes, SCB=tensors["scales"])
    elif stored.method in FOUR_BIT:
        packed = Linear4(1, 1, bias=False, quant_type=stored.method[:3])
        packed.weight = Params4bit(
            codes,
            quant_state=quant_state(stored, shape, tensors),
            blocksize=stored.group_size,
            compress_statistics="nested" in tensors,
            quant_type=stored.method[:3],
            bnb_quantized=True,
        )
    elif stored.method == "gptq":
        packed = GPTQLinear(1, 1, bias=False, device="meta")
        packed.weight, packed.bits = nn.Parameter(codes, requires_grad=False), stored.bits
        packed.register_buffer("scales", tensors["scales"])
    else:
        packed = HQQLinear(None, hqq_config(stored), False, compute_dtype, str(codes.device), False)
        packed.W_q = nn.Parameter(codes, requires_grad=False)
        packed.meta = hqq_meta(stored, shape, tensors, compute_dtype)
        packed.ready = True
    packed.compute_dtype = compute_dtype
    packed.out_features, packed.in_features = shape
    layer: nn.Module = packed.requires_grad_(False)
    return layer


def quant_state(stored: Format, shape: torch.Size, tensors: Mapping[str, Tensor]) -> QuantState:
    """Return what bitsandbytes keeps beside 4-bit codes."""
    nested = {}
    if "nested" in tensors:
        state = QuantState(
            absmax=tensors["nested"],
            code=tensors["nested_values"],
            blocksize=NESTED_BLOCK_SIZE,
            dtype=torch.float32,
        )
        nested = {"state2": state, "offset": tensors["offset"]}
    return QuantState(
        absmax=tensors["scales"],
        shape=shape,
        code=tensors["values"],
        blocksize=stored.group_size,
        quant_type=stored.method[:3],
        # What it was quantised from, and what it is dequantised to.
        dtype=torch.float32,
        **nested,
    )


def hqq_meta(
    stored: Format, shape: torch.Size, tensors: Mapping[str, Tensor], compute_dtype: torch.dtype
) -> dict[str, Any]:
    """Return what HQQ keeps beside its codes."""
    return {
        "nbits": stored.bits,
        "group_size": stored.group_size,
        "shape": shape,
        "axis": 1,
        "packing": quantize.Quantizer.bit_to_packing[stored.bits],
        "unpack_view_dtype": tensors["codes"].dtype,
        "view_as_float": False,
        "quant_scale": False,
        "quant_zero": False,
        "compute_dtype": compute_dtype,
        "scale": tensors["scales"],
        "zero": tensors["zeros"],
    }


def layer_tensors(stored: Format, out_features: int, in_features: int) -> dict[str, Tensor]:
    """Return new tensors as a packed layer keeps them, in the order of `stored_tensors`.

    Without `values`, which all layers of a format have in common.
    """
    weights = out_features * in_features
    groups = -(-weights // stored.group_size) if stored.group_size else out_features
    if stored.method == "plain":
        return {"codes": torch.empty(out_features, in_features, dtype=STORAGE_DTYPE)}
    if stored.method == "int8":
        codes = torch.empty(out_features, in_features, dtype=torch.int8)
        return {"codes": codes, "scales": torch.empty(groups)}
    if stored.method in FOUR_BIT:
        codes = torch.empty((weights + 1) // 2, 1, dtype=torch.uint8)
        if stored.method != "nf4-double":
            return {"codes": codes, "scales": torch.empty(groups)}
        blocks = -(-groups // NESTED_BLOCK_SIZE)
        scales = torch.empty(groups, dtype=torch.uint8)
        return {
            "codes": codes,
            "scales": scales,
            "nested": torch.empty(blocks),
            "offset": torch.empty(()),
        }
    if stored.method == "gptq":
        rows = code_rows(stored.bits, out_features)
        codes = torch.empty(rows, in_features, dtype=torch.int8)
        scales = torch.empty(out_features, in_features // stored.group_size, dtype=SCALE_DTYPE)
        return {"codes": codes, "scales": scales}
    rows = -(-groups // CODES_PER_INT32) if stored.bits == 3 else groups * stored.bits // 8
    dtype = torch.int32 if stored.bits == 3 else torch.uint8
    codes = torch.empty(rows, stored.group_size, dtype=dtype)
    scales, zeros = (torch.empty(groups, 1, dtype=HQQ_DTYPE) for _ in range(2))
    return {"codes": codes, "scales": scales, "zeros": zeros}


def read_layer(layer: nn.Module, rank: int) -> ModuleReceipt:
    """Return what a frozen layer really stores, from its tensors alone.

    A layer of an unknown class is read as plain weights, so that a quantiser that did nothing
    shows as 16 or 32 bits.

    Args:
        layer: The frozen base layer, without its adapter.
        rank: Rank read from the adapter around it.
    """
    codes, others, stored = stored_tensors(layer)
    data = codes.detach().cpu().contiguous().view(torch.uint8).numpy().data
    return ModuleReceipt(
        module_class=f"{type(layer).__module__}.{type(layer).__qualname__}",
        bits=stored.bits,
        method=stored.method,
        group_size=stored.group_size,
        stored_bytes=codes.nbytes + sum(tensor.nbytes for tensor in others),
        rank=rank,
        checksum=zlib.crc32(data),
    )


def stored_tensors(layer: nn.Module) -> tuple[Tensor, list[Tensor], Format]:
    """Return a layer's codes, its scales and zero points, and its format as they show it.

    The tensors are the layer's own: what is written into them is what it computes with.
    """
    if isinstance(layer, PackedEmbedding):
        layer = layer.packed
    if isinstance(layer, HQQLinear):
        # HQQ keeps scales and zeros in a dictionary that no count over parameters sees.
        extra = [value for key, value in layer.meta.items() if key in {"scale", "zero"}]
        weights = layer.meta["shape"].numel()
        # Ten 3-bit codes share an int32; in a small matrix its unused ones would count as bits.
        ten_share = layer.W_q.dtype == torch.int32
        bits = 3 if ten_share else int(8 * layer.W_q.nbytes / weights)
        found = Format(bits, "hqq", weights // extra[0].numel())
        return layer.W_q.data, extra, found
    weight: Any = layer.get_parameter("weight")
    if isinstance(layer, GPTQLinear):
        width = weight.shape[1]
        expected = code_rows(layer.bits, layer.out_features)
        # Small matrices fill their last bytes with nothing; what doesn't fit shows as it is.
        bits = layer.bits if len(weight) == expected else 8 * len(weight) // layer.out_features
        found = Format(bits, "gptq", width // layer.scales.shape[1])
        return weight.data, [layer.scales], found
    if isinstance(layer, Linear4bit) and weight.quant_state is not None:
        state = weight.quant_state
        nested = [state.state2.absmax, state.offset] if state.nested else []
        method = f"{state.quant_type}{'-double' if state.nested else ''}"
        found = Format(int(8 * weight.nbytes / state.shape.numel()), method, state.blocksize)
        return weight.data, [state.absmax, *nested], found
    if isinstance(layer, Linear8bitLt) and weight.dtype == torch.int8:
        # bitsandbytes' own forward pass moves the scales from the weight to the layer's state.
        scales = weight.SCB if weight.SCB is not None else layer.state.SCB
        return weight.data, [scales], Format(8, "int8", 0)
    return weight.data, [], Format(8 * weight.element_size(), "plain", 0)
