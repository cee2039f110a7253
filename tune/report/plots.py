"""Draws a study's front with its baselines and intervals."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from tune.report.confirmation import Confirmed
from tune.study.state import StudyState, TrialState

BASELINE_COLOUR = "#c44e52"
FRONT_COLOUR = "#4c72b0"
OTHER_COLOUR, PALE_COLOUR = "#8c8c8c", "#c8d2e6"
# Of a divergence, which may be 0.
LEAST = 1e-5
# Offsets of labels in points, so that those of neighbours don't meet.
PLACES = ((7, 7), (-7, -14), (7, -14), (-7, 9))


def draw_front(
    path: Path,
    state: StudyState,
    rows: list[Confirmed],
    recommendation: Confirmed | None,
    caption: str,
) -> None:
    """Draw validation losses of the search beside test metrics of the confirmation.

    Args:
        path: Where the picture goes.
        state: All trials.
        rows: The confirmed allocations.
        recommendation: Marked in the picture.
        caption: Every condition of the figure.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    _draw_search(left, state)
    if rows:
        _draw_confirmation(right, state, rows, recommendation)
    else:
        right.set_axis_off()
        right.text(0.5, 0.5, "nothing confirmed", ha="center", va="center")
    figure.suptitle(caption, fontsize=9, wrap=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_search(axes: Axes, state: StudyState) -> None:
    front = state.front()
    on_front = {trial.id for trial in front}
    searched = [trial for trial in state.trials.values() if trial.searched and trial.reports]
    completed = [t for t in searched if t.status == "completed" and t.id not in on_front]
    begun = [t for t in searched if t.status != "completed" and t.id not in on_front]
    started = any(trial.reference is not None for trial in searched)
    if started:
        _points(axes, begun, PALE_COLOUR, ".", "not trained, not on the front")
    _points(axes, completed, OTHER_COLOUR, "o", "completed, not on the front")
    _points(axes, front, FRONT_COLOUR, "o", "front")
    axes.plot(*_places(front), color=FRONT_COLOUR, drawstyle="steps-post", linewidth=1)
    if not started:
        fixed = [t for t in state.of_role("baseline") if t.status == "completed"]
        _points(axes, fixed, BASELINE_COLOUR, "s", "fixed configurations")
    _log_bytes(axes)
    axes.set_yscale("log")
    what = "divergence of starts" if started else "validation loss, full fidelity"
    axes.set_ylabel(f"{what} (bars: standard error)")
    axes.set_title("The search, one seed", fontsize=10)
    axes.legend(fontsize=8)


def _draw_confirmation(
    axes: Axes, state: StudyState, rows: list[Confirmed], best: Confirmed | None
) -> None:
    scale = 1 if rows[0].metric == "perplexity" else 100
    for number, row in enumerate(rows):
        colour = _colour(state.trials[row.trial])
        low, high = row.interval
        axes.errorbar(
            row.memory_bytes / 1e6,
            scale * row.value,
            yerr=[[scale * (row.value - low)], [scale * (high - row.value)]],
            fmt="*" if best is not None and row.trial == best.trial else "o",
            markersize=13 if best is not None and row.trial == best.trial else 6,
            color=colour,
            capsize=3,
        )
        axes.annotate(
            row.trial,
            (row.memory_bytes / 1e6, scale * row.value),
            xytext=PLACES[number % len(PLACES)],
            textcoords="offset points",
            fontsize=8,
            ha="left" if PLACES[number % len(PLACES)][0] > 0 else "right",
        )
    _log_bytes(axes)
    unit = " (%)" if scale == 100 else ""
    axes.set_ylabel(f"test {rows[0].metric.replace('_', ' ')}{unit}, 95 % interval")
    star = "; star: recommended" if best is not None else ""
    axes.set_title(f"Confirmation: {len(rows[0].seeds)} fresh seeds{star}", fontsize=10)


def _log_bytes(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("memory of the deployed model (MB)")
    axes.grid(alpha=0.3)
    axes.margins(x=0.14)


def _colour(trial: TrialState) -> str:
    if trial.role == "baseline":
        return BASELINE_COLOUR
    return OTHER_COLOUR if trial.role == "control" else FRONT_COLOUR


def _places(trials: list[TrialState]) -> tuple[list[float], list[float]]:
    return (
        [trial.memory_bytes / 1e6 for trial in trials],
        [max(trial.judged.objective, LEAST) for trial in trials if trial.judged is not None],
    )


def _points(axes: Axes, trials: list[TrialState], colour: str, mark: str, label: str) -> None:
    """Draw what trials are judged by with its standard error."""
    if not trials:
        return
    errors = [
        r.loss_standard_error if r.divergence is None else r.divergence_standard_error or 0.0
        for r in (trial.judged for trial in trials)
        if r is not None
    ]
    axes.errorbar(
        *_places(trials),
        yerr=errors,
        fmt=mark,
        color=colour,
        ecolor=colour,
        elinewidth=0.6,
        markersize=5,
        label=label,
    )
