"""Lays codes and scales out in the blocks of llama.cpp, without a change of either.

A block is a float16 scale and the codes of 32 or 64 inputs of one output (`ggml-common.h` of
llama.cpp). Codes are turned as its kernels read them: 2 bits stand for -1, 0, 1, 2 there and for
-2, -1, 0, 1 here, which is the same under a scale of the other sign.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search_spaces.formats import GGUF_GROUP_SIZES


@dataclass(frozen=True)
class BlockType:
    """How llama.cpp stores a matrix.

    Attributes:
        name: In llama.cpp.
        number: Of the type, in files. That of 2 bits is newer than the table of `gguf` 0.19.
        size: Inputs of a block.
        block_bytes: Of a block.
    """

    name: str
    number: int
    size: int
    block_bytes: int

    def matrix_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a matrix, out x in."""
        return int(np.prod(shape)) // self.size * self.block_bytes


BLOCKS = {
    2: BlockType("Q2_0", 42, GGUF_GROUP_SIZES[2], 18),
    4: BlockType("Q4_0", 2, GGUF_GROUP_SIZES[4], 18),
    8: BlockType("Q8_0", 8, GGUF_GROUP_SIZES[8], 34),
}
PLAIN, VECTOR, ADAPTER = (
    BlockType("BF16", 30, 1, 2),
    BlockType("F32", 0, 1, 4),
    BlockType("F16", 1, 1, 2),
)


def as_blocks(codes: NDArray[np.int8], scales: NDArray[np.float16], bits: int) -> NDArray[np.uint8]:
    """Return signed codes, out x in, and scales, out x groups, as out x bytes of blocks.

    Args:
        codes: From -2^(bits-1) to 2^(bits-1) - 1.
        scales: Of groups of one or several whole blocks.
        bits: 2, 4 or 8.
    """
    size = BLOCKS[bits].size
    blocks = codes.reshape(len(codes), -1, size)
    scales = scales.repeat(blocks.shape[1] // scales.shape[1], axis=1)
    if bits == 2:
        packed, scales = _quarters((1 - blocks).view(np.uint8)), -scales
    elif bits == 4:
        packed = _halves((blocks + 8).view(np.uint8))
    else:
        packed = blocks.view(np.uint8)
    head = np.ascontiguousarray(scales[:, :, None]).view(np.uint8)
    return np.concatenate((head, packed), axis=2).reshape(len(codes), -1)


def _quarters(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return four codes a byte, the first in its lowest bits."""
    each = codes.reshape(*codes.shape[:2], -1, 4)
    found: NDArray[np.uint8] = np.bitwise_or.reduce(each << np.array([0, 2, 4, 6], np.uint8), -1)
    return found


def _halves(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return two codes a byte: one of the first half of a block, over it one of the second."""
    low, high = np.split(codes, 2, axis=2)
    found: NDArray[np.uint8] = np.bitwise_or(low, high << 4)
    return found
