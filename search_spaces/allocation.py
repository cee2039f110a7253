"""An allocation: bits and rank of every target module, and its two written forms."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from search_spaces.formats import DEFAULT_METHODS, GROUP_SIZE, GROUPED, Format

VERSION = 1
# What bits and rank without a format stand for wherever allocations were ever written.
WRITTEN_METHODS = {16: "plain", 8: "int8", 4: "nf4-double", 3: "hqq", 2: "hqq"}
ADAPTIVE = "adalora="


@dataclass(frozen=True, order=True)
class Choice:
    """How one module is stored, and the rank of its adapter.

    Attributes:
        bits: Bits of one stored code.
        rank: LoRA rank; 0 for no adapter.
        method: See `Format`; empty for the usual one of these bits.
        group_size: See `Format`; 0 for the usual one of this method.
    """

    bits: int
    rank: int
    method: str = ""
    group_size: int = 0

    def __post_init__(self) -> None:
        method = self.method or DEFAULT_METHODS.get(self.bits, "")
        group_size = (self.group_size or GROUP_SIZE) if method in GROUPED else 0
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "group_size", group_size)

    @classmethod
    def of(cls, stored: Format, rank: int) -> "Choice":
        """Return the choice of a format and a rank."""
        return cls(stored.bits, rank, stored.method, stored.group_size)

    @property
    def format(self) -> Format:
        """How the module is stored."""
        return Format(self.bits, self.method, self.group_size)

    def values(self) -> tuple[int | str, ...]:
        """Return bits and rank, and the format where they don't stand for it: `WRITTEN_METHODS`."""
        short = (self.bits, self.rank)
        return short if self == _written(*short) else (*short, self.method, self.group_size)


def _written(bits: int, rank: int) -> Choice:
    return Choice(bits, rank, WRITTEN_METHODS.get(bits, ""))


@dataclass(frozen=True)
class Allocation:
    """Bit-width map and rank pattern over all target modules.

    Attributes:
        choices: Module name to bits and rank, in the order of the inventory.
        final_rank: With AdaLoRA, the average rank in the end, over the modules that begin with
            an adapter; None for LoRA, whose ranks stay.
    """

    choices: Mapping[str, Choice]
    final_rank: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", MappingProxyType(dict(self.choices)))

    def __reduce__(self) -> tuple[type["Allocation"], tuple[dict[str, Choice], int | None]]:
        return Allocation, (dict(self.choices), self.final_rank)

    def __hash__(self) -> int:
        return hash((tuple(self.choices.items()), self.final_rank))

    @property
    def rank_pattern(self) -> dict[str, int]:
        """Module name to rank, modules without an adapter left out."""
        return {name: choice.rank for name, choice in self.choices.items() if choice.rank}

    def with_ranks(self, ranks: Mapping[str, int]) -> "Allocation":
        """Return the same formats under LoRA of these ranks; modules left out get none."""
        choices = self.choices.items()
        return Allocation({name: replace(c, rank=ranks.get(name, 0)) for name, c in choices})

    def encode(self) -> str:
        """Return the short form `bits:rank,bits:rank,...`, which leaves the names out.

        A format follows as `bits:rank:method:group`, unless it is the one of `WRITTEN_METHODS`.
        """
        pairs = [":".join(map(str, choice.values())) for choice in self.choices.values()]
        adaptive = [] if self.final_rank is None else [f"{ADAPTIVE}{self.final_rank}"]
        return ",".join([*adaptive, *pairs])

    def to_json(self) -> dict[str, Any]:
        """Return the versioned JSON form, names included."""
        modules = {name: list(choice.values()) for name, choice in self.choices.items()}
        adaptive = {} if self.final_rank is None else {"final_rank": self.final_rank}
        return {"version": VERSION, **adaptive, "modules": modules}


def decode(text: str, names: Sequence[str]) -> Allocation:
    """Return the allocation that `Allocation.encode` wrote for these modules.

    Raises:
        ValueError: The text is malformed or has another number of modules.
    """
    pairs = text.split(",")
    final_rank = int(pairs.pop(0).removeprefix(ADAPTIVE)) if text.startswith(ADAPTIVE) else None
    if len(pairs) != len(names):
        raise ValueError(
            f"`allocation` must have {len(names)} modules, got {len(pairs)}. "
            "Use it with the model that it was made for."
        )
    named = zip(names, pairs, strict=True)
    return Allocation({name: _choice(pair.split(":"), name) for name, pair in named}, final_rank)


def from_json(data: Mapping[str, Any] | str) -> Allocation:
    """Return the allocation that `Allocation.to_json` wrote.

    Raises:
        ValueError: Another version, or an entry that is no choice.
    """
    content = json.loads(data) if isinstance(data, str) else data
    version = content.get("version")
    if version != VERSION:
        raise ValueError(
            f"`version` of an allocation must be {VERSION}, got {version!r}. "
            "Read it with the release that wrote it."
        )
    choices = {name: _choice(pair, name) for name, pair in content["modules"].items()}
    return Allocation(choices, content.get("final_rank"))


def _choice(values: Sequence[Any], name: str) -> Choice:
    try:
        bits, rank, *rest = values
        if not rest:
            return _written(int(bits), int(rank))
        method, group_size = rest
        return Choice(int(bits), int(rank), str(method), int(group_size))
    except (TypeError, ValueError):
        raise ValueError(
            "`allocation` must give bits and rank as two whole numbers, and may give method and "
            f"group size after them, got {values!r} for {name}. Write for example [4, 8]."
        ) from None
