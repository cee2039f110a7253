"""Packed layers: weights stay in their codes, forward and backward dequantise them anew."""

import copy
from typing import Any

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, dequantize_blockwise
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from hqq.core import quantize
from torch import Tensor, nn

from alrq_core.precision import kind_of, stream_dtype
from alrq_core.weights.devices import kernels_for
from alrq_core.weights.planes import unpack_codes, unpack_rows

STORAGE_DTYPE = torch.bfloat16
# Of HQQ's scales and zero points. A zero point of 8 bits lies anywhere between 0 and 255: bfloat16
# misses it by up to half a step, float16 by a sixteenth.
HQQ_DTYPE = torch.float16
# Attribute of a tensor: its copy in another type.
CAST = "_alrq_cast"


class _Product(torch.autograd.Function):
    """x W^T + bias + scaling (x A^T) B^T, with one pass over the large output per product.

    W is dequantised anew for backward. Without an adapter the input isn't kept either.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layer: "Packed",
        bias: Tensor | None,
        a: Tensor | None,
        b: Tensor | None,
        scaling: float,
    ) -> Tensor:
        ctx.layer, ctx.scaling = layer, scaling
        rows = x.flatten(0, -2)
        if a is None or b is None:
            output = nn.functional.linear(rows, layer.weight_in(x.dtype), bias)
        else:
            # A GPU adds it on the way.
            spread = None if kind_of(x.device) == "cpu" else bias
            output = nn.functional.linear(rows, layer.weight_in(x.dtype), spread)
            a, b = a.to(x.dtype), b.to(x.dtype)
            narrow, wide = rows @ a.t(), b * scaling
            ctx.save_for_backward(rows, narrow, a, b)
            if bias is not None and spread is None:
                # One more rank, of ones times bias: to spread the bias first is another pass.
                narrow = torch.cat((narrow, narrow.new_ones(len(narrow), 1)), dim=1)
                wide = torch.cat((wide, bias[:, None]), dim=1)
            output.addmm_(narrow, wide.t())
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].flatten(0, -2)
        to_input, to_a, to_b = None, None, None
        if ctx.needs_input_grad[0]:
            to_input = gradient @ ctx.layer.weight_in(gradient.dtype)
        # Looked at once: what is computed again for it is let go of then.
        if saved := ctx.saved_tensors:
            rows, narrow, a, b = saved
            to_narrow = gradient @ (b * ctx.scaling)
            to_a, to_b = to_narrow.t() @ rows, (gradient.t() @ narrow) * ctx.scaling
            if to_input is not None:
                to_input.addmm_(to_narrow, a)
        if to_input is not None:
            to_input = to_input.view(*gradients[0].shape[:-1], -1)
        return to_input, None, None, to_a, to_b, None


class Packed:
    """What all packed linear layers share. Each says how to dequantise all of it or some rows.

    The same function runs in training and evaluation, whatever a library would do in eval mode:
    bitsandbytes rewrites 4-bit codes for inference, after which gradients are lost, and quantises
    the activations of int8 layers.

    Attributes:
        compute_dtype: Type of the product.
        kept: The dequantised weight, where a trial runs on such a copy; else None.
    """

    compute_dtype: torch.dtype = torch.float32
    kept: Tensor | None = None

    def dequantised(self) -> Tensor:
        """Return the stored weight, out x in, in float32 or the type that it is stored in."""
        raise NotImplementedError

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows of these numbers, len(ids) x in, in the type of `dequantised`."""
        raise NotImplementedError

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """Return the weight that is computed with, out x in."""
        return self.dequantised_in(dtype) if self.kept is None else self.kept.to(dtype)

    def dequantised_in(self, dtype: torch.dtype) -> Tensor:
        """Return the stored weight in a type, made in it from the start where that can be."""
        return self.dequantised().to(dtype)

    def forward(
        self, x: Tensor, a: Tensor | None = None, b: Tensor | None = None, scaling: float = 1.0
    ) -> Tensor:
        """Return the layer's output, in the compute type.

        Args:
            x: Input, ... x in.
            a, b: Halves of an adapter, rank x in and out x rank; None for no adapter.
            scaling: Of the adapter.
        """
        bias: Any = self.bias  # type: ignore[attr-defined]
        x = _shared_cast(x, self.compute_dtype)
        bias = None if bias is None else bias.to(x.dtype)
        output: Tensor = _Product.apply(x, self, bias, a, b, scaling)
        return output


def _shared_cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in a type, to all layers that read it (query, key, value) in one copy.

    The copy lives as long as the tensor, or as the backward pass needs it. Inference keeps nothing,
    and can't tell whether a tensor was changed in place.
    """
    if x.dtype == dtype or x.is_inference():
        return x.to(dtype)
    made_for = (x._version, dtype, torch.is_grad_enabled())
    found, copy = getattr(x, CAST, (None, x))
    if found != made_for:
        copy = x.to(dtype)
        setattr(x, CAST, (made_for, copy))
    return copy


class Linear16(Packed, nn.Linear):
    """A frozen linear layer that keeps 16-bit weights."""

    def dequantised(self) -> Tensor:
        """Return the weight as it is stored."""
        weight: Tensor = self.weight
        return weight

    def rows(self, ids: Tensor) -> Tensor:
        """Return stored rows."""
        rows: Tensor = self.weight[ids]
        return rows


class Linear8(Packed, Linear8bitLt):  # type: ignore[misc]
    """int8 codes with a scale a row: LLM.int8() (arXiv:2208.07339, section 2.1), weights only."""

    def dequantised(self) -> Tensor:
        """Return codes times scales, in float32."""
        return self.dequantised_in(torch.float32)

    def dequantised_in(self, dtype: torch.dtype) -> Tensor:
        """Return codes times scales, rounded once."""
        codes: Tensor = self.weight.data
        scales = self._scales()[:, None]
        if kind_of(codes.device) == "cpu":
            return codes.float().mul_(scales).to(dtype)
        # In one pass, which on a CPU takes seven times as long as two.
        return torch.mul(codes, scales, out=torch.empty_like(codes, dtype=dtype))

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows' codes times their scales, in float32."""
        codes: Tensor = self.weight.data[ids]
        return codes.float().mul_(self._scales()[ids][:, None])

    def _scales(self) -> Tensor:
        scales: Tensor = self.weight.SCB / 127
        return scales


class Linear4(Packed, Linear4bit):  # type: ignore[misc]
    """NF4 or FP4 codes (QLoRA, arXiv:2305.14314, section 3)."""

    def dequantised(self) -> Tensor:
        """Return the weight in the type that it was quantised from."""
        return self.dequantised_in(self.weight.quant_state.dtype)

    def dequantised_in(self, dtype: torch.dtype) -> Tensor:
        """Return the weight from bitsandbytes' kernel for this type."""
        state = copy.copy(self.weight.quant_state)
        state.dtype = dtype
        weight: Tensor = dequantize_4bit(self.weight.data, state)
        return weight

    def rows(self, ids: Tensor) -> Tensor:
        """Return single rows. The group size must divide a row."""
        state = self.weight.quant_state
        width = state.shape[1]
        largest = state.absmax
        if state.nested:
            largest = dequantize_blockwise(state.absmax, state.state2) + state.offset
        wanted = QuantState(
            absmax=largest.view(-1, width // state.blocksize)[ids].reshape(-1),
            shape=torch.Size((len(ids), width)),
            code=state.code,
            blocksize=state.blocksize,
            quant_type=state.quant_type,
            dtype=state.dtype,
        )
        codes = self.weight.data.view(-1, width // 2)[ids].reshape(-1, 1)
        rows: Tensor = dequantize_4bit(codes, wanted)
        return rows


class HQQLinear(Packed, quantize.HQQLinear):  # type: ignore[misc]
    """Half-quadratic quantisation (Badri and Shaji 2023): a scale and zero point a group.

    PEFT knows such layers by the name of their class.
    """

    @classmethod
    def set_backend(cls, backend: Any) -> None:
        """Do nothing: HQQ would put a forward pass of its own into this class."""

    def dequantised(self) -> Tensor:
        """Return codes minus zero points times scales, in float32."""
        return self.dequantised_in(torch.float32)

    def dequantised_in(self, dtype: torch.dtype) -> Tensor:
        """Return codes minus zero points times scales, rounded once."""
        meta, zeros = self.meta, self.meta["zero"]
        kernels = kernels_for(self.W_q)
        if kernels is not None:
            size = (meta["nbits"], meta["shape"])
            weight: Tensor = kernels.hqq_weight(self.W_q, meta["scale"], zeros, *size, dtype)
            return weight
        codes: Tensor = quantize.Quantizer.unpack[meta["packing"]](self.W_q, dtype=torch.float32)
        # The last int32 of 3-bit codes is padded.
        groups = codes[: len(zeros)]
        return groups.sub_(zeros).mul_(meta["scale"]).view(meta["shape"]).to(dtype)


class GPTQLinear(Packed, nn.Linear):
    """Codes around a fixed middle and a signed scale a group of inputs (arXiv:2210.17323).

    Attributes:
        weight: Packed codes: see `planes`.
        scales: out x groups, float16.
        bits: Of a code.
    """

    scales: Tensor
    bits: int

    def dequantised(self) -> Tensor:
        """Return codes times scales, in float32."""
        return self.dequantised_in(torch.float32)

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows' codes times their scales, in float32."""
        codes = unpack_rows(self.weight, self.bits, self.out_features, ids)
        return scaled(codes, self.scales[ids], torch.float32)

    def dequantised_in(self, dtype: torch.dtype) -> Tensor:
        """Return codes times scales, in one pass over the output."""
        kernels = kernels_for(self.weight)
        if kernels is not None:
            size = (self.bits, self.out_features)
            weight: Tensor = kernels.fused_weight(self.weight, self.scales, *size, dtype)
            return weight
        codes = unpack_codes(self.weight, self.bits, self.out_features)
        return scaled(codes, self.scales, dtype)


def scaled(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return out x in codes times out x groups scales."""
    weight = codes.to(dtype)
    weight.view(*scales.shape, -1).mul_(scales.to(dtype)[:, :, None])
    return weight


class PackedEmbedding(nn.Module):
    """Looks up rows of a packed matrix, which a tied output head may share.

    Attributes:
        packed: The matrix, vocabulary x width.
        scale: Factor on every row (Gemma).
    """

    def __init__(self, packed: Any, scale: float) -> None:
        """Look up rows of `packed`."""
        super().__init__()
        self.packed = packed
        self.scale = scale

    @property
    def weight(self) -> Tensor:
        """The stored codes: models ask it for type and device."""
        weight: Tensor = self.packed.weight
        return weight

    def forward(self, input: Tensor) -> Tensor:
        """Return the embeddings of token numbers, batch x length x width, see `stream_dtype`."""
        kept = self.packed.kept
        ids = input.reshape(-1)
        rows = self.packed.rows(ids) if kept is None else kept[ids]
        found: Tensor = rows.float() * self.scale
        dtype = stream_dtype(self.packed.compute_dtype, input.device)
        return found.to(dtype).view(*input.shape, -1)


def packed_layers(model: nn.Module) -> list[Packed]:
    """Return every packed layer of a model once."""
    return [module for module in model.modules() if isinstance(module, Packed)]


def multiplied_layers(model: nn.Module) -> list[Packed]:
    """Return the packed layers that enter a matrix product, once each: of the embeddings those that
    an output head shares.
    """
    looked_up = {
        f"{name}.packed".lstrip(".")
        for name, m in model.named_modules()
        if isinstance(m, PackedEmbedding)
    }
    every = model.named_modules(remove_duplicate=False)
    found = {id(m): m for name, m in every if isinstance(m, Packed) and name not in looked_up}
    return list(found.values())


def keep_dequantised(model: nn.Module) -> None:
    """Make a model compute with a dequantised copy of its weights: faster, and not smaller."""
    for layer in multiplied_layers(model):
        with torch.no_grad():
            # Detached: 16 bits in their own type are the parameter itself.
            layer.kept = layer.weight_in(layer.compute_dtype).detach()
