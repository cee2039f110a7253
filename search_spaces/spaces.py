"""The spaces: which bits and ranks each target module may take. Fixed ones have one point."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import log10

from search_spaces.allocation import Allocation, Choice
from search_spaces.costs import memory_bytes, module_bytes, packable
from search_spaces.inventory import Inventory, TargetModule

ALL_BITS = (2, 3, 4, 8, 16)
ALL_RANKS = (0, 2, 4, 8, 16, 32)
DEFAULT_BITS = 4
DEFAULT_RANK = 8
BASELINES = ("B-FP", "B-Q4")
NEEDS_ADALORA = ("B-Ada", "Joint-1", "Joint-2", "matrix")
# Uniform allocations (bits, rank) that start a search, the most telling ones first.
ANCHORS = ((3, 8), (2, 8), (3, 2), (2, 2), (4, 2), (2, 16), (3, 0), (3, 16), (8, 4), (2, 4))


@dataclass(frozen=True)
class Space:
    """The bits and ranks that each target module may take.

    Attributes:
        name: As given to `--space`.
        inventory: The model's target modules.
        bits: Module name to its bits, ascending.
        ranks: Module name to its ranks, ascending.
    """

    name: str
    inventory: Inventory
    bits: Mapping[str, tuple[int, ...]]
    ranks: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        for names, rule in ((self.bits, "bits"), (self.ranks, "ranks")):
            for name in self.inventory.names:
                if not names.get(name):
                    raise ValueError(
                        f"`{rule}` must leave at least one choice, got none for {name}. "
                        "Its shape fits no storage format; use another model."
                    )

    @property
    def fixed(self) -> bool:
        """Whether the space has one point."""
        return all(
            len(self.bits[name]) == len(self.ranks[name]) == 1 for name in self.inventory.names
        )

    @property
    def log10_size(self) -> float:
        """Decimal logarithm of the number of allocations."""
        return sum(
            log10(len(self.bits[name]) * len(self.ranks[name])) for name in self.inventory.names
        )

    def smallest(self) -> Allocation:
        """Return the allocation with the fewest bytes."""
        return Allocation({t.name: self._extreme(t, smallest=True) for t in self.inventory.targets})

    def largest(self) -> Allocation:
        """Return the allocation with the most bytes."""
        return Allocation(
            {t.name: self._extreme(t, smallest=False) for t in self.inventory.targets}
        )

    def nearest_uniform(self, bits: int, rank: int) -> Allocation:
        """Return the allocation nearest to these bits and this rank everywhere."""
        return Allocation(
            {
                name: Choice(
                    min(self.bits[name], key=lambda value: abs(value - bits)),
                    min(self.ranks[name], key=lambda value: abs(value - rank)),
                )
                for name in self.inventory.names
            }
        )

    def anchors(self, limit: int, max_memory_bytes: int | None) -> list[Allocation]:
        """Return up to `limit` distinct near-uniform allocations that fit."""
        found: dict[Allocation, None] = {}
        for bits, rank in ANCHORS:
            allocation = self.nearest_uniform(bits, rank)
            if (
                max_memory_bytes is None
                or memory_bytes(allocation, self.inventory) <= max_memory_bytes
            ):
                found[allocation] = None
        return list(found)[:limit]

    def _extreme(self, target: TargetModule, *, smallest: bool) -> Choice:
        pick = min if smallest else max
        bits = pick(self.bits[target.name], key=lambda value: module_bytes(target, value, 0))
        return Choice(bits, pick(self.ranks[target.name]))


def _searched(
    inventory: Inventory, name: str, bits: tuple[int, ...], ranks: tuple[int, ...]
) -> Space:
    return Space(
        name,
        inventory,
        {t.name: tuple(b for b in bits if packable(b, t)) for t in inventory.targets},
        {
            t.name: tuple(r for r in ranks if r <= min(t.out_features, t.in_features))
            for t in inventory.targets
        },
    )


def _fixed(inventory: Inventory, name: str, choose: Callable[[TargetModule], Choice]) -> Space:
    choices = {target.name: choose(target) for target in inventory.targets}
    return Space(
        name,
        inventory,
        {module: (choice.bits,) for module, choice in choices.items()},
        {module: (choice.rank,) for module, choice in choices.items()},
    )


def _joint_3(target: TargetModule) -> Choice:
    return Choice(8, 6) if target.part == "attention" else Choice(4, 10)


SPACES: Mapping[str, Callable[[Inventory], Space]] = {
    "joint": partial(_searched, name="joint", bits=ALL_BITS, ranks=ALL_RANKS),
    "bits": partial(_searched, name="bits", bits=ALL_BITS, ranks=(DEFAULT_RANK,)),
    "rank": partial(_searched, name="rank", bits=(DEFAULT_BITS,), ranks=ALL_RANKS),
    "B-FP": partial(_fixed, name="B-FP", choose=lambda _: Choice(16, DEFAULT_RANK)),
    "B-Q4": partial(_fixed, name="B-Q4", choose=lambda _: Choice(4, DEFAULT_RANK)),
    "Joint-3": partial(_fixed, name="Joint-3", choose=_joint_3),
}


def make_space(name: str, inventory: Inventory) -> Space:
    """Return the named space over the model's target modules.

    Raises:
        ValueError: The name is unknown, or its configuration needs AdaLoRA.
    """
    check_space_name(name)
    return SPACES[name](inventory)


def check_space_name(name: str) -> None:
    """Check that the space exists, without a model.

    Raises:
        ValueError: The name is unknown, or its configuration needs AdaLoRA.
    """
    known = ", ".join(SPACES)
    if name in NEEDS_ADALORA:
        raise ValueError(
            f"`--space` must be one of {known}, got {name!r}, which needs AdaLoRA and is not "
            "available yet. Use one of those."
        )
    if name not in SPACES:
        raise ValueError(f"`--space` must be one of {known}, got {name!r}. Use one of those.")


def fixed_allocation(name: str, inventory: Inventory) -> Allocation:
    """Return the one allocation of a fixed space."""
    return make_space(name, inventory).smallest()
