"""Codes come back from their bytes, all of them and row by row."""

import pytest
import torch

from alrq_core.weights.planes import pack_codes, unpack_codes, unpack_rows


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("rows", [1, 2, 5, 8, 9, 16, 522])
def test_codes_come_back(bits: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half, (rows, 32), dtype=torch.int8, generator=generator)
    packed = pack_codes(codes, bits)
    ids = torch.randint(0, rows, (20,), generator=generator)

    assert torch.equal(unpack_codes(packed, bits, rows), codes)
    assert torch.equal(unpack_rows(packed, bits, rows, ids), codes[ids])
    # Eight rows fill whole bytes, and no byte is left over.
    assert len(packed) == rows * bits // 8 or rows % 8
