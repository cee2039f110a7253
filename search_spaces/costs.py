"""Exact bytes of stored weights and adapters, by arithmetic on the storage formats.

16 bits: bfloat16. 8 bits: int8 codes with one float32 scale a row (LLM.int8(),
arXiv:2208.07339, section 2.1). 4 bits: NF4 in blocks of 64 with double quantisation of the
block maxima (QLoRA, arXiv:2305.14314, section 3). 3 and 2 bits: HQQ groups of 64 along the
input with a 16-bit scale and zero point each; ten 3-bit codes share an int32, so 3 bits are
stored in 3.2. Tables that are constants of a format are not counted.
"""

from collections.abc import Mapping
from math import ceil

from search_spaces.allocation import Allocation
from search_spaces.inventory import Inventory, TargetModule

GROUP_SIZE = 64
NESTED_BLOCK_SIZE = 256
CODES_PER_INT32 = 10
BYTES_16_BIT = 2
BYTES_FLOAT32 = 4


def stored_bytes(bits: int, out_features: int, in_features: int) -> int:
    """Return the bytes of one packed weight matrix, scales and zero points included.

    Raises:
        ValueError: The bits have no storage format.
    """
    weights = out_features * in_features
    groups = ceil(weights / GROUP_SIZE)
    if bits == 16:
        return BYTES_16_BIT * weights
    if bits == 8:
        return weights + BYTES_FLOAT32 * out_features
    if bits == 4:
        nested_blocks = ceil(groups / NESTED_BLOCK_SIZE)
        return ceil(weights / 2) + groups + BYTES_FLOAT32 * nested_blocks + BYTES_FLOAT32
    scales_and_zeros = 2 * BYTES_16_BIT * groups
    if bits == 3:
        return BYTES_FLOAT32 * GROUP_SIZE * ceil(groups / CODES_PER_INT32) + scales_and_zeros
    if bits == 2:
        return weights // 4 + scales_and_zeros
    raise ValueError(f"`bits` must be one of 2, 3, 4, 8, 16, got {bits}. Choose one of them.")


def packable(bits: int, target: TargetModule) -> bool:
    """Tell whether the shape of the target module fits the storage format."""
    if bits == 3:
        return target.weights % GROUP_SIZE == 0
    if bits == 2:
        return target.weights % (4 * GROUP_SIZE) == 0
    return True


def adapter_bytes(rank: int, out_features: int, in_features: int) -> int:
    """Return the bytes of one LoRA pair, kept in 16 bits once deployed."""
    return BYTES_16_BIT * rank * (out_features + in_features)


def average_bits(allocation: Allocation, inventory: Inventory) -> float:
    """Return the stored bits per base weight, scales and zero points included.

    Weighted by the number of weights of each target module; the adapter is not counted.

    Raises:
        KeyError: A target module is missing from the allocation.
    """
    stored = sum(
        stored_bytes(allocation.choices[target.name].bits, target.out_features, target.in_features)
        for target in inventory.targets
    )
    return 8 * stored / sum(target.weights for target in inventory.targets)


def target_bytes(allocation: Allocation, inventory: Inventory) -> int:
    """Return the bytes of all target modules with their adapters."""
    return sum(
        module_bytes(
            target, allocation.choices[target.name].bits, allocation.choices[target.name].rank
        )
        for target in inventory.targets
    )


def module_bytes(target: TargetModule, bits: int, rank: int) -> int:
    """Return the bytes of one target module with its adapter."""
    shape = (target.out_features, target.in_features)
    return stored_bytes(bits, *shape) + adapter_bytes(rank, *shape)


def memory_bytes(allocation: Allocation, inventory: Inventory) -> int:
    """Return the bytes that the deployed model keeps: packed codes, scales, zero points,
    adapters, and everything unquantised in 16 bits.
    """
    return target_bytes(allocation, inventory) + BYTES_16_BIT * inventory.other_parameters


def format_bytes(value: float) -> str:
    """Return the value in megabytes (10**6) for people."""
    return f"{value / 1e6:.2f} MB"


def parse_bytes(text: str) -> int:
    """Return the bytes that a text such as `30MB`, `512KB` or `1.5GB` names (powers of 1000).

    Raises:
        ValueError: No positive number with one of the units B, KB, MB, GB.
    """
    units: Mapping[str, int] = {"GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}
    cleaned = text.strip().upper()
    for unit, factor in units.items():
        if cleaned.endswith(unit):
            try:
                value = float(cleaned.removesuffix(unit)) * factor
            except ValueError:
                break
            if 0 < value < float("inf"):
                return int(value)
            break
    raise ValueError(
        f"`--max-memory` must be a positive number with a unit B, KB, MB or GB, got {text!r}. "
        "Write for example 30MB."
    )
