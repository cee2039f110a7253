"""Draws a study's front with its baselines and intervals."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from tune.report.confirmation import Confirmed
from tune.study.state import StudyState, TrialState

BASELINE_COLOUR = "#c44e52"
FRONT_COLOUR = "#4c72b0"
OTHER_COLOUR = "#b0b0b0"


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
    completed = [
        t for t in state.of_role("search") if t.status == "completed" and t.id not in on_front
    ]
    baselines = [t for t in state.of_role("baseline") if t.status == "completed"]
    _errorbars(axes, completed, OTHER_COLOUR, "o", "completed, not on the front")
    _errorbars(axes, front, FRONT_COLOUR, "o", "front")
    axes.plot(*_points(front), color=FRONT_COLOUR, drawstyle="steps-post", linewidth=1)
    _errorbars(axes, baselines, BASELINE_COLOUR, "s", "fixed configurations")
    for trial in baselines:
        axes.annotate(
            trial.id,
            (trial.memory_bytes / 1e6, trial.reports[-1].loss),
            xytext=(-6, 8),
            textcoords="offset points",
            fontsize=8,
            ha="right",
            color=BASELINE_COLOUR,
        )
    axes.set_xlabel("memory of the deployed model (MB)")
    axes.set_ylabel("validation loss, full fidelity (bars: standard error)")
    axes.set_title("One seed a trial", fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    axes.margins(x=0.12)


def _draw_confirmation(
    axes: Axes, state: StudyState, rows: list[Confirmed], best: Confirmed | None
) -> None:
    scale = 100 if rows[0].metric == "accuracy" else 1
    for row in rows:
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
            xytext=(6, 6),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xlabel("memory of the deployed model (MB)")
    unit = " (%)" if scale == 100 else ""
    axes.set_ylabel(f"test {rows[0].metric}{unit}, 95 % interval")
    star = "; star: recommended" if best is not None else ""
    axes.set_title(f"Confirmation: {len(rows[0].seeds)} fresh seeds{star}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.margins(x=0.12)


def _colour(trial: TrialState) -> str:
    if trial.role == "baseline":
        return BASELINE_COLOUR
    return OTHER_COLOUR if trial.role == "control" else FRONT_COLOUR


def _points(trials: list[TrialState]) -> tuple[list[float], list[float]]:
    return (
        [trial.memory_bytes / 1e6 for trial in trials],
        [trial.reports[-1].loss for trial in trials],
    )


def _errorbars(axes: Axes, trials: list[TrialState], colour: str, mark: str, label: str) -> None:
    if not trials:
        return
    errors = [trial.reports[-1].loss_standard_error for trial in trials]
    axes.errorbar(
        *_points(trials),
        yerr=errors,
        fmt=mark,
        color=colour,
        ecolor=colour,
        elinewidth=0.6,
        markersize=5,
        label=label,
    )
