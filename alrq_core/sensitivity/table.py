"""The visibility table: what each format of each module costs the task, and what rank wins back."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub import constants

from alrq_core.files import write_json
from search_spaces.allocation import Allocation, Choice
from search_spaces.formats import Format
from search_spaces.spaces import Space

VERSION = 1
# Loss of uniform 2 bits against 16, and of no adapters against rank 1.
FLAT_DAMAGE, FLAT_GAIN = 0.05, 0.02


@dataclass(frozen=True, kw_only=True)
class ModuleVisibility:
    """One module's part in the loss, for every format and rank of its space.

    Attributes:
        ranks: Ranks, ascending; 0 comes first.
        damage: Format to what is left of its damage at each rank, in the order of `ranks`, in
            units of the loss.
        gain: What an adapter of each rank adapts to the task, in units of the loss; 0 at rank 0.
    """

    ranks: tuple[int, ...]
    damage: Mapping[Format, tuple[float, ...]]
    gain: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "damage", MappingProxyType(dict(self.damage)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _module, (self.ranks, dict(self.damage), self.gain)


def _module(
    ranks: tuple[int, ...], damage: Mapping[Format, tuple[float, ...]], gain: tuple[float, ...]
) -> ModuleVisibility:
    return ModuleVisibility(ranks=ranks, damage=damage, gain=gain)


@dataclass(frozen=True, kw_only=True)
class VisibilityTable:
    """What the loss loses and wins by each module's choice, as far as one pass can tell.

    A strong prior and no truth: the modules are added up as if each were alone, damage is taken to
    second order around one trained state, and the squares of gradients stand for curvature. Trained
    adapters mend more than the share that is counted here. Use it for order first; how
    large the two parts are in a study, its trials tell.

    Attributes:
        key: Of what it was made from.
        modules: Module name to its part, in the order of the inventory.
        steps: Optimiser steps that the model was trained for it.
        sequences: Training sequences whose gradients were taken.
        start_loss, end_loss: Mean loss over these sequences when the gains and when the damages
            were measured.
        seconds: Wall time that it took.
    """

    key: str
    modules: Mapping[str, ModuleVisibility]
    steps: int
    sequences: int
    start_loss: float
    end_loss: float
    seconds: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", MappingProxyType(dict(self.modules)))

    def __reduce__(self) -> tuple[Any, ...]:
        return VisibilityTable.from_json, (self.to_json(),)

    def damage(self, name: str, choice: Choice) -> float:
        """Return what is left of a module's damage under an adapter of the choice's rank.

        Raises:
            ValueError: The table doesn't have the module, its format or its rank.
        """
        module, place = self._find(name, choice)
        return module.damage[choice.format][place]

    def gain(self, name: str, choice: Choice) -> float:
        """Return what the choice's rank adapts to the task.

        Raises:
            ValueError: See `damage`.
        """
        module, place = self._find(name, choice)
        return module.gain[place]

    def value(self, name: str, choice: Choice, gain_weight: float = 1.0) -> float:
        """Return a module's part in the loss, the smaller the better.

        Args:
            name: Of the module.
            choice: One that the table has.
            gain_weight: Factor on the gain; 0 for damage alone.

        Raises:
            ValueError: See `damage`.
        """
        module, place = self._find(name, choice)
        return module.damage[choice.format][place] - gain_weight * module.gain[place]

    def predict(self, allocation: Allocation, gain_weight: float = 1.0) -> float:
        """Return the loss of an allocation, as a difference to 16 exact bits without adapters.

        Args:
            allocation: Of the table's modules. AdaLoRA's count at the ranks they begin with.
            gain_weight: See `value`.

        Raises:
            ValueError: See `damage`.
        """
        choices = allocation.choices.items()
        return sum(self.value(name, choice, gain_weight) for name, choice in choices)

    def _find(self, name: str, choice: Choice) -> tuple[ModuleVisibility, int]:
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
        return module, module.ranks.index(choice.rank)

    def to_json(self) -> dict[str, Any]:
        """Return the versioned JSON form."""
        modules = {
            name: {
                "ranks": list(module.ranks),
                "gain": list(module.gain),
                "damage": [[f.bits, f.method, f.group_size, *d] for f, d in module.damage.items()],
            }
            for name, module in self.modules.items()
        }
        return {
            "version": VERSION,
            "key": self.key,
            "steps": self.steps,
            "sequences": self.sequences,
            "start_loss": self.start_loss,
            "end_loss": self.end_loss,
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
                gain=tuple(entry["gain"]),
                damage={
                    Format(bits, method, group): tuple(left)
                    for bits, method, group, *left in entry["damage"]
                },
            )
            for name, entry in data["modules"].items()
        }
        kept = {key: value for key, value in data.items() if key != "version"}
        return VisibilityTable(**{**kept, "modules": modules})

    def save(self, folder: Path) -> Path:
        """Write the table into a folder, at once or not at all; return its file."""
        path = table_path(folder, self.key)
        write_json(path, self.to_json())
        return path


def table_folder() -> Path:
    """Return where tables lie: in the hub's cache, safe to delete."""
    return Path(constants.HF_HOME) / "alrq" / "visibility"


def table_path(folder: Path, key: str) -> Path:
    """Return where the table of a key lies in a folder."""
    return folder / f"visibility-{key}.json"


def load_table(folder: Path, key: str) -> VisibilityTable | None:
    """Return the table of a key; None if the folder has none, a damaged or an older one."""
    try:
        data = json.loads(table_path(folder, key).read_text(encoding="utf-8"))
        table = VisibilityTable.from_json(data)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return table if table.key == key else None


def flat_table(space: Space) -> VisibilityTable:
    """Return a table in which every weight of the space counts alike, where none was measured.

    An error's square falls by four with each bit, and rank wins back ever less. The two scales are
    guesses of what uniform allocations lose and win on a small classifier.
    """
    inventory = space.inventory
    weights = sum(module.weights for module in inventory.modules)
    modules = {}
    for module in inventory.modules:
        choices, share = space.choices(module.name), module.weights / weights
        ranks = tuple(sorted({0, *space.ranks[module.name]}))
        modules[module.name] = ModuleVisibility(
            ranks=ranks,
            damage={
                choice.format: (share * FLAT_DAMAGE * 4.0 ** (2 - choice.bits),) * len(ranks)
                for choice in choices
            },
            gain=tuple(share * FLAT_GAIN * math.log2(1 + rank) for rank in ranks),
        )
    return VisibilityTable(
        key="", modules=modules, steps=0, sequences=0, start_loss=0.0, end_loss=0.0, seconds=0.0
    )


def decay(table: VisibilityTable, blocks: Mapping[str, int], stored: Format) -> float:
    """Return how many times the first block's damage is the last one's, without adapters.

    Args:
        table: Of a model with at least two blocks.
        blocks: Module name to the index of its block; others are left out.
        stored: A format that all modules of both blocks have.
    """
    first, last = min(blocks.values()), max(blocks.values())
    total = {first: 0.0, last: 0.0}
    for name, block in blocks.items():
        if block in total:
            total[block] += table.modules[name].damage[stored][0]
    return total[first] / total[last] if total[last] else math.nan
