"""Kernels for codes on a CUDA GPU, in Triton. Each does what plain torch does elsewhere.

To dequantise is one pass: codes and scales are read, weights written. To choose codes column after
column takes one launch for a block of columns, where plain torch needs ten for each of them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from search_spaces.costs import CODE_PLANES, plane_rows

ROWS, COLUMNS = 8, 512
# Groups of HQQ's codes that one program unpacks.
GROUPS = 64
# Outputs of a matrix whose codes one program chooses. Each has a block of inputs.
OUTPUTS = 32
# Adding and subtracting it rounds to whole numbers, halves to even ones, up to 2^22.
WHOLE = tl.constexpr(1.5 * 2**23)


def fused_weight(
    packed: Tensor, scales: Tensor, bits: int, out_features: int, dtype: torch.dtype
) -> Tensor:
    """Return codes times scales, out x in.

    Args:
        packed: See `planes`; on a GPU.
        scales: out x groups.
        bits: 2, 3, 4 or 8.
        out_features: Rows of the weight.
        dtype: Of the result.
    """
    planes, columns = CODE_PLANES[bits], packed.shape[1]
    weight = packed.new_empty(out_features, columns, dtype=dtype)
    upper = plane_rows(out_features, planes[0])
    # Codes that share a byte of the narrowest part are unpacked one after the other, while it lies
    # in the cache.
    runs, places = plane_rows(out_features, planes[-1]), 8 // planes[-1]
    grid = (triton.cdiv(runs, ROWS) * places, triton.cdiv(columns, COLUMNS))
    _kernel[grid](
        packed,
        scales,
        weight,
        out_features,
        columns,
        upper,
        runs,
        GROUP=columns // scales.shape[1],
        WIDTH=planes[0],
        LOWEST=len(planes) > 1,
        PLACES=places,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
    )
    return weight


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    packed,
    scales,
    weight,
    out_features,
    columns,
    upper,
    runs,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    LOWEST: tl.constexpr,
    PLACES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write ROWS x COLUMNS weights."""
    part = tl.program_id(0)
    within = (part // PLACES) * ROWS + tl.arange(0, ROWS)
    row = (part % PLACES) * runs + within
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    # A run ends where the next begins, and the last bytes may be padded.
    inside = ((within < runs) & (row < out_features))[:, None] & (column < columns)[None, :]
    found = tl.load(packed + (row % upper)[:, None] * columns + column[None, :], inside, 0)
    # Up to the sign of 32 bits, and down with it.
    left = 32 - WIDTH * (row // upper + 1)
    code = (found.to(tl.int32) << left[:, None]) >> (32 - WIDTH)
    if LOWEST:
        lowest = packed + (upper + row % runs)[:, None] * columns + column[None, :]
        bit = (tl.load(lowest, inside, 0).to(tl.int32) >> (row // runs)[:, None]) & 1
        code = (code << 1) | bit
    groups = (row * (columns // GROUP))[:, None] + (column // GROUP)[None, :]
    kind = weight.dtype.element_ty
    scale = tl.load(scales + groups, inside, 0).to(kind).to(tl.float32)
    value = code.to(tl.float32) * scale
    tl.store(weight + row[:, None] * columns + column[None, :], value.to(kind), inside)


def hqq_weight(
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor,
    bits: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor:
    """Return HQQ's codes minus zero points times scales, out x in.

    Args:
        packed: Words x size of a group, as HQQ packs them: the first places of all words hold the
            first groups.
        scales, zeros: Of each group.
        bits: Of a code.
        shape: Of the weight.
        dtype: Of the result.
    """
    words, size = packed.shape
    weight = packed.new_empty(shape, dtype=dtype)
    places = 8 * packed.element_size() // bits
    _hqq_kernel[(triton.cdiv(words, GROUPS) * places,)](
        packed,
        scales,
        zeros,
        weight,
        words,
        scales.numel(),
        BITS=bits,
        PLACES=places,
        SIZE=size,
        WIDTH=triton.next_power_of_2(size),
        GROUPS=GROUPS,
    )
    return weight


@triton.jit  # type: ignore[untyped-decorator]
def _hqq_kernel(  # type: ignore[no-untyped-def]
    packed,
    scales,
    zeros,
    weight,
    words,
    groups,
    BITS: tl.constexpr,
    PLACES: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Write one place of some words."""
    part = tl.program_id(0)
    place = part % PLACES
    word = (part // PLACES) * GROUPS + tl.arange(0, GROUPS)
    group = place * words + word
    # The last words may be padded.
    known = (word < words) & (group < groups)
    column = tl.arange(0, WIDTH)
    inside = known[:, None] & (column < SIZE)[None, :]
    found = tl.load(packed + word[:, None] * SIZE + column[None, :], inside, 0).to(tl.int32)
    code = (found >> (BITS * (PLACES - 1 - place))) & ((1 << BITS) - 1)
    zero = tl.load(zeros + group, known, 0.0).to(tl.float32)
    scale = tl.load(scales + group, known, 0.0).to(tl.float32)
    value = (code.to(tl.float32) - zero[:, None]) * scale[:, None]
    place_in = weight + group[:, None] * SIZE + column[None, :]
    tl.store(place_in, value.to(weight.dtype.element_ty), inside)


def fed_back_block(
    left: Tensor, scales: Tensor, factor: Tensor, bits: int
) -> tuple[Tensor, Tensor]:
    """Return codes and errors, see `calibrate`; all are inputs x outputs, the factor square."""
    codes, errors = torch.empty_like(left), torch.empty_like(left)
    _choose(left, codes, errors, scales, factor, bits, descend=False)
    return codes, errors


def descended_block(
    codes: Tensor, pull: Tensor, scales: Tensor, moment: Tensor, bits: int
) -> Tensor:
    """Return new codes, see `calibrate`; all are inputs x outputs, the moment square."""
    found = codes.clone()
    _choose(pull, found, found, scales, moment, bits, descend=True)
    return found


def _choose(
    values: Tensor,
    codes: Tensor,
    errors: Tensor,
    scales: Tensor,
    matrix: Tensor,
    bits: int,
    descend: bool,
) -> None:
    inputs, outputs = values.shape
    _choose_kernel[(triton.cdiv(outputs, OUTPUTS),)](
        values.contiguous(),
        codes,
        errors,
        scales.contiguous(),
        matrix.contiguous(),
        outputs,
        LEAST=-(2 ** (bits - 1)),
        DESCEND=descend,
        # 32 or 64: widths are multiples of 32.
        INPUTS=inputs,
        OUTPUTS=OUTPUTS,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _choose_kernel(  # type: ignore[no-untyped-def]
    values,
    codes,
    errors,
    scales,
    matrix,
    outputs,
    LEAST: tl.constexpr,
    DESCEND: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """Choose all inputs' codes of some outputs."""
    number = tl.arange(0, INPUTS)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    inside = output < outputs
    place = number[:, None] * outputs + output[None, :]
    left = tl.load(values + place, inside[None, :], 0.0)
    for column in range(INPUTS):
        here = column * outputs + output
        value = tl.sum(tl.where(number[:, None] == column, left, 0.0), axis=0)
        scale = tl.load(scales + here, inside, 1.0)
        row = tl.load(matrix + column * INPUTS + number)
        middle = tl.load(matrix + column * INPUTS + column)
        if DESCEND:
            before = tl.load(codes + here, inside, 0.0)
            wanted = before + value / (middle * scale)
        else:
            before = tl.zeros_like(value)
            wanted = value / scale
        code = tl.minimum(tl.maximum(wanted, LEAST), -LEAST - 1)
        code = (code + WHOLE) - WHOLE
        if DESCEND:
            passed = (code - before) * scale
        else:
            passed = (value - code * scale) / middle
            tl.store(errors + here, passed, inside)
        tl.store(codes + here, code, inside)
        left -= row[:, None] * passed[None, :]
