"""An allocation: bits and rank of every target module, and its two written forms."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

VERSION = 1


@dataclass(frozen=True, order=True)
class Choice:
    """Bits of one stored code and LoRA rank of one target module (rank 0: no adapter)."""

    bits: int
    rank: int


@dataclass(frozen=True)
class Allocation:
    """Bit-width map and rank pattern over all target modules.

    Attributes:
        choices: Module name to bits and rank, in the order of the inventory.
    """

    choices: Mapping[str, Choice]

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", MappingProxyType(dict(self.choices)))

    def __reduce__(self) -> tuple[type["Allocation"], tuple[dict[str, Choice]]]:
        return Allocation, (dict(self.choices),)

    def __hash__(self) -> int:
        return hash(tuple(self.choices.items()))

    @property
    def rank_pattern(self) -> dict[str, int]:
        """Module name to rank, modules without an adapter left out."""
        return {name: choice.rank for name, choice in self.choices.items() if choice.rank}

    @property
    def average_rank(self) -> float:
        """Mean rank over the target modules, those without an adapter counted as 0."""
        return sum(choice.rank for choice in self.choices.values()) / len(self.choices)

    def encode(self) -> str:
        """Return the short form `bits:rank,bits:rank,...`, which leaves the names out."""
        return ",".join(f"{choice.bits}:{choice.rank}" for choice in self.choices.values())

    def to_json(self) -> dict[str, Any]:
        """Return the versioned JSON form, names included."""
        modules = {name: [choice.bits, choice.rank] for name, choice in self.choices.items()}
        return {"version": VERSION, "modules": modules}


def decode(text: str, names: Sequence[str]) -> Allocation:
    """Return the allocation that `Allocation.encode` wrote for these modules.

    Raises:
        ValueError: The text is malformed or has another number of modules.
    """
    pairs = text.split(",")
    if len(pairs) != len(names):
        raise ValueError(
            f"`allocation` must have {len(names)} modules, got {len(pairs)}. "
            "Use it with the model that it was made for."
        )
    return Allocation(
        {name: _choice(pair.split(":"), name) for name, pair in zip(names, pairs, strict=True)}
    )


def from_json(data: Mapping[str, Any] | str) -> Allocation:
    """Return the allocation that `Allocation.to_json` wrote.

    Raises:
        ValueError: Another version, or an entry that is not a pair of whole numbers.
    """
    content = json.loads(data) if isinstance(data, str) else data
    version = content.get("version")
    if version != VERSION:
        raise ValueError(
            f"`version` of an allocation must be {VERSION}, got {version!r}. "
            "Read it with the release that wrote it."
        )
    return Allocation({name: _choice(pair, name) for name, pair in content["modules"].items()})


def _choice(pair: Sequence[Any], name: str) -> Choice:
    try:
        bits, rank = (int(value) for value in pair)
    except (TypeError, ValueError):
        raise ValueError(
            f"`allocation` must give bits and rank as two whole numbers, got {pair!r} for {name}. "
            "Write for example [4, 8]."
        ) from None
    return Choice(bits, rank)
