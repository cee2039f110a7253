"""Draws README's picture from the recorded run of the main job.

    python benchmarks/main_job.py --picture docs/main_job.png

`main_job.csv` beside this file has the rows that `python run_search.py --space joint --budget 50`
printed at commit 221d398. Nothing is computed here.
"""

import argparse
import csv
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

ROWS = Path(__file__).with_suffix(".csv")
MARGIN_POINTS = 2
BARS = "bars: 95 %, paired over sentences and seeds"
DARK, GREY, BLUE, RED = "#222222", "#8a8a8a", "#2f5fa8", "#b5413e"
COLOURS = {"recommended": BLUE, "found": BLUE, "uniform": GREY, "random": GREY, "fixed": RED}
# Trial -> the label, its offset from the point in points, and its alignment.
LABELS: Mapping[str, tuple[str, tuple[int, int], str]] = {
    "random": ("random\n10.9 MB", (-9, 0), "right"),
    "t001": ("recommended\n10.9 MB, 3.6 bits", (0, 72), "center"),
    "t041": ("found", (8, -34), "left"),
    "uniform": ("uniform\n11.2 MB", (9, -4), "left"),
    "t004": ("found", (8, 8), "left"),
    "t038": ("found", (8, -10), "left"),
    "B-Q4": ("4-bit LoRA\n(B-Q4), rank 8", (0, 62), "center"),
    "B-FP": ("16-bit LoRA\n(B-FP), rank 8", (-4, -34), "center"),
}


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--picture", type=Path, required=True)
    draw(read_rows(), parser.parse_args().picture)


def read_rows() -> list[dict[str, str]]:
    """Return the confirmed allocations."""
    with ROWS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Draw the confirmed allocations by bytes and accuracy."""
    style = {"font.size": 15, "axes.edgecolor": GREY, "text.color": DARK, "axes.titlesize": 16}
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(11, 6), layout="constrained")
        _main_job(axes, rows)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(color=GREY)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _main_job(axes: Axes, rows: list[dict[str, str]]) -> None:
    axes.set_title("The main job: 50 trials, 200 steps", loc="left", weight="bold")
    axes.axhspan(-MARGIN_POINTS, 0, color=RED, alpha=0.07, linewidth=0)
    axes.axhline(0, color=RED, linewidth=1.2, linestyle="--")
    for row in rows:
        _point(axes, row, float(row["difference"] or 0))
    axes.set_xscale("log")
    axes.set_xlim(6.7, 62)
    axes.set_ylim(-5.4, 3.4)
    ticks = (8, 11, 15, 20, 30, 46)
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
        color="#555555" if colour == GREY else colour,
        weight="bold" if best else "normal",
    )


def _note(axes: Axes, text: str) -> None:
    place = {"ha": "right", "va": "bottom", "fontsize": 12.5, "color": "#555555"}
    axes.text(0.99, 0.02, text, transform=axes.transAxes, **place)


if __name__ == "__main__":
    main()
