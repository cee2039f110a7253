"""The fixed configurations: one allocation each, for every model that has their formats."""

from collections.abc import Callable, Mapping

from search_spaces.allocation import Allocation, Choice
from search_spaces.costs import packable
from search_spaces.formats import GROUPED, Format, Formats, default_format
from search_spaces.inventory import Inventory, TargetModule

DEFAULT_RANK = 8
# AdaLoRA begins with the first rank everywhere and keeps the second on average.
ADALORA_RANKS = (12, 4)
BASELINES = ("B-FP", "B-Q4")
Bits = Callable[[TargetModule, int], int]


def _uniform(bits: int) -> Bits:
    return lambda module, _: 16 if module.part == "embedding" else bits


def _joint_2(module: TargetModule, last_block: int) -> int:
    return 8 if module.part == "embedding" or module.block in (0, last_block) else 4


def _joint_3(module: TargetModule, _: int) -> int:
    return {"embedding": 16, "attention": 8, "feed-forward": 4}[module.part]


def _joint_3_rank(module: TargetModule) -> int:
    return 6 if module.part == "attention" else 10


FIXED: Mapping[str, tuple[Bits, Callable[[TargetModule], int] | None]] = {
    "B-FP": (_uniform(16), lambda _: DEFAULT_RANK),
    "B-Q4": (_uniform(4), lambda _: DEFAULT_RANK),
    "B-Ada": (_uniform(16), None),
    "Joint-1": (_uniform(4), None),
    "Joint-2": (_joint_2, None),
    "Joint-3": (_joint_3, _joint_3_rank),
}


def fixed_allocation(name: str, inventory: Inventory, formats: Formats | None = None) -> Allocation:
    """Return the one allocation of a fixed configuration.

    Args:
        name: One of `FIXED`.
        inventory: The model's modules.
        formats: What the backend has; None for the usual formats on a CPU.

    Raises:
        ValueError: The backend has not its bits, or a module is smaller than its rank.
    """
    bits_of, rank_of = FIXED[name]
    known = formats or Formats()
    last_block = max(module.block for module in inventory.targets)
    choices = {}
    for module in inventory.modules:
        bits = bits_of(module, last_block)
        stored = _format(name, known, module, bits)
        if module.part == "embedding" and not _can(known, module, stored):
            stored = default_format(16)
        rank = ADALORA_RANKS[0] if rank_of is None else rank_of(module)
        rank = 0 if module.part == "embedding" else rank
        known.check(module.name, stored)
        choice = Choice.of(stored, rank)
        check_rank(module, choice.rank)
        choices[module.name] = choice
    return Allocation(choices, ADALORA_RANKS[1] if rank_of is None else None)


def unavailable(name: str, inventory: Inventory, formats: Formats) -> str | None:
    """Return why a fixed configuration can't run with these formats; None if it can."""
    try:
        fixed_allocation(name, inventory, formats)
    except ValueError as error:
        why = str(error).partition(". ")[0]
        return f"--quant-backend {formats.backend} lacks what it is made of ({why})."
    return None


def check_rank(module: TargetModule, rank: int) -> None:
    """Check that a rank is possible.

    Raises:
        ValueError: It is above the module's size.
    """
    limit = min(module.out_features, module.in_features)
    if not 0 <= rank <= limit:
        raise ValueError(
            f"`rank` must lie from 0 to {limit} for {module.name}, got {rank}. Use a smaller one."
        )


def _format(name: str, formats: Formats, module: TargetModule, bits: int) -> Format:
    """Return the backend's own format of these bits; of B-Q4 the one that it is known for."""
    method = formats.methods.get(bits, ("",))[0]
    if bits == 4 and name == "B-Q4":
        method = "nf4-double"
    usual = formats.usual_group_size(module.in_features)
    return Format(bits, method, formats.blocks.get(bits, usual) if method in GROUPED else 0)


def _can(formats: Formats, module: TargetModule, stored: Format) -> bool:
    """Tell whether the backend can store an embedding in this format."""
    return stored.method in formats.methods.get(stored.bits, ()) and packable(stored, module)
