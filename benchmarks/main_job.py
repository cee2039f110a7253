"""Draws README's picture from the two recorded runs of the main job.

    python benchmarks/main_job.py --picture docs/main_job.png

`main_job.csv` beside this file has the rows that the runs printed: `main job` is `python
run_search.py --space joint --budget 50` at commit caae0f2, `12 MB` the same with `--max-memory 12MB
--max-steps 100` at commit 58bd1d7. Nothing is computed here.
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
SHADE = f"shaded: within the margin of {MARGIN_POINTS} points"
DARK, GREY, BLUE, RED = "#222222", "#8a8a8a", "#2f5fa8", "#b5413e"
COLOURS = {"recommended": BLUE, "found": BLUE, "uniform": GREY, "random": GREY, "fixed": RED}
# Study and trial -> the label, its offset from the point in points, and its alignment.
LABELS: Mapping[tuple[str, str], tuple[str, tuple[int, int], str]] = {
    ("main job", "random"): ("random\n13.0 MB", (-9, 0), "right"),
    ("main job", "t006"): ("recommended\n13.0 MB, 3.8 bits", (-9, 30), "right"),
    ("main job", "uniform"): ("uniform\n13.6 MB", (-6, 52), "left"),
    ("main job", "t043"): ("found", (7, -18), "left"),
    ("main job", "t040"): ("found", (8, -18), "left"),
    ("main job", "B-Q4"): ("4-bit LoRA\n(B-Q4), rank 8", (0, 62), "center"),
    ("main job", "B-FP"): ("16-bit LoRA\n(B-FP), rank 8", (-4, 28), "center"),
    ("12 MB", "random"): ("random, 11.5 MB", (9, 0), "left"),
    ("12 MB", "t044"): ("found", (-9, -2), "right"),
    ("12 MB", "t032"): ("recommended\n11.8 MB, 3.3 bits", (-9, 36), "right"),
    ("12 MB", "uniform"): ("uniform, rank 2\n11.9 MB", (-9, -6), "right"),
    ("12 MB", "t020"): ("found", (9, -6), "left"),
    ("12 MB", "t021"): ("found", (-9, 8), "right"),
}


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--picture", type=Path, required=True)
    draw(read_rows(), parser.parse_args().picture)


def read_rows() -> list[dict[str, str]]:
    """Return the confirmed allocations of both runs."""
    with ROWS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Draw the two runs side by side, on one axis of accuracy."""
    style = {"font.size": 15, "axes.edgecolor": GREY, "text.color": DARK, "axes.titlesize": 16}
    with plt.rc_context(style):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(13, 6.2), sharey=True, width_ratios=(3, 2), layout="constrained"
        )
        _panel(left, [row for row in rows if row["study"] == "main job"], BARS)
        _panel(right, [row for row in rows if row["study"] == "12 MB"], SHADE)
        left.set_title("No limit on bytes: 50 trials, 200 steps", loc="left", weight="bold")
        right.set_title("At most 12 MB: 50 trials, 100 steps", loc="left", weight="bold")
        left.set_xscale("log")
        left.set_xlim(6.7, 62)
        left.set_ylim(-9.8, 3.4)
        right.set_xlim(11.42, 12.08)
        _ticks(left, (10, 13, 20, 30, 46))
        _ticks(right, (11.5, 11.75, 12.0))
        left.set_ylabel("test accuracy minus 16-bit LoRA's, points")
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _panel(axes: Axes, rows: list[dict[str, str]], note: str) -> None:
    axes.axhspan(-MARGIN_POINTS, 0, color=RED, alpha=0.07, linewidth=0)
    axes.axhline(0, color=RED, linewidth=1.2, linestyle="--")
    for row in rows:
        if row["difference"]:
            _point(axes, row, float(row["difference"]))
        elif row["study"] == "main job":
            _point(axes, row, 0.0)
    axes.set_xlabel("deployed model, MB")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(color=GREY)
    [reference] = [row for row in rows if row["trial"] == "B-FP"]
    axes.text(
        0.99,
        0.02,
        f"dashed: 16-bit LoRA, {reference['memory_mb']} MB, {reference['accuracy']} %\n{note}",
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=12.5,
        color="#555555",
    )


def _point(axes: Axes, row: dict[str, str], difference: float) -> None:
    colour, best = COLOURS[row["kind"]], row["kind"] == "recommended"
    size = float(row["memory_mb"])
    if row["difference_low"]:
        low, high = float(row["difference_low"]), float(row["difference_high"])
        axes.vlines(size, low, high, color=colour, linewidth=3 if best else 1.8)
    axes.plot(size, difference, "*" if best else "o", color=colour, markersize=19 if best else 8)
    label, offset, align = LABELS[row["study"], row["trial"]]
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


def _ticks(axes: Axes, values: tuple[float, ...]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(values, [f"{value:g}" for value in values])


if __name__ == "__main__":
    main()
