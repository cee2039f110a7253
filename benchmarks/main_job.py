"""Draws README's picture from the recorded run of the main job, and from recorded searches.

    python -m benchmarks.main_job --picture docs/main_job.png

`main_job.csv` beside this file has the rows that `python run_search.py --space joint --budget 50`
printed at commit 0d7a81e, `real_search.csv` what that benchmark wrote; nothing but the
means and intervals of its rows over seeds is computed here.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from benchmarks.codes import half_interval

ROWS = Path(__file__).with_suffix(".csv")
SEARCHES = Path(__file__).with_name("real_search.csv")
MARGIN_POINTS = 2
BARS = "bars: 95 %, paired over sentences and seeds"
DARK, DIM, GREY, BLUE, RED = "#222222", "#555555", "#8a8a8a", "#2f5fa8", "#b5413e"
COLOURS = {"recommended": BLUE, "found": BLUE, "uniform": GREY, "random": GREY, "fixed": RED}
# Rows that are only in the table: they lie on others.
HIDDEN = ("table", "nothing", "longer")
FEWEST_SEEDS = 3
# Of the main job.
TASK = "rotten_tomatoes"
# Kinds of `real_search.csv` on one curve, what its points have in common, its colour and name.
CURVES = (
    (("next uniform", "best uniform"), "mb", GREY, "uniform"),
    (("alrq",), "limit", BLUE, "found by 50 trials"),
)
# Trial -> the label, its offset from the point in points, and its alignment.
LABELS: Mapping[str, tuple[str, tuple[int, int], str]] = {
    "t028": ("recommended\n7.6 MB, 2.5 bits", (-14, -122), "left"),
    "t027": ("found\n8.0 MB", (-26, 86), "left"),
    "t049": ("found\n9.0 MB", (-2, -92), "left"),
    "random": ("random\n8.9 MB", (-14, 124), "left"),
    "uniform": ("uniform\n9.7 MB", (6, 72), "left"),
    "t003": ("found\n10.0 MB", (12, -34), "left"),
    "B-Q4": ("4-bit LoRA\n(B-Q4), rank 8", (-10, 62), "center"),
    "B-FP": ("16-bit LoRA\n(B-FP), rank 8", (-4, -50), "center"),
}


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--picture", type=Path, required=True)
    draw(read(ROWS), read(SEARCHES), parser.parse_args().picture)


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def draw(confirmed: list[dict[str, str]], offers: list[dict[str, str]], path: Path) -> None:
    """Draw the main job's confirmed allocations, and beside them what allocations lose by size."""
    style = {"font.size": 15, "axes.edgecolor": GREY, "text.color": DARK, "axes.titlesize": 16}
    with plt.rc_context(style):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(14, 6.2), width_ratios=(3, 2.4), layout="constrained"
        )
        _main_job(left, confirmed)
        _sizes(right, offers)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(color=GREY)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _main_job(axes: Axes, rows: list[dict[str, str]]) -> None:
    axes.set_title("The main job: 50 trials", loc="left", weight="bold")
    axes.axhspan(-MARGIN_POINTS, 0, color=RED, alpha=0.07, linewidth=0)
    axes.axhline(0, color=RED, linewidth=1.2, linestyle="--")
    for row in rows:
        if row["kind"] not in HIDDEN:
            _point(axes, row, float(row["difference"] or 0))
    axes.set_xscale("log")
    axes.set_xlim(6.7, 62)
    axes.set_ylim(-4.9, 2.7)
    ticks = (8, 10, 15, 20, 30, 46)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.set_xlabel("deployed model, MB")
    axes.set_ylabel("test accuracy minus 16-bit LoRA's, points")
    [reference] = [row for row in rows if row["trial"] == "B-FP"]
    note = f"dashed: 16-bit LoRA, {reference['memory_mb']} MB, {reference['accuracy']} %\n{BARS}"
    _note(axes, f"{note}\nshaded: within the margin of {MARGIN_POINTS} points")


def _point(axes: Axes, row: dict[str, str], difference: float) -> None:
    colour, best = COLOURS[row["kind"]], row["kind"] == "recommended"
    size = float(row["memory_mb"])
    if row["difference_low"]:
        low, high = float(row["difference_low"]), float(row["difference_high"])
        axes.vlines(size, low, high, color=colour, linewidth=3 if best else 1.8)
    axes.plot(size, difference, "*" if best else "o", color=colour, markersize=19 if best else 8)
    label, offset, align = LABELS[row["trial"]]
    axes.annotate(
        label,
        (size, difference),
        xytext=offset,
        textcoords="offset points",
        ha=align,
        va="center",
        color=DIM if colour == GREY else colour,
        weight="bold" if best else "normal",
    )


def _sizes(axes: Axes, rows: list[dict[str, str]]) -> None:
    axes.set_title("How far answers move from 16-bit LoRA's", loc="left", weight="bold", pad=44)
    rows = [row for row in rows if row["task"] == TASK]
    seeds = {row["seed"] for row in rows}
    for kinds, by, colour, name in CURVES:
        # A uniform allocation may answer to two limits.
        chosen = {(row["mb"], row["seed"]): row for row in rows if row["kind"] in kinds}
        groups: dict[str, list[dict[str, str]]] = defaultdict(list)
        for row in chosen.values():
            groups[row[by]].append(row)
        known = [group for group in groups.values() if len(group) >= FEWEST_SEEDS]
        for state, filled in (("start", False), ("trained", True)):
            points = [_mean_of(group, f"{state}_divergences") for group in known]
            x, y, halves = zip(*sorted(points), strict=True)
            axes.errorbar(
                x,
                y,
                halves,
                fmt="o-" if filled else "o--",
                color=colour,
                markerfacecolor=colour if filled else "white",
                markersize=8,
                linewidth=1.8 if filled else 1.2,
                label=f"{name}, {'trained' if filled else 'start'}",
            )
    axes.set_ylim(bottom=0)
    axes.set_xlim(7.5, 10.2)
    axes.set_xlabel("deployed model, MB")
    axes.set_ylabel("divergence on test sentences, nats")
    axes.legend(loc="lower left", frameon=False, fontsize=12.5)
    note = f"open: before any step, filled: after 100 steps\nbars: 95 %, {len(seeds)} seeds"
    axes.text(0.0, 1.01, note, transform=axes.transAxes, va="bottom", fontsize=12.5, color=DIM)


def _mean_of(rows: list[dict[str, str]], score: str) -> tuple[float, float, float]:
    """Return mean size, mean score and half of its 95 % interval."""
    scores = [float(row[score]) for row in rows]
    return mean(float(row["mb"]) for row in rows), mean(scores), half_interval(scores)


def _note(axes: Axes, text: str) -> None:
    place = {"ha": "right", "va": "bottom", "fontsize": 12.5, "color": DIM}
    axes.text(0.99, 0.02, text, transform=axes.transAxes, **place)


if __name__ == "__main__":
    main()
