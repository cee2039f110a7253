"""Packs signed codes of 2, 3, 4 or 8 bits into bytes, and unpacks all of them or some rows.

A byte holds the codes of one input for several outputs: with n bytes a column, row r of 2-bit codes
lies in byte r % n at bits 2 (r // n). So unpacking writes whole runs of rows, and one row is found
without the others. Codes are in two's complement, which a shift extends by its sign. Three bits
are the upper two so packed, followed by the lowest one.
"""

import torch
from torch import Tensor

from search_spaces.costs import CODE_PLANES, plane_rows


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Return the bytes of signed codes: int8 out x in to int8 rows x in."""
    planes = CODE_PLANES[bits]
    upper = codes if len(planes) == 1 else codes >> planes[1]
    parts = [_packed(upper, planes[0])]
    if len(planes) > 1:
        parts.append(_packed(codes, planes[1]))
    return torch.cat(parts)


def unpack_codes(packed: Tensor, bits: int, out_features: int) -> Tensor:
    """Return the signed codes of all rows, int8 out x in."""
    planes = CODE_PLANES[bits]
    if bits == 8:
        return packed
    rows = plane_rows(out_features, planes[0])
    codes = _unpacked(packed[:rows], planes[0])[:out_features]
    if len(planes) == 1:
        return codes
    # A single bit that extends by its sign is 0 or -1.
    lowest = _unpacked(packed[rows:], planes[1])[:out_features]
    return codes.bitwise_left_shift_(1).sub_(lowest)


def unpack_rows(packed: Tensor, bits: int, out_features: int, ids: Tensor) -> Tensor:
    """Return the signed codes of the rows of these numbers, int8 len(ids) x in."""
    if bits == 8:
        return packed[ids]
    planes = CODE_PLANES[bits]
    rows = plane_rows(out_features, planes[0])
    upper = _row_codes(packed[:rows], planes[0], ids)
    if len(planes) == 1:
        return upper
    lowest = _row_codes(packed[rows:], planes[1], ids).bitwise_and_(2 ** planes[1] - 1)
    return upper.bitwise_left_shift_(planes[1]).bitwise_or_(lowest)


def _unpacked(packed: Tensor, width: int) -> Tensor:
    """Return codes of some bits as if they were all: signed, int8 rows x in.

    All runs at once: of small matrices an operation takes longer to start than to compute.
    """
    below = [8 - width * (place + 1) for place in range(8 // width)]
    codes = packed << torch.tensor(below, dtype=torch.int8, device=packed.device)[:, None, None]
    return codes.bitwise_right_shift_(8 - width).view(-1, packed.shape[1])


def _packed(codes: Tensor, width: int) -> Tensor:
    if width == 8:
        return codes
    rows = plane_rows(len(codes), width)
    padded = codes.new_zeros(rows * (8 // width), codes.shape[1])
    padded[: len(codes)] = codes & (2**width - 1)
    packed = codes.new_zeros(rows, codes.shape[1])
    for place in range(8 // width):
        packed |= padded[place * rows : (place + 1) * rows] << (width * place)
    return packed


def _row_codes(packed: Tensor, width: int, ids: Tensor) -> Tensor:
    place = torch.div(ids, len(packed), rounding_mode="floor")
    shift = (8 - width * (place + 1)).to(packed.dtype)[:, None]
    found: Tensor = packed[ids % len(packed)].bitwise_left_shift_(shift)
    return found.bitwise_right_shift_(8 - width)
