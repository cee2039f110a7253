"""The spaces: which bits, group sizes and ranks each module may take. Fixed ones have points."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import log10
from random import Random

from search_spaces.allocation import Allocation, Choice
from search_spaces.costs import memory_bytes, module_bytes, packable
from search_spaces.fixed import DEFAULT_RANK, FIXED, fixed_allocation
from search_spaces.formats import GPTQ_GROUP_SIZES, GROUP_SIZE, Format, Formats
from search_spaces.inventory import Inventory, TargetModule

ALL_BITS = (2, 3, 4, 8, 16)
ALL_RANKS = (0, 2, 4, 8, 16, 32)
DEFAULT_BITS = 4
MATRIX = "matrix"
# Uniform allocations (bits, rank) that start a search, the most telling ones first.
ANCHORS = ((3, 8), (2, 8), (3, 2), (2, 2), (4, 2), (2, 16), (3, 0), (3, 16), (8, 4), (2, 4))

PerModule = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Space:
    """The bits, group sizes and ranks that each module may take, or a list of allocations.

    Attributes:
        name: As given to `--space`.
        inventory: The model's modules.
        formats: What the backend has.
        bits: Module name to its bits, ascending.
        ranks: Module name to its ranks, ascending; an embedding has rank 0 only.
        group_sizes: Module name to its group sizes, ascending.
        points: Of a fixed space: configuration to its allocation. The rest is empty then.
        groups: Modules that take the same choice; each at most once. Others choose alone.
    """

    name: str
    inventory: Inventory
    formats: Formats = Formats()
    bits: PerModule = field(default_factory=dict)
    ranks: PerModule = field(default_factory=dict)
    group_sizes: PerModule = field(default_factory=dict)
    points: Mapping[str, Allocation] = field(default_factory=dict)
    groups: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        for name in () if self.points else self.inventory.names:
            if not self.bits[name]:
                raise ValueError(
                    f"`bits` must leave at least one choice in --space {self.name}, got none for "
                    f"{name} with --quant-backend {self.formats.backend}. "
                    "Its shape or the backend has none; use another backend or space."
                )

    @property
    def fixed(self) -> bool:
        """Whether nothing is searched."""
        return bool(self.points)

    @property
    def log10_size(self) -> float:
        """Decimal logarithm of the number of allocations, group sizes counted where they matter."""
        if self.points:
            return log10(len(self.points))
        return sum(log10(len(self.choices(unit[0]))) for unit in self.units)

    @property
    def units(self) -> tuple[tuple[str, ...], ...]:
        """The modules that choose together, in the order of the inventory; most of them alone."""
        of = {name: group for group in self.groups for name in group}
        return tuple(dict.fromkeys(of.get(name, (name,)) for name in self.inventory.names))

    def choice(self, name: str, bits: int, rank: int, group_size: int) -> Choice:
        """Return a module's choice in the format that the backend has for these bits."""
        return Choice.of(self.formats.of(bits, group_size), rank)

    def choices(self, name: str) -> tuple[Choice, ...]:
        """Return all that a module of a searched space may take, each once."""
        every = (
            self.choice(name, bits, rank, group_size)
            for bits in self.bits[name]
            for rank in self.ranks[name]
            for group_size in self.group_sizes[name]
        )
        return tuple(dict.fromkeys(every))

    def formats_of(self, name: str) -> tuple[Format, ...]:
        """Return the formats that a module may have, each once."""
        points = [point.choices[name].format for point in self.points.values()]
        every = points or [choice.format for choice in self.choices(name)]
        return tuple(dict.fromkeys(every))

    @property
    def adapted_formats(self) -> Mapping[str, tuple[Format, ...]]:
        """The formats of each module of a searched space that may have an adapter."""
        return {name: self.formats_of(name) for name, ranks in self.ranks.items() if max(ranks)}

    def draw(self, name: str, generator: Random) -> Choice:
        """Return a module's choice with bits, rank and group size each drawn evenly."""
        bits, rank = generator.choice(self.bits[name]), generator.choice(self.ranks[name])
        return self.choice(name, bits, rank, generator.choice(self.group_sizes[name]))

    def draw_all(self, generator: Random) -> Allocation:
        """Return an allocation with the choice of each unit drawn by itself."""
        drawn: dict[str, Choice] = {}
        for unit in self.units:
            drawn |= dict.fromkeys(unit, self.draw(unit[0], generator))
        return Allocation({name: drawn[name] for name in self.inventory.names})

    def smallest(self) -> Allocation:
        """Return the allocation with the fewest bytes."""
        if self.points:
            return min(self.points.values(), key=lambda a: memory_bytes(a, self.inventory))
        return self._extreme(min)

    def largest(self) -> Allocation:
        """Return the allocation with the most bytes."""
        if self.points:
            return max(self.points.values(), key=lambda a: memory_bytes(a, self.inventory))
        return self._extreme(max)

    def nearest_uniform(self, bits: int, rank: int) -> Allocation:
        """Return the allocation nearest to these bits and this rank everywhere."""
        return Allocation(
            {
                module.name: self.choice(
                    module.name,
                    min(self.bits[module.name], key=lambda value: abs(value - bits)),
                    min(self.ranks[module.name], key=lambda value: abs(value - rank)),
                    self.formats.usual_group_size(module.in_features),
                )
                for module in self.inventory.modules
            }
        )

    def anchors(self, limit: int, max_memory_bytes: int | None) -> list[Allocation]:
        """Return up to `limit` distinct near-uniform allocations that fit."""
        found: dict[Allocation, None] = {}
        for bits, rank in ANCHORS:
            allocation = self.nearest_uniform(bits, rank)
            size = memory_bytes(allocation, self.inventory)
            if max_memory_bytes is None or size <= max_memory_bytes:
                found[allocation] = None
        return list(found)[:limit]

    def _extreme(self, pick: Callable[..., Choice]) -> Allocation:
        return Allocation(
            {
                module.name: pick(
                    self.choices(module.name),
                    key=lambda choice, module=module: module_bytes(module, choice),
                )
                for module in self.inventory.modules
            }
        )


SEARCHED: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "joint": (ALL_BITS, ALL_RANKS),
    "bits": (ALL_BITS, (DEFAULT_RANK,)),
    "rank": ((DEFAULT_BITS,), ALL_RANKS),
}
SPACES = (*SEARCHED, *FIXED, MATRIX)


def make_space(name: str, inventory: Inventory, formats: Formats | None = None) -> Space:
    """Return the named space over the model's modules.

    Args:
        name: As given to `--space`.
        inventory: The model's modules.
        formats: What the backend has; None for the usual formats on a CPU.

    Raises:
        ValueError: The name is unknown, or the backend or a module's shape has no such bits.
    """
    check_space_name(name)
    known = formats or Formats()
    if name in SEARCHED:
        return _searched(name, inventory, known)
    names = FIXED if name == MATRIX else (name,)
    points = {point: fixed_allocation(point, inventory, known) for point in names}
    return Space(name=name, inventory=inventory, formats=known, points=points)


def check_space_name(name: str) -> None:
    """Check that the space exists, without a model.

    Raises:
        ValueError: It doesn't.
    """
    if name not in SPACES:
        raise ValueError(
            f"`--space` must be one of {', '.join(SPACES)}, got {name!r}. Use one of those."
        )


def _searched(name: str, inventory: Inventory, formats: Formats) -> Space:
    all_bits, all_ranks = SEARCHED[name]
    bits: dict[str, tuple[int, ...]] = {}
    ranks: dict[str, tuple[int, ...]] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    for module in inventory.modules:
        embedding = module.part == "embedding"
        wanted = (16,) if embedding and name == "rank" else all_bits
        _check_inputs(formats, module)
        sizes[module.name] = formats.group_sizes_of(module.in_features)
        bits[module.name] = tuple(
            value
            for value in wanted
            if value in formats.methods
            and all(packable(formats.of(value, size), module) for size in sizes[module.name])
        )
        limit = 0 if embedding else min(module.out_features, module.in_features)
        ranks[module.name] = tuple(rank for rank in all_ranks if rank <= limit) or (0,)
    return Space(
        name=name,
        inventory=inventory,
        formats=formats,
        bits=bits,
        ranks=ranks,
        group_sizes=sizes,
    )


def _check_inputs(formats: Formats, module: TargetModule) -> None:
    """Check sizes that were asked for; with the usual one a shape may just have fewer bits."""
    smallest = min(GPTQ_GROUP_SIZES)
    if formats.along_input and module.in_features % smallest:
        raise ValueError(
            f"`--model` must have inputs in multiples of {smallest} for --quant-backend "
            f"{formats.backend}, got {module.in_features} for {module.name}. Use --quant-backend "
            "bnb or hqq."
        )
    for size in formats.group_sizes:
        along_input = module.part == "embedding" or formats.along_input
        counted = "inputs" if along_input else "weights"
        whole = module.in_features if along_input else module.weights
        if whole % size and formats.group_sizes != (GROUP_SIZE,):
            raise ValueError(
                f"`--group-size` must divide {whole}, the {counted} of {module.name}, got {size}. "
                "Use a smaller one."
            )
