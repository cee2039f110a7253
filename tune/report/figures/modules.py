"""What each module was predicted to cost, and what the trials taught of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.inventory import TargetModule, kinds
from tune.report.facts import Facts
from tune.report.figures.allocations import PALE, heat_map
from tune.report.figures.style import (
    BITS_RAMP,
    CHANGES,
    OTHER,
    Figure,
    Spec,
    figure,
    grouped,
    quantity,
    tooltip,
    visible,
)
from tune.report.learned import ModuleCost, module_costs
from tune.study.state import TrialState

# Divergences of single modules are thousandths of a nat.
UNIT = 1e3
# In per cent: less than the first is no news; up to the second, colours are alike in all studies.
LITTLE, LEAST_CHANGE = 2.0, 10.0


def module_maps(facts: Facts) -> list[Figure]:
    """Return what each module's fewest bits are expected to cost, and by how much the trials
    changed that; none where no table was measured, or no trial was judged.
    """
    if facts.table is None or not (costs := module_costs(facts.state, facts.table)):
        return []
    named = kinds(facts.inventory)
    rows = [
        _row(target, named[target.name], costs[target.name])
        for target in facts.inventory.targets
        if target.name in named and target.name in costs
    ]
    order = list(dict.fromkeys(named.values()))
    little = max(abs(row["change"]) for row in rows) < LITTLE
    told = f" The trials changed none of it by more than {LITTLE:g} %." if little else ""
    found = [
        Figure(
            name="modules-cost",
            title="What each matrix costs at its fewest bits",
            text=(
                "Divergence from the reference that this matrix alone brings about, as the model "
                "of the search expects it after all trials. Bits pay where it is high."
                f"{told}"
            ),
            spec=_cost_map(rows, order),
        ),
        Figure(
            name="modules-change",
            title="What the trials changed of the prediction",
            text=(
                "Against the visibility table, which was measured before any trial. Small numbers "
                "say that the trials had little to add to it, not that it is right."
            ),
            spec=_change_map(rows, order),
        ),
    ]
    return found[:1] if little else found


def _cost_map(rows: Sequence[Mapping[str, Any]], order: Sequence[str]) -> Spec:
    # By the root: a few matrices cost many times what most do.
    highest = max(row["learned"] for row in rows)
    ends = [highest * (step / len(BITS_RAMP)) ** 2 for step in range(1, len(BITS_RAMP))]
    cells = [
        {**row, "label": _short(row["learned"]), "pale": row["learned"] < ends[PALE - 1]}
        for row in rows
    ]
    color = _stepped("learned", ends, BITS_RAMP, "thousandths of a nat")
    return heat_map(cells, order, color, _shown())


def _change_map(rows: Sequence[Mapping[str, Any]], order: Sequence[str]) -> Spec:
    most = max(LEAST_CHANGE, *(abs(row["change"]) for row in rows))
    ends = [share * most for share in (-0.6, -0.2, 0.2, 0.6)]
    cells = [
        {
            **row,
            "label": "0" if abs(row["change"]) < 0.5 else f"{row['change']:+.0f}",
            "pale": ends[0] <= row["change"] < ends[-1],
        }
        for row in rows
    ]
    color = _stepped("change", ends, CHANGES, "% of what was predicted")
    return heat_map(cells, order, color, _shown())


def _stepped(field: str, ends: Sequence[float], ramp: Sequence[str], title: str) -> Spec:
    """Return the channel of a colour for a number, in steps, on each of which text can be read."""
    legend = {"orient": "top", "title": title, "format": ".2~r"}
    scale = {"type": "threshold", "domain": [visible(end) for end in ends], "range": list(ramp)}
    return {"field": field, "type": "quantitative", "scale": scale, "legend": legend}


def _shown() -> list[Spec]:
    return tooltip(
        module="module",
        bits="bits",
        rank="rank",
        predicted="predicted (0.001 nats)#",
        learned="learned (0.001 nats)#",
        change="change (%)#",
    )


def _row(target: TargetModule, kind: str, cost: ModuleCost) -> dict[str, Any]:
    return {
        "module": target.name,
        "block": target.block,
        "kind": kind,
        "bits": cost.choice.bits,
        "rank": cost.choice.rank,
        "predicted": UNIT * cost.predicted,
        "learned": UNIT * cost.learned,
        "change": 100 * (cost.learned / cost.predicted - 1) if cost.predicted else 0.0,
    }


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def predictions(facts: Facts) -> Figure | None:
    """Return what trials were judged by, over what the table predicts of them."""
    if facts.table is None:
        return None
    judged = [trial for trial in facts.searched if trial.comparable]
    if len(judged) < 2:
        return None
    rows = [_predicted(facts, trial) for trial in judged]
    started = judged[0].reference is not None
    what = "divergence of the start" if started else "validation loss"
    point: Spec = {
        "mark": {"type": "point", "filled": True, "size": 55, "opacity": 0.8},
        "encoding": {
            "x": quantity("predicted", "divergence, predicted (nats, log scale)", type="log"),
            "y": quantity("objective", f"{what} (nats, log scale)", type="log"),
            "color": grouped([OTHER])["color"] | {"legend": None},
            "tooltip": tooltip(
                trial="trial",
                **{"megabytes": "MB#", "predicted": "predicted#", "objective": what + "#"},
            ),
        },
    }
    return Figure(
        name="predictions",
        title="Predicted, and found",
        text=(
            "Each dot is a trial. The visibility table adds up what each module's bits and rank "
            "would do alone. Only the order counts, not the scale: the search learns that from "
            "the trials."
        ),
        spec=figure([point], rows),
    )


def _predicted(facts: Facts, trial: TrialState) -> dict[str, Any]:
    assert facts.table is not None and trial.judged is not None
    return {
        "trial": trial.id,
        "group": OTHER,
        "megabytes": trial.memory_bytes / 1e6,
        "predicted": max(facts.table.predict(trial.allocation), 1e-6),
        "objective": max(trial.judged.objective, 1e-5),
    }
