"""Several studies on the same axes."""

from collections.abc import Sequence
from typing import Any

from tune.report.facts import Facts
from tune.report.figures.fronts import search_rows
from tune.report.figures.searching import area_rows
from tune.report.figures.style import Figure, Spec, bars, dots, figure, megabytes, quantity, tooltip
from tune.report.metrics import METRICS

# Readable on light and dark pages, and as far from each other as six can be for those who lack one
# kind of cone: found by a search, checked by the tests.
STUDY_COLOURS = ("#8822ff", "#dd7700", "#998888", "#cc1133", "#7788ff", "#994499")
STUDY_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")


def compared_figures(studies: Sequence[Facts]) -> list[Figure]:
    """Return what the studies found on the test split, what they saw, and what that cost."""
    names = [study.config.name for study in studies]
    found = [_tested(studies, names)]
    if alike(studies):
        found += [_seen(studies, names), _areas(studies, names)]
    return [one for one in found if one is not None]


def alike(studies: Sequence[Facts]) -> bool:
    """Tell whether trials of these studies are judged alike: by divergences from references that
    are trained alike, or by losses on the same sequences.
    """
    judges = set()
    for study in studies:
        config, recipe = study.config, study.config.recipe
        task = (config.model, config.task, config.data, config.eval_sequences, study.started)
        trained = (recipe.max_steps, recipe.learning_rate, recipe.batch_size, recipe.max_length)
        judges.add((*task, *trained, config.seed))
    return len(judges) == 1


def _channels(names: Sequence[str]) -> Spec:
    legend = {"orient": "top", "title": None, "columns": 1, "symbolOpacity": 1, "labelLimit": 300}
    channel = {"field": "study", "type": "nominal", "legend": legend}
    return {
        "color": channel | {"scale": {"domain": list(names), "range": list(STUDY_COLOURS)}},
        "shape": channel | {"scale": {"domain": list(names), "range": list(STUDY_SHAPES)}},
    }


def _tested(studies: Sequence[Facts], names: Sequence[str]) -> Figure | None:
    first = next((row for study in studies for row in study.rows), None)
    if first is None:
        return None
    metric = METRICS[first.metric]
    rows = [
        {
            "study": study.config.name,
            "trial": row.trial,
            "megabytes": row.memory_bytes / 1e6,
            "value": metric.scale * row.value,
            "low": metric.scale * row.interval[0],
            "high": metric.scale * row.interval[1],
            "role": "recommended" if row.trial == study.recommended else row.role,
        }
        for study in studies
        for row in study.rows
    ]
    shown: Spec = {
        "x": megabytes(),
        "y": quantity("value", metric.title),
        **_channels(names),
        "tooltip": tooltip(
            study="study", trial="allocation", role="role", megabytes="MB#", value="metric#"
        ),
    }
    return Figure(
        name="compared-test",
        title="Quality on the test split, by size",
        text=(
            "Bars: 95 % intervals over seeds and test sequences. Studies with other test splits "
            "or seeds differ by these too."
        ),
        spec=figure([bars(shown, "y", opacity=0.7), dots(shown, 110, 0.9)], rows, height=380),
    )


def _seen(studies: Sequence[Facts], names: Sequence[str]) -> Figure | None:
    what = "divergence of starts" if studies[0].started else "validation loss"
    rows = [
        {"study": study.config.name, **row}
        for study in studies
        for row in search_rows(study)
        if row["front"]
    ]
    if not rows:
        return None
    y, x = quantity("objective", f"{what} (nats, log scale)", type="log"), megabytes()
    channels = _channels(names)
    line: Spec = {
        "mark": {"type": "line", "interpolate": "step-after"},
        "encoding": {"x": x, "y": y, "color": channels["color"], "order": {"field": "megabytes"}},
    }
    told = {"study": "study", "trial": "trial", "megabytes": "MB#", "objective": what + "#"}
    shown: Spec = {"x": x, "y": y, **channels, "tooltip": tooltip(**told)}
    return Figure(
        name="compared-fronts",
        title="Fronts of the searches",
        text=f"By {what}; lower and further left is better. One seed each.",
        spec=figure([line, dots(shown, 60)], rows, height=380),
    )


def _areas(studies: Sequence[Facts], names: Sequence[str]) -> Figure | None:
    corner = _corner(studies)
    rows: list[dict[str, Any]] = [
        {"study": study.config.name, **row} for study in studies for row in area_rows(study, corner)
    ]
    if not rows or corner is None:
        return None
    most = max(row["area"] for row in rows) or 1.0
    rows = [row | {"area": 100 * row["area"] / most} for row in rows]
    line: Spec = {
        "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2},
        "encoding": {
            "x": quantity("minutes", "time of trials, added up over workers (min)"),
            "y": quantity("area", "dominated area (% of the largest)"),
            "color": _channels(names)["color"],
            "tooltip": tooltip(
                study="study", trial="after", trials="trials", minutes="minutes#", area="%#"
            ),
        },
    }
    return Figure(
        name="compared-areas",
        title="What trials brought, over their cost",
        text=(
            "Area that each front dominates, up to the worst of all studies, of the root of what "
            "is minimised and the logarithm of bytes."
        ),
        spec=figure([line], rows, height=320),
    )


def _corner(studies: Sequence[Facts]) -> tuple[float, float] | None:
    points = [point for study in studies for point in study.points]
    if not points:
        return None
    return max(first for first, _ in points), max(second for _, second in points)
