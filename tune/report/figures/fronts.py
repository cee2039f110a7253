"""The confirmed allocations against the comparator, and the front of the search."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.costs import average_bits, average_rank
from tune.report.confirmation import Confirmed
from tune.report.facts import Facts
from tune.report.figures.style import (
    BASELINE,
    CHOSEN,
    CONTROL,
    FOUND,
    OTHER,
    Figure,
    Spec,
    bars,
    dots,
    figure,
    grouped,
    megabytes,
    quantity,
    tooltip,
)
from tune.report.metrics import METRICS
from tune.study.state import TrialState

# Of a divergence on an axis of logarithms.
LEAST = 1e-5
GROUP_OF_ROLE = {"search": FOUND, "control": CONTROL, "baseline": BASELINE}
ROW_HEIGHT = 34


def differences(facts: Facts) -> Figure | None:
    """Return the differences to the comparator, an allocation a line, beside the margin."""
    rows = [_confirmed(facts, row) for row in facts.rows if row.difference is not None]
    reference = facts.reference
    if len(rows) < 2 or reference is None:
        return None
    margin, metric = facts.config.margin, METRICS[reference.metric]
    lower = "" if metric.share else ", where it is lower"
    chosen = next((row["name"] for row in rows if row["chosen"]), "")
    bold = {
        "condition": {"test": f"datum.value === {json.dumps(chosen)}", "value": "bold"},
        "value": "normal",
    }
    y: Spec = {
        "field": "name",
        "type": "nominal",
        "sort": [row["name"] for row in sorted(rows, key=lambda row: -row["megabytes"])],
        "title": None,
        "axis": {"labelLimit": 190, "ticks": False, "domain": False, "labelFontWeight": bold},
    }
    shown: Spec = {
        "x": quantity("difference", f"difference to {facts.comparator} ({metric.unit})"),
        "y": y,
        **grouped(_present(rows), columns=1),
        "tooltip": _confirmed_tooltip(),
    }
    lines = [
        {
            "data": {"values": [{"at": at}]},
            "mark": {"type": "rule", "strokeDash": dash, "strokeWidth": 1.5},
            "encoding": {"x": {"field": "at", "type": "quantitative"}},
        }
        for at, dash in ((0.0, [1, 0]), (-margin, [5, 4]))
    ]
    label = {
        "data": {"values": [{"at": -margin, "text": f"margin: -{margin:g}"}]},
        "mark": {"type": "text", "baseline": "bottom", "y": -3},
        "encoding": {"x": {"field": "at", "type": "quantitative"}, "text": {"field": "text"}},
    }
    return Figure(
        name="differences",
        title=f"What each allocation loses against {facts.comparator}",
        text=(
            f"Test {metric.name}; right is better{lower}. Dots: mean over "
            f"{len(reference.seeds)} fresh seeds, or as many as are said, and "
            f"{facts.splits['test']:,} test sequences; bars: "
            f"95 % interval of the difference, which for {facts.comparator} is 0 by definition. "
            f"What stays right of the dashed line with its whole bar loses less than the margin of "
            f"{margin:g} {metric.unit}."
        ),
        spec=figure(
            [*lines, label, bars(shown, "x", strokeWidth=2), dots(shown, 110)],
            rows,
            height=130 + ROW_HEIGHT * len(rows),
        ),
    )


def test_front(facts: Facts) -> Figure | None:
    """Return the test metric over bytes of what was confirmed."""
    rows = [_confirmed(facts, row) for row in facts.rows]
    if not rows:
        return None
    metric = METRICS[facts.rows[0].metric]
    shown: Spec = {
        "x": megabytes(),
        "y": quantity("value", metric.title),
        **grouped(_present(rows)),
        "tooltip": _confirmed_tooltip(),
    }
    ends = "value_low", "value_high"
    return Figure(
        name="test-front",
        title="Quality on the test split, by size",
        text=(
            f"{metric.better.capitalize()} and further left is better. Bars: 95 % intervals, which "
            "count the luck of seeds and of test sequences. They are wider than those of the "
            "differences above, which compare the same seeds and sequences: go by those."
        ),
        spec=figure(
            [bars(shown, "y", ends, strokeWidth=1.5, opacity=0.8), dots(shown, 130, 0.95)], rows
        ),
    )


def search_front(facts: Facts) -> Figure | None:
    """Return what the search goes by, over bytes, of all its trials."""
    rows, started = search_rows(facts), facts.started
    if not rows:
        return None
    what = "divergence of starts" if started else "validation loss"
    x, y = megabytes(), quantity("objective", f"{what} (nats, log scale)", type="log")
    of_front = [{"filter": f"datum.group === '{FOUND}' || datum.group === '{CHOSEN}'"}]
    line: Spec = {
        "transform": [*of_front, {"filter": "datum.front"}],
        "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1.5},
        "encoding": {"x": x, "y": y, "order": {"field": "megabytes"}},
    }
    shown: Spec = {
        "x": x,
        "y": y,
        **grouped(_present(rows)),
        "opacity": {"condition": {"test": f"datum.group === '{OTHER}'", "value": 0.55}, "value": 1},
        "tooltip": tooltip(
            trial="trial",
            **{"megabytes": "MB#", "objective": what + "#", "bits": "average bits#"},
            rank="average rank#",
            status="status",
        ),
    }
    errors = {"transform": of_front, **bars(shown, "y", opacity=0.7)}
    return Figure(
        name="search-front",
        title="What the search saw",
        text=(
            f"Every trial by its {what}, lower and further left is better; one seed, "
            f"bars on the front: one standard error. {_axis(started)} Finalists are chosen from "
            "this front; whether they are as good is said by the test split alone."
        ),
        spec=figure([line, errors, dots(shown, 60)], rows),
    )


def search_rows(facts: Facts) -> list[dict[str, Any]]:
    """Return what is known of each trial of the search, and of the baselines where these are judged
    alike.
    """
    front = {trial.id for trial in facts.state.front()}
    seen = [trial for trial in facts.searched if trial.judged is not None]
    if not facts.started:
        seen += [t for t in facts.state.of_role("baseline") if t.status == "completed"]
    return [_searched(facts, trial, front) for trial in seen]


def _axis(started: bool) -> str:
    if not started:
        return "It is measured on the validation split."
    return (
        "It says how far the answers of an allocation move from those of the reference "
        "before any step, on training sequences: it is no loss on the labels."
    )


def _present(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({row["group"] for row in rows})


def _confirmed(facts: Facts, row: Confirmed) -> dict[str, Any]:
    chosen, most = row.trial == facts.recommended, max(len(one.seeds) for one in facts.rows)
    seeds = "" if len(row.seeds) == most else f" ({len(row.seeds)} seeds)"
    scale = METRICS[row.metric].scale
    low, high = row.difference_interval or (row.difference, row.difference)
    return {
        "trial": row.trial,
        "name": f"{row.trial}  {row.memory_bytes / 1e6:.3g} MB{seeds}",
        "chosen": facts.chosen is not None and row.trial == facts.chosen.trial,
        "group": CHOSEN if chosen else GROUP_OF_ROLE[row.role],
        "megabytes": row.memory_bytes / 1e6,
        "value": scale * row.value,
        "value_low": scale * row.interval[0],
        "value_high": scale * row.interval[1],
        "difference": row.difference,
        "low": low,
        "high": high,
        "bits": row.average_bits,
        "rank": row.average_rank,
        "seeds": len(row.seeds),
    }


def _confirmed_tooltip() -> list[Spec]:
    return tooltip(
        trial="allocation",
        megabytes="MB#",
        value="test metric#",
        difference="difference#",
        low="from#",
        high="to#",
        bits="average bits#",
        rank="average rank#",
        seeds="seeds",
    )


def _searched(facts: Facts, trial: TrialState, front: set[str]) -> dict[str, Any]:
    report = trial.judged
    assert report is not None
    error = report.divergence_standard_error if report.divergence is not None else None
    error = report.loss_standard_error if report.divergence is None else error or 0.0
    group = FOUND if trial.id in front else OTHER
    if trial.role == "baseline":
        group = BASELINE
    objective = max(report.objective, LEAST)
    return {
        "trial": trial.id,
        "group": CHOSEN if trial.id == facts.recommended else group,
        "front": trial.id in front,
        "megabytes": trial.memory_bytes / 1e6,
        "objective": objective,
        "low": max(objective - error, LEAST),
        "high": objective + error,
        "bits": average_bits(trial.allocation, facts.inventory),
        "rank": average_rank(trial.allocation, facts.inventory),
        "status": trial.status,
    }
