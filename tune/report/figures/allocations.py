"""Heat maps over blocks and kinds of module: an allocation's bits and ranks, and what they cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from search_spaces.allocation import Allocation, Choice
from search_spaces.costs import module_bytes
from search_spaces.inventory import Inventory, kinds
from tune.report.confirmation import Confirmed
from tune.report.facts import Facts
from tune.report.figures.style import (
    BACKGROUND,
    BITS_RAMP,
    RANKS_RAMP,
    TEXT,
    Figure,
    Spec,
    figure,
    tooltip,
)

CELL = 22
# Steps of a ramp on which dark text is read better than white.
PALE = 3
RANKS = (0, 2, 4, 8, 16, 32)
BITS = (2, 3, 4, 8, 16)


def heat_map(
    rows: Sequence[Mapping[str, Any]], order: Sequence[str], color: Spec, shown: list[Spec]
) -> Spec:
    """Return a map of blocks by kinds of module, with the number in each cell.

    Args:
        rows: Each with `block`, `kind`, `label`, and `pale` where the label must be dark.
        order: Of the kinds.
        color: Its channel.
        shown: What hovering shows.
    """
    blocks = {row["block"] for row in rows}
    place: Spec = {
        "x": {
            "field": "kind",
            "type": "nominal",
            "sort": list(order),
            "title": None,
            "axis": {"labelAngle": -40, "labelLimit": 120, "domain": False, "ticks": False},
        },
        "y": {"field": "block", "type": "ordinal", "title": "block, from the input"},
    }
    cells: Spec = {
        "mark": {"type": "rect", "cornerRadius": 2},
        "encoding": {**place, "color": color, "tooltip": shown},
    }
    paint = {
        "condition": {"test": "datum.pale", "value": TEXT["light"]},
        "value": BACKGROUND["light"],
    }
    labels: Spec = {
        "mark": {"type": "text", "fontSize": 10},
        "encoding": {**place, "text": {"field": "label"}, "color": paint},
    }
    around = 110 if color["legend"] is None else 165
    return figure([cells, labels], rows, height=around + CELL * len(blocks))


def allocation_maps(facts: Facts, row: Confirmed, place: str) -> list[Figure]:
    """Return the bits and the ranks of a confirmed allocation.

    Args:
        facts: The study.
        row: The allocation.
        place: In the report, part of the figures' names.
    """
    allocation, inventory = facts.allocation(row), facts.inventory
    order = list(dict.fromkeys(kinds(inventory).values()))
    found = []
    for name, scale, ramp in (("bits", BITS, BITS_RAMP), ("rank", RANKS, RANKS_RAMP)):
        rows = _cells(inventory, allocation, name, scale)
        color: Spec = {
            "field": "value",
            "type": "ordinal",
            "scale": {"domain": list(scale), "range": list(ramp)},
            "legend": None,
        }
        shown = tooltip(module="module", bits="bits", rank="rank", kilobytes="KB, adapter too#")
        found.append(
            Figure(
                name=f"allocation-{place}-{name}",
                title=f"{row.trial}: {'bits of each matrix' if name == 'bits' else 'LoRA ranks'}",
                text="",
                spec=heat_map(rows, order, color, shown),
            )
        )
    return found


def _cells(
    inventory: Inventory, allocation: Allocation, what: str, scale: Sequence[int]
) -> list[dict[str, Any]]:
    named = kinds(inventory)
    rows = []
    for target in inventory.targets:
        if target.name not in named:
            continue
        choice = allocation.choices[target.name]
        # With AdaLoRA ranks are whatever was left: the nearest step gives the colour.
        value = choice.bits if what == "bits" else choice.rank
        nearest = scale[int(np.abs(np.array(scale) - value).argmin())]
        rows.append(
            {
                "module": target.name,
                "block": target.block,
                "kind": named[target.name],
                "value": nearest,
                "label": str(value),
                "pale": scale.index(nearest) < PALE,
                "bits": choice.bits,
                "rank": choice.rank,
                "kilobytes": module_bytes(target, choice) / 1e3,
            }
        )
    return rows


def outside(facts: Facts, row: Confirmed) -> str:
    """Return in words the bits of what lies outside of the blocks; empty where nothing does."""
    named = kinds(facts.inventory)
    choices: Mapping[str, Choice] = facts.allocation(row).choices
    others = [f"{name}: {c.bits} bits" for name, c in choices.items() if name not in named]
    return f"Outside of the blocks: {', '.join(others)}." if others else ""
