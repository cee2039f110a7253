"""What confirmed allocations take: deployed, part by part, and while they are trained."""

from typing import Any

from search_spaces.costs import BYTES_16_BIT, adapter_bytes, stored_bytes
from tune.report.confirmation import Confirmed
from tune.report.facts import Facts
from tune.report.figures.style import BACKGROUND, Figure, Spec, figure, quantity, tooltip

PARTS = ("codes and scales", "adapters", "embeddings", "all else, in 16 bits")
PART_COLOURS = ("#2f6fb5", "#c84e00", "#cfba53", "#949494")
ROW_HEIGHT = 30
BAR = {"type": "bar", "stroke": BACKGROUND["light"], "strokeWidth": 0.5}


def deployed(facts: Facts) -> Figure | None:
    """Return the bytes of each confirmed allocation, by what they are for."""
    if not facts.rows:
        return None
    rows = [part for row in facts.rows for part in _parts(facts, row)]
    bar: Spec = {
        "mark": BAR,
        "encoding": {
            "y": _names(facts),
            "x": quantity("megabytes", "deployed model (MB)") | {"stack": "zero"},
            "order": {"field": "place", "type": "quantitative"},
            "color": {
                "field": "part",
                "type": "nominal",
                "scale": {"domain": list(PARTS), "range": list(PART_COLOURS)},
                "legend": {"orient": "top", "title": None, "columns": 1},
            },
            "tooltip": tooltip(trial="allocation", part="part", megabytes="MB#"),
        },
    }
    return Figure(
        name="memory-deployed",
        title="Memory, deployed",
        text="What the deployed model keeps: parts by arithmetic, sums as receipts have them.",
        spec=figure([bar], rows, height=140 + ROW_HEIGHT * len(facts.rows)),
    )


def training(facts: Facts) -> Figure | None:
    """Return the peak of the processes that trained each confirmed allocation."""
    if not facts.rows:
        return None
    rows = [
        {"trial": row.trial, "gigabytes": row.peak_memory_bytes / 1e9, "seconds": row.train_seconds}
        for row in facts.rows
    ]
    bar: Spec = {
        "mark": {**BAR, "color": PART_COLOURS[0]},
        "encoding": {
            "y": _names(facts),
            "x": quantity("gigabytes", "peak while training (GB)", zero=True),
            "tooltip": tooltip(trial="allocation", gigabytes="GB#", seconds="seconds of training#"),
        },
    }
    computed = facts.config.recipe.execution
    return Figure(
        name="memory-training",
        title="Memory, while training",
        text=(
            "The highest that a process, or its share of a GPU, held: model, adapter, optimiser, "
            f"activations, and the libraries. Trials computed {computed}, so that this is what "
            "was measured here and no lower bound."
        ),
        spec=figure([bar], rows, height=60 + ROW_HEIGHT * len(rows)),
    )


def _names(facts: Facts) -> Spec:
    order = [row.trial for row in sorted(facts.rows, key=lambda row: -row.memory_bytes)]
    return {
        "field": "trial",
        "type": "nominal",
        "sort": order,
        "title": None,
        "axis": {"labelLimit": 150, "ticks": False},
    }


def _parts(facts: Facts, row: Confirmed) -> list[dict[str, Any]]:
    choices, inventory = facts.allocation(row).choices, facts.inventory
    codes, adapters, embeddings = 0, 0, 0
    for target in inventory.modules:
        shape = (target.out_features, target.in_features)
        stored = stored_bytes(choices[target.name].format, *shape)
        if target.part == "embedding":
            embeddings += stored
        else:
            codes += stored
            adapters += adapter_bytes(choices[target.name].rank, *shape)
    other = BYTES_16_BIT * inventory.other_parameters
    # With AdaLoRA the ranks that are left are known from the receipts alone, as bytes.
    adapters = min(adapters, row.memory_bytes - codes - embeddings - other)
    sizes = (codes, adapters, embeddings, other)
    return [
        {"trial": row.trial, "part": part, "megabytes": size / 1e6, "place": place}
        for place, (part, size) in enumerate(zip(PARTS, sizes, strict=True))
    ]
