"""Makes the codes, scales and zero points of a format from a weight."""

from typing import Any

import torch
from bitsandbytes.functional import (
    create_dynamic_map,
    get_4bit_type,
    int8_vectorwise_quant,
    quantize_4bit,
    quantize_blockwise,
)
from torch import Tensor, nn

from alrq_core.weights.calibrate import calibrated_codes
from alrq_core.weights.layers import HQQ_DTYPE, STORAGE_DTYPE, HQQLinear
from alrq_core.weights.planes import pack_codes
from search_spaces.costs import NESTED_BLOCK_SIZE
from search_spaces.formats import FOUR_BIT, Format

# bitsandbytes' formats are made in parts of so many weights, since to quantise takes five to twelve
# times their bytes. All group sizes divide it.
CHUNK_WEIGHTS = 2**18


def quantise(weight: Tensor, stored: Format, moment: Tensor | None = None) -> dict[str, Tensor]:
    """Return the tensors that a packed layer keeps of a weight, by what they are.

    `codes`, and as the format has them `scales`, `zeros`, `values` (what a code stands for),
    and of scales that are quantised themselves `nested`, `nested_values` and `offset`.

    Args:
        weight: out x in, of any floating type. It is left as it was.
        stored: The format.
        moment: Second moment of the inputs, in x in, which `gptq` makes its codes for. Without it
            all inputs count alike, as they do in an embedding.

    Raises:
        ValueError: There is no such format, or `gptq` got what is not finite.
    """
    with torch.no_grad():
        if stored.method == "plain":
            return {"codes": weight.detach().to(STORAGE_DTYPE)}
        matrix = weight.detach().float()
        if stored.method == "int8":
            return _int8(matrix)
        if stored.method in FOUR_BIT:
            return _four_bit(matrix, stored)
        if stored.method == "hqq":
            return _hqq(matrix, stored)
        if stored.method == "gptq":
            made = calibrated_codes(matrix, stored.bits, stored.group_size, moment)
            return {"codes": pack_codes(made[0], stored.bits), "scales": made[1]}
    raise ValueError(
        f"`format` must be one that is known, got {stored.method!r} for {stored.bits} bits. "
        "Use `default_format`."
    )


def code_values(stored: Format, device: torch.device) -> dict[str, Tensor]:
    """Return what codes stand for, `values` and `nested_values`, as far as a format has them."""
    if stored.method not in FOUR_BIT:
        return {}
    values = {"values": get_4bit_type(stored.method[:3], device)}
    if stored.method != "nf4-double":
        return values
    return {**values, "nested_values": create_dynamic_map().to(device)}


def hqq_config(stored: Format) -> dict[str, Any]:
    """Return HQQ's settings of a format."""
    return {
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


def _int8(weight: Tensor) -> dict[str, Tensor]:
    codes = torch.empty_like(weight, dtype=torch.int8)
    scales = weight.new_empty(len(weight), dtype=torch.float32)
    step = max(1, CHUNK_WEIGHTS // weight.shape[1])
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        codes[part], scales[part], _ = int8_vectorwise_quant(weight[part].to(torch.float16))
    return {"codes": codes, "scales": scales}


def _four_bit(matrix: Tensor, stored: Format) -> dict[str, Tensor]:
    weight, group = matrix.reshape(-1), stored.group_size
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
    if stored.method != "nf4-double":
        return {"codes": codes, "scales": largest, "values": state.code}
    # As `quantize_4bit` does it to a whole matrix.
    offset = largest.mean()
    scales, nested = quantize_blockwise(largest - offset, blocksize=NESTED_BLOCK_SIZE)
    return {
        "codes": codes,
        "scales": scales,
        "values": state.code,
        "nested": nested.absmax,
        "nested_values": nested.code,
        "offset": offset,
    }


def _hqq(weight: Tensor, stored: Format) -> dict[str, Tensor]:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    # HQQ rounds scales and zero points to the type that it is told to compute in.
    made: Any = HQQLinear(linear, hqq_config(stored), False, torch.float32, str(weight.device))
    scales, zeros = (made.meta[key].to(HQQ_DTYPE) for key in ("scale", "zero"))
    return {"codes": made.W_q.data, "scales": scales, "zeros": zeros}
