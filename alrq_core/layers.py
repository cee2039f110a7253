"""Packed linear layers for every number of bits, and the exact reading of what they store."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import bitsandbytes
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from hqq.core.quantize import HQQLinear
from torch import Tensor, nn

from alrq_core.records import ModuleReceipt
from search_spaces.costs import GROUP_SIZE

STORAGE_DTYPE = torch.bfloat16


class Linear16(nn.Linear):
    """A frozen linear layer that keeps 16-bit weights and computes in its input's type."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output, in the type of `input` or of autocast."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return nn.functional.linear(input, self.weight.to(input.dtype), bias)


class Linear8(Linear8bitLt):  # type: ignore[misc]
    """An int8 layer that evaluates on a CPU as it trains: codes times unquantised activations.

    bitsandbytes also quantises the activations once the layer is in eval mode, which scores
    another function than the trained one and takes 3 to 10 times as long on a CPU.
    """

    compute_dtype = torch.float32

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, in the compute type."""
        if x.device.type != "cpu":
            return Linear8bitLt.forward(self, x)  # type: ignore[no-any-return]
        if self.weight.CB is not None:
            self.init_8bit_state()
        self.state.is_training = True
        x = x.to(self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        output: Tensor = bitsandbytes.matmul(x, self.weight, bias=bias, state=self.state)
        return output


def pack_linear(linear: nn.Linear, bits: int, compute_dtype: torch.dtype) -> nn.Module:
    """Return a frozen layer that stores the weights of `linear` in `bits`.

    The input layer is left as it was.

    Raises:
        ValueError: The bits have no storage format.
    """
    if bits not in PACKERS:
        raise ValueError(
            f"`bits` must be one of {', '.join(map(str, PACKERS))}, got {bits}. Choose one of them."
        )
    with torch.no_grad():
        packed = PACKERS[bits](linear, compute_dtype)
    return packed.requires_grad_(False)


def read_layer(layer: nn.Module, rank: int) -> ModuleReceipt:
    """Return what a frozen layer really stores, from its tensors alone.

    A layer of an unknown class is read as plain weights, so that a quantiser that did nothing
    shows as 16 or 32 bits.

    Args:
        layer: The frozen base layer, without its adapter.
        rank: Rank read from the adapter around it.
    """
    codes, others, bits = stored_tensors(layer)
    stored = codes.nbytes + sum(tensor.nbytes for tensor in others)
    data = codes.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return ModuleReceipt(
        module_class=f"{type(layer).__module__}.{type(layer).__qualname__}",
        bits=bits,
        stored_bytes=stored,
        rank=rank,
        checksum=zlib.crc32(data),
    )


def stored_tensors(layer: nn.Module) -> tuple[Tensor, list[Tensor], int]:
    """Return a layer's codes, its scales and zero points, and the bits of one code.

    The tensors are the layer's own: what is written into them is what it computes with.
    """
    if isinstance(layer, HQQLinear):
        # HQQ keeps scales and zeros in a dictionary that no count over parameters sees.
        extra = [value for key, value in layer.meta.items() if key in {"scale", "zero"}]
        per_code = 8 * layer.W_q.nbytes / layer.meta["shape"].numel()
        return layer.W_q.data, extra, int(per_code)
    weight: Any = layer.get_parameter("weight")
    if isinstance(layer, Linear4bit) and weight.quant_state is not None:
        state = weight.quant_state
        nested = [state.state2.absmax, state.offset] if state.nested else []
        per_code = 8 * weight.nbytes / state.shape.numel()
        return weight.data, [state.absmax, *nested], int(per_code)
    if isinstance(layer, Linear8bitLt) and weight.dtype == torch.int8:
        # The first forward pass moves the row scales from the weight to the layer's state.
        scales = layer.state.SCB if layer.state.SCB is not None else weight.SCB
        return weight.data, [scales], 8
    return weight.data, [], 8 * weight.element_size()


def _pack_16(linear: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
    packed = Linear16(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        device="meta",
        dtype=STORAGE_DTYPE,
    )
    packed.weight = nn.Parameter(linear.weight.to(STORAGE_DTYPE), requires_grad=False)
    _set_bias(packed, linear, compute_dtype)
    return packed


def _pack_8(linear: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
    packed: Any = Linear8(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        has_fp16_weights=False,
    )
    packed.compute_dtype = compute_dtype
    packed.weight.data = linear.weight.detach().clone()
    _set_bias(packed, linear, compute_dtype)
    moved: nn.Module = packed.to(linear.weight.device)
    return moved


def _pack_4(linear: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
    packed: Any = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=compute_dtype,
        compress_statistics=True,
        quant_type="nf4",
    )
    packed.weight.data = linear.weight.detach().clone()
    _set_bias(packed, linear, compute_dtype)
    # One forward pass in eval mode would repack the codes for inference on processors with
    # AVX512-BF16, and every gradient after it would be lost without an error.
    packed.support_avx512bf16_for_cpu = False
    moved: nn.Module = packed.to(linear.weight.device)
    return moved


def _pack_hqq(linear: nn.Linear, compute_dtype: torch.dtype, bits: int) -> nn.Module:
    config: dict[str, Any] = {
        "weight_quant_params": {
            "nbits": bits,
            "channel_wise": True,
            "group_size": GROUP_SIZE,
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
    _set_bias(packed, linear, compute_dtype)
    for key in ("scale", "zero"):
        packed.meta[key] = packed.meta[key].to(STORAGE_DTYPE)
    layer: nn.Module = packed
    return layer


def _set_bias(packed: Any, linear: nn.Linear, compute_dtype: torch.dtype) -> None:
    if linear.bias is not None:
        # In the 16 bits that a deployed model keeps of it.
        bias = linear.bias.detach().to(STORAGE_DTYPE).to(compute_dtype)
        packed.bias = nn.Parameter(bias, requires_grad=False)


PACKERS: Mapping[int, Callable[[nn.Linear, torch.dtype], nn.Module]] = {
    16: _pack_16,
    8: _pack_8,
    4: _pack_4,
    3: lambda linear, dtype: _pack_hqq(linear, dtype, 3),
    2: lambda linear, dtype: _pack_hqq(linear, dtype, 2),
}
