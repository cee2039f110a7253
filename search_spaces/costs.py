"""Exact bytes of stored weights and adapters, by arithmetic on the storage formats.

16 bits: bfloat16. int8: codes with one float32 scale a row (LLM.int8(), arXiv:2208.07339,
section 2.1). NF4 and FP4: a float32 maximum a group, with double quantisation a byte a group
instead, in blocks of 256 with a float32 each and one offset (QLoRA, arXiv:2305.14314, section 3).
HQQ: a float16 scale and zero point a group along the input; ten 3-bit codes share an int32, so
3 bits are stored in 3.2. GPTQ: a float16 scale a group along the input and no zero point; codes of
one input fill bytes over the outputs, of which the last may be padded. Tables that are constants of
a format are not counted.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import ceil

from search_spaces.allocation import Allocation, Choice
from search_spaces.formats import ROWS, Format
from search_spaces.inventory import Inventory, TargetModule

NESTED_BLOCK_SIZE = 256
CODES_PER_INT32 = 10
# Widths of the parts in which a code is packed: 3 bits do not fill bytes, 2 and 1 do.
CODE_PLANES: Mapping[int, tuple[int, ...]] = {2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}
BYTES_16_BIT = 2
BYTES_FLOAT32 = 4


def stored_bytes(stored: Format, out_features: int, in_features: int) -> int:
    """Return the bytes of one packed weight matrix, scales and zero points included.

    Raises:
        ValueError: There is no such format.
    """
    weights = out_features * in_features
    if stored.method == "plain":
        return BYTES_16_BIT * weights
    if stored.method == "int8":
        return weights + BYTES_FLOAT32 * out_features
    if not stored.group_size:
        raise ValueError(f"`format` must be one that is known, got {stored}. Use `default_format`.")
    groups = ceil(weights / stored.group_size)
    if stored.method == "nf4-double":
        nested_blocks = ceil(groups / NESTED_BLOCK_SIZE)
        return ceil(weights / 2) + groups + BYTES_FLOAT32 * (nested_blocks + 1)
    if stored.method in ("nf4", "fp4"):
        return ceil(weights / 2) + BYTES_FLOAT32 * groups
    if stored.method == "gptq":
        return code_rows(stored.bits, out_features) * in_features + BYTES_16_BIT * groups
    scales_and_zeros = 2 * BYTES_16_BIT * groups
    if stored.bits == 3:
        packed_rows = ceil(groups / CODES_PER_INT32)
        return BYTES_FLOAT32 * stored.group_size * packed_rows + scales_and_zeros
    return weights * stored.bits // 8 + scales_and_zeros


def plane_rows(out_features: int, width: int) -> int:
    """Return the bytes that one input's codes take, `width` bits of each."""
    return ceil(out_features * width / 8)


def code_rows(bits: int, out_features: int) -> int:
    """Return the bytes that one input's codes of GPTQ take, all their parts together."""
    return sum(plane_rows(out_features, width) for width in CODE_PLANES[bits])


def packable(stored: Format, target: TargetModule) -> bool:
    """Tell whether the shape of the module fits the storage format."""
    if target.part == "embedding" or stored.method == "gptq":
        rows_fit = not stored.group_size or target.in_features % stored.group_size == 0
        return stored.method in ROWS and rows_fit
    if stored.method == "hqq":
        # Codes of several groups share a byte; at 3 bits the last int32 is padded.
        shared = 1 if stored.bits == 3 else 8 // stored.bits
        return target.weights % (shared * stored.group_size) == 0
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
        stored_bytes(
            allocation.choices[target.name].format, target.out_features, target.in_features
        )
        for target in inventory.targets
    )
    return 8 * stored / sum(target.weights for target in inventory.targets)


def average_rank(allocation: Allocation, inventory: Inventory) -> float:
    """Return the mean rank over the target modules, those without an adapter counted as 0.

    With AdaLoRA, the mean in the end.
    """
    ranks = [_final_choice(allocation, target).rank for target in inventory.targets]
    return sum(ranks) / len(ranks)


def target_bytes(allocation: Allocation, inventory: Inventory) -> int:
    """Return the bytes of all target modules with their adapters.

    With AdaLoRA, at the final average rank everywhere: which modules keep more is only known
    after training.
    """
    return sum(_deployed_bytes(allocation, target) for target in inventory.targets)


def module_bytes(target: TargetModule, choice: Choice) -> int:
    """Return the bytes of one module with its adapter."""
    shape = (target.out_features, target.in_features)
    return stored_bytes(choice.format, *shape) + adapter_bytes(choice.rank, *shape)


def memory_bytes(allocation: Allocation, inventory: Inventory) -> int:
    """Return the bytes that the deployed model keeps: packed codes, scales, zero points,
    adapters, and everything unquantised in 16 bits. For AdaLoRA see `target_bytes`.
    """
    modules = sum(_deployed_bytes(allocation, target) for target in inventory.modules)
    return modules + BYTES_16_BIT * inventory.other_parameters


def _deployed_bytes(allocation: Allocation, target: TargetModule) -> int:
    return module_bytes(target, _final_choice(allocation, target))


def _final_choice(allocation: Allocation, target: TargetModule) -> Choice:
    choice = allocation.choices[target.name]
    if allocation.final_rank is None or not choice.rank:
        return choice
    return replace(choice, rank=allocation.final_rank)


def format_bytes(value: float) -> str:
    """Return the value in megabytes (10**6) for people."""
    return f"{value / 1e6:.2f} MB"


def format_gigabytes(value: int) -> str:
    """Return the memory of a machine for people, in gigabytes (10**9)."""
    return f"{value / 1e9:.2f} GB" if value >= 1e7 else format_bytes(value)


def parse_bytes(text: str, flag: str) -> int:
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
        f"`{flag}` must be a positive number with a unit B, KB, MB or GB, got {text!r}. "
        f"Write for example {flag} 30MB."
    )
