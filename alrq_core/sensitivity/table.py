"""The visibility table: how far each format and rank of each module moves a reference's answers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from search_spaces.allocation import Allocation, Choice
from search_spaces.formats import Format
from search_spaces.spaces import Space

VERSION = 3
# Divergence of uniform 2 bits without adapters, and the share of it that rank 1 takes away.
FLAT_DAMAGE, FLAT_MENDED = 0.3, 0.15
# Standard error of the loss over a thousand sentences.
FLAT_RESOLUTION = 0.015


@dataclass(frozen=True, kw_only=True)
class ModuleVisibility:
    """One module's part in the divergence, for every format and rank of its space.

    Attributes:
        ranks: Ranks, ascending; 0 comes first.
        damage: Format to the divergence that it alone brings about at each rank, in the order of
            `ranks`, in nats.
    """

    ranks: tuple[int, ...]
    damage: Mapping[Format, tuple[float, ...]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "damage", MappingProxyType(dict(self.damage)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _module, (self.ranks, dict(self.damage))


def _module(ranks: tuple[int, ...], damage: Mapping[Format, tuple[float, ...]]) -> ModuleVisibility:
    return ModuleVisibility(ranks=ranks, damage=damage)


@dataclass(frozen=True, kw_only=True)
class VisibilityTable:
    """What starts lose by each module's choice, as far as one backward pass can tell.

    A strong prior and no truth: modules are added up as if each were alone, to first order around
    the reference. Use it for order; how large the sum is in truth, and what training mends, the
    trials of a study tell.

    Attributes:
        modules: Module name to its part, in the order of the inventory.
        resolution: Standard error of the reference's validation loss: what is lost without
            anybody's being able to tell.
        sequences: Training sequences whose answers were looked at.
        seconds: Wall time that it took.
    """

    modules: Mapping[str, ModuleVisibility]
    resolution: float
    sequences: int
    seconds: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", MappingProxyType(dict(self.modules)))

    def __reduce__(self) -> tuple[Any, ...]:
        return VisibilityTable.from_json, (self.to_json(),)

    def damage(self, name: str, choice: Choice) -> float:
        """Return the divergence that a module's choice alone brings about.

        Raises:
            ValueError: The table doesn't have the module, its format or its rank.
        """
        module = self.modules.get(name)
        if module is None or choice.format not in module.damage or choice.rank not in module.ranks:
            has = "no such module"
            if module is not None:
                formats = ", ".join(f"{f.bits}:{f.method}:{f.group_size}" for f in module.damage)
                has = f"formats {formats} and ranks {', '.join(map(str, module.ranks))}"
            raise ValueError(
                f"`choice` must be one that the table has ({has}), got {choice} for {name}. "
                "Measure a table for this space."
            )
        return module.damage[choice.format][module.ranks.index(choice.rank)]

    def predict(self, allocation: Allocation) -> float:
        """Return the sum over an allocation's modules; the smaller the better.

        Args:
            allocation: Of the table's modules. AdaLoRA's count at the ranks they begin with.

        Raises:
            ValueError: See `damage`.
        """
        return sum(self.damage(name, choice) for name, choice in allocation.choices.items())

    def to_json(self) -> dict[str, Any]:
        """Return the versioned JSON form."""
        modules = {
            name: {
                "ranks": list(module.ranks),
                "damage": [[f.bits, f.method, f.group_size, *d] for f, d in module.damage.items()],
            }
            for name, module in self.modules.items()
        }
        return {
            "version": VERSION,
            "resolution": self.resolution,
            "sequences": self.sequences,
            "seconds": self.seconds,
            "modules": modules,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "VisibilityTable":
        """Return the table that `to_json` wrote.

        Raises:
            ValueError: Another version.
        """
        if data.get("version") != VERSION:
            raise ValueError(
                f"`version` of a visibility table must be {VERSION}, got {data.get('version')!r}. "
                "Measure it anew."
            )
        modules = {
            name: ModuleVisibility(
                ranks=tuple(entry["ranks"]),
                damage={
                    Format(bits, method, group): tuple(left)
                    for bits, method, group, *left in entry["damage"]
                },
            )
            for name, entry in data["modules"].items()
        }
        return VisibilityTable(
            modules=modules, **{name: data[name] for name in ("resolution", "sequences", "seconds")}
        )


def flat_table(space: Space) -> VisibilityTable:
    """Return a table in which every weight of the space counts alike, where none was measured.

    An error's square falls by four with each bit, and rank mends ever less.
    """
    inventory = space.inventory
    weights = sum(module.weights for module in inventory.modules)
    modules = {}
    for module in inventory.modules:
        formats, share = space.formats_of(module.name), module.weights / weights
        ranks = tuple(sorted({0, *space.ranks[module.name]}))
        left = [1 / (1 + FLAT_MENDED * math.log2(1 + rank)) for rank in ranks]
        modules[module.name] = ModuleVisibility(
            ranks=ranks,
            damage={
                stored: tuple(
                    share * FLAT_DAMAGE * 4.0 ** (2 - stored.bits) * part for part in left
                )
                for stored in formats
            },
        )
    return VisibilityTable(modules=modules, resolution=FLAT_RESOLUTION, sequences=0, seconds=0.0)
