"""Makes packed layers from plain ones, and reads exactly what a layer stores."""

import zlib
from typing import Any

import torch
from bitsandbytes.functional import int8_vectorwise_quant, quantize_4bit, quantize_blockwise
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from torch import Tensor, nn

from alrq_core.layers import (
    STORAGE_DTYPE,
    HQQLinear,
    Linear4,
    Linear8,
    Linear16,
    PackedEmbedding,
)
from alrq_core.records import ModuleReceipt
from search_spaces.costs import NESTED_BLOCK_SIZE
from search_spaces.formats import FOUR_BIT, ROWS, Format

# bitsandbytes' formats are made in parts of so many weights, since to quantise takes five to twelve
# times their bytes. All group sizes divide it.
CHUNK_WEIGHTS = 2**18


def pack(module: nn.Module, stored: Format, compute_dtype: torch.dtype) -> nn.Module:
    """Return a frozen layer that stores the weights of a linear layer or an embedding.

    The input layer is left as it was.

    Raises:
        ValueError: There is no such format, or an embedding can't have it.
    """
    if isinstance(module, nn.Embedding):
        if stored.method not in ROWS:
            raise ValueError(
                f"`format` of an embedding must be one of {', '.join(ROWS)}, got {stored.method}. "
                "Choose one of them."
            )
        linear = nn.Linear(module.embedding_dim, module.num_embeddings, False, device="meta")
        linear.weight = module.weight
        # Gemma's own class multiplies each row.
        scale = float(getattr(module, "scalar_embed_scale", 1.0))
        return PackedEmbedding(_pack(linear, stored, compute_dtype), scale)
    assert isinstance(module, nn.Linear)
    return _pack(module, stored, compute_dtype)


def _pack(linear: nn.Linear, stored: Format, compute_dtype: torch.dtype) -> nn.Module:
    with torch.no_grad():
        if stored.method == "plain":
            packed = _pack_16(linear)
        elif stored.method == "int8":
            packed = _pack_8(linear)
        elif stored.method in FOUR_BIT:
            packed = _pack_4(linear, stored)
        elif stored.method == "hqq":
            packed = _pack_hqq(linear, stored, compute_dtype)
        else:
            raise ValueError(
                f"`format` must be one that is known, got {stored.method!r} for {stored.bits} "
                "bits. Use `default_format`."
            )
        packed.compute_dtype = compute_dtype
        if linear.bias is not None:
            # In the 16 bits that a deployed model keeps of it.
            bias = linear.bias.detach().to(STORAGE_DTYPE).to(compute_dtype)
            packed.bias = nn.Parameter(bias, requires_grad=False)
    layer: nn.Module = packed.requires_grad_(False)
    return layer


def read_layer(layer: nn.Module, rank: int) -> ModuleReceipt:
    """Return what a frozen layer really stores, from its tensors alone.

    A layer of an unknown class is read as plain weights, so that a quantiser that did nothing
    shows as 16 or 32 bits.

    Args:
        layer: The frozen base layer, without its adapter.
        rank: Rank read from the adapter around it.
    """
    codes, others, stored = stored_tensors(layer)
    data = codes.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
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


def _pack_16(linear: nn.Linear) -> Any:
    packed = Linear16(linear.in_features, linear.out_features, bias=False, device="meta")
    packed.weight = nn.Parameter(linear.weight.to(STORAGE_DTYPE), requires_grad=False)
    return packed


def _pack_8(linear: nn.Linear) -> Any:
    weight = linear.weight.detach()
    codes = torch.empty_like(weight, dtype=torch.int8)
    scales = weight.new_empty(len(weight), dtype=torch.float32)
    step = max(1, CHUNK_WEIGHTS // weight.shape[1])
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        codes[part], scales[part], _ = int8_vectorwise_quant(weight[part].to(torch.float16))
    packed: Any = Linear8(1, 1, bias=False, has_fp16_weights=False)
    packed.weight = Int8Params(codes, requires_grad=False, CB=codes, SCB=scales)
    packed.in_features, packed.out_features = linear.in_features, linear.out_features
    return packed


def _pack_4(linear: nn.Linear, stored: Format) -> Any:
    weight, group = linear.weight.detach().reshape(-1), stored.group_size
    codes = weight.new_empty((-(-len(weight) // 2), 1), dtype=torch.uint8)
    largest = weight.new_empty(-(-len(weight) // group), dtype=torch.float32)
    for start in range(0, len(weight), CHUNK_WEIGHTS):
        part, state = quantize_4bit(
            weight[start : start + CHUNK_WEIGHTS],
            blocksize=group,
            compress_statistics=False,
            quant_type=stored.method[:3],
        )
        codes[start // 2 : start // 2 + len(part)] = part
        largest[start // group : start // group + len(state.absmax)] = state.absmax
        # Else it is still there while the next part is made.
        del part
    state.shape, state.absmax = linear.weight.shape, largest
    if stored.method == "nf4-double":
        # As `quantize_4bit` does it to a whole matrix.
        state.offset, state.nested = largest.mean(), True
        state.absmax, state.state2 = quantize_blockwise(
            largest - state.offset, blocksize=NESTED_BLOCK_SIZE
        )
    packed: Any = Linear4(1, 1, bias=False, quant_type=stored.method[:3])
    packed.weight = Params4bit(
        codes,
        quant_state=state,
        blocksize=group,
        compress_statistics=state.nested,
        quant_type=stored.method[:3],
        bnb_quantized=True,
    )
    packed.in_features, packed.out_features = linear.in_features, linear.out_features
    return packed


def _pack_hqq(linear: nn.Linear, stored: Format, compute_dtype: torch.dtype) -> Any:
    config: dict[str, Any] = {
        "weight_quant_params": {
            "nbits": stored.bits,
            "channel_wise": True,
            "group_size": stored.group_size,
            "optimize": True,
            "round_zero": False,
            "axis": 1,
            "view_as_float": False,
        },
        "scale_quant_params": None,
        "zero_quant_params": None,
        "offload_meta": False,
    }
    packed: Any = HQQLinear(
        linear,
        config,
        del_orig=False,
        compute_dtype=compute_dtype,
        device=str(linear.weight.device),
    )
    packed.linear_layer = None
    packed.bias = None
    for key in ("scale", "zero"):
        packed.meta[key] = packed.meta[key].to(STORAGE_DTYPE)
    return packed
