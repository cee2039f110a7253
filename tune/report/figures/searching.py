"""How the search went: what each rung stopped, what the front grew by, how rungs order trials."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tune.report.facts import Facts
from tune.report.figures.style import (
    BACKGROUND,
    FOUND,
    Figure,
    Spec,
    bars,
    dots,
    figure,
    grouped,
    quantity,
    tooltip,
)
from tune.search.front import front, hypervolume
from tune.study.state import TrialState

# Points of the curve of areas, of which a reader sees no more.
CURVE_POINTS = 400
FATES = ("completed", "went on", "waits or runs", "stopped", "failed")
# Of fates: dark for what went on, pale for what did not.
FATE_COLOURS = ("#2f5fa8", "#62b5f0", "#a59c74", "#cfba53", "#c84e00")


def rungs(facts: Facts) -> Figure | None:
    """Return what became of the trials at each rung."""
    rows = _fates([trial for trial in facts.state.of_role("search") if trial.reports])
    if not rows:
        return None
    bar: Spec = {
        "mark": {"type": "bar", "stroke": BACKGROUND["light"], "strokeWidth": 1},
        "encoding": {
            "y": {"field": "rung", "type": "nominal", "sort": None, "title": None},
            "x": quantity("trials", "trials") | {"stack": "zero"},
            "order": {"field": "place", "type": "quantitative"},
            "color": {
                "field": "fate",
                "type": "nominal",
                "scale": {"domain": list(FATES), "range": list(FATE_COLOURS)},
                "legend": {
                    "orient": "top",
                    "title": None,
                    "columns": 2,
                    "values": [fate for fate in FATES if fate in {row["fate"] for row in rows}],
                },
            },
            "tooltip": tooltip(rung="rung", fate="fate", trials="trials"),
        },
    }
    count = len({row["rung"] for row in rows})
    return Figure(
        name="rungs",
        title="What each rung stopped",
        text=(
            "A trial is judged at each rung, and only those that are good for their size are "
            "trained on. Step 0 is a start from the reference, before any training: finalists are "
            "chosen by it, so that they may be among the stopped."
        ),
        spec=figure([bar], rows, height=120 + 36 * count),
    )


def _fates(trials: Sequence[TrialState]) -> list[dict[str, Any]]:
    counted: Counter[tuple[int, str]] = Counter()
    for trial in trials:
        for report in trial.reports[:-1]:
            counted[report.step, "went on"] += 1
        last = trial.status if trial.status in FATES else "waits or runs"
        counted[trial.reports[-1].step, last] += 1
    return [
        {"rung": f"step {step}", "fate": fate, "trials": count, "place": FATES.index(fate)}
        for (step, fate), count in sorted(counted.items(), key=lambda item: item[0][0])
    ]


def area_over_cost(facts: Facts) -> Figure | None:
    """Return the area that the front dominates, over the time that trials took."""
    if len(points := facts.points) < 2:
        return None
    corner = max(first for first, _ in points), max(second for _, second in points)
    found = area_rows(facts, corner)
    whole = found[-1]["area"] or 1.0
    rows = [row | {"area": 100 * row["area"] / whole, "group": FOUND} for row in found]
    line: Spec = {
        "mark": {"type": "line", "interpolate": "step-after", "point": len(rows) <= 60},
        "encoding": {
            "x": quantity("minutes", "time of trials, added up over workers (min)"),
            "y": quantity("area", "dominated area (% of the end)"),
            "color": grouped([FOUND])["color"] | {"legend": None},
            "tooltip": tooltip(
                trial="after", trials="trials", minutes="minutes#", area="% of the end#"
            ),
        },
    }
    return Figure(
        name="area",
        title="When the search found what it found",
        text=(
            "Share of the end's front that was there after each trial, as the area of size and "
            "loss that it leaves behind (hypervolume). It ends at 100 % by definition: a curve "
            "that is flat long before says that the last trials brought little."
        ),
        spec=figure([line], rows, height=260),
    )


def area_rows(facts: Facts, corner: tuple[float, float] | None) -> list[dict[str, Any]]:
    """Return the area that the front dominates after each trial, and the time so far.

    Args:
        facts: The study.
        corner: Up to which areas count, see `Facts.points`; None where there is no trial.
    """
    if corner is None:
        return []
    trials = [trial for trial in facts.searched if trial.comparable]
    seconds = np.cumsum(
        [sum(r.train_seconds + r.eval_seconds for r in trial.reports) for trial in trials]
    )
    best: list[tuple[float, float]] = []
    areas = []
    for point in facts.points:
        best = [*best, point]
        best = [best[index] for index in front(best)]
        areas.append(hypervolume(best, corner))
    kept = sorted(set(np.linspace(0, len(areas) - 1, CURVE_POINTS).astype(int).tolist()))
    return [
        {
            "trial": trials[at].id,
            "trials": at + 1,
            "minutes": float(seconds[at]) / 60,
            "area": areas[at],
        }
        for at in (kept if areas else [])
    ]


def orders(facts: Facts) -> Figure | None:
    """Return how well table and rungs order trials as their ends do."""
    rows = [
        {
            "source": one.source,
            "kendall": one.kendall,
            "low": one.interval[0] if one.interval else one.kendall,
            "high": one.interval[1] if one.interval else one.kendall,
            "group": FOUND,
        }
        for one in facts.agreements
    ]
    if not rows:
        return None
    y: Spec = {"field": "source", "type": "nominal", "sort": None, "title": None}
    x = quantity("kendall", "Kendall's tau-b (1: the same order, 0: none)", domain=[-1, 1])
    color = grouped([FOUND])["color"] | {"legend": None}
    told = tooltip(source="order by", kendall="tau#", low="from#", high="to#")
    shown: Spec = {"y": y, "x": x, "color": color, "tooltip": told}
    zero: Spec = {
        "data": {"values": [{"at": 0}]},
        "mark": {"type": "rule"},
        "encoding": {"x": {"field": "at", "type": "quantitative"}},
    }
    return Figure(
        name="orders",
        title="Does a rung order trials as their ends do?",
        text=(
            f"Rank correlation with the validation loss at the end, over the "
            f"{facts.agreements[0].trials} completed trials of the search; bars: 95 % interval. "
            "Only what the scheduler let pass has an end, and what passes is alike, so that these "
            "are lower than they would be over all trials."
        ),
        spec=figure(
            [zero, bars(shown, "x", strokeWidth=2), dots(shown, 100)],
            rows,
            height=90 + 40 * len(rows),
        ),
    )
