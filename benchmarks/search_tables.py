"""The tables of `real_search.py`: what was lost at each limit, and what the searches cost."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.codes import half_interval
from tune.report.intervals import mean_interval

SCORES = ("losses", "divergences", "right")
STATES = ("start", "trained")
MEANS = tuple(f"{state}_{score}" for state in STATES for score in SCORES)
COLUMNS = ("task", "seed", "kind", "limit", "mb", "kept", *MEANS)
# Scores beside which the difference to the search's is printed, their names and digits.
SHOWN = {
    "divergences": ("divergence", 4),
    "changed": ("answers changed, %", 1),
    "losses": ("test loss", 4),
}
# What others are compared with.
OURS = "alrq"
Row = dict[str, Any]


def write_scores(rows: list[Row], task: str, path: Path) -> None:
    """Write the mean scores of each allocation on the test split, a line each."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            means = {
                f"{state}_{score}": f"{np.mean(values):.5f}"
                for state in STATES
                for score, values in row.get(state, {}).items()
            }
            if means:
                writer.writerow(row | means | {"task": task, "mb": round(row["mb"], 3)})


def print_limits(rows: list[Row]) -> None:
    """Print how allocations do at each limit, with differences to the search's and to B-FP."""
    whole = {row["seed"]: row for row in rows if row["kind"] == "B-FP"}
    losses = _table(whole, sorted(whole), "start", "losses")
    classes = all("right" in row["start"] for row in whole.values())
    print(f"B-FP: test loss {losses.mean():.4f}", end="")
    if classes:
        right = _table(whole, sorted(whole), "start", "right")
        print(f", accuracy {100 * right.mean():.1f} %", end="")
    shown = {score: how for score, how in SHOWN.items() if classes or score != "changed"}
    titles = ["limit, MB", "allocation", "MB"]
    for title, _ in shown.values():
        titles += [title, "minus the search's"]
    titles += ["accuracy minus B-FP's, points"] * classes + ["seeds"]
    groups: dict[tuple[int, str], dict[int, Row]] = defaultdict(dict)
    for row in rows:
        if "limit" in row:
            groups[row["limit"], row["kind"]][row["seed"]] = row
    for state in STATES:
        print(f"\n\n{state}\n\n| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
        for (limit, kind), found in groups.items():
            seeds = sorted(found.keys() & groups[limit, OURS].keys())
            mine = _scores(found, whole, seeds, state)
            best = _scores(groups[limit, OURS], whole, seeds, state)
            size = np.mean([found[seed]["mb"] for seed in seeds])
            cells = [f"{limit / 1e6:.1f}", kind, f"{size:.2f}"]
            for score, (_, digits) in shown.items():
                over = "-" if kind == OURS else _interval(mine[score] - best[score], digits)
                cells += [f"{mine[score].mean():.{digits}f}", over]
            cells += [_interval(mine["gained"], 1)] if classes else []
            print(f"| {' | '.join([*cells, str(len(seeds))])} |")


def _scores(
    rows: dict[int, Row], whole: dict[int, Row], seeds: list[int], state: str
) -> dict[str, np.ndarray]:
    """Return every score of each test sequence, seeds x sequences; answers against B-FP's."""
    found = {score: _table(rows, seeds, state, score) for score in ("divergences", "losses")}
    if any("right" not in whole[seed]["start"] for seed in seeds):
        return found
    right = _table(rows, seeds, state, "right")
    gained = 100 * (right - _table(whole, seeds, "start", "right"))
    # Of two classes, an answer has changed where it is right for wrong, or wrong for right.
    return {**found, "changed": abs(gained), "gained": gained}


def _table(rows: dict[int, Row], seeds: list[int], state: str, score: str) -> np.ndarray:
    return np.array([rows[seed][state][score] for seed in seeds], dtype=float)


def _interval(table: np.ndarray, digits: int) -> str:
    low, high = mean_interval(table)
    return f"{table.mean():+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def print_searches(rows: list[Row], searches: Sequence[str]) -> None:
    """Print costs and areas of the searches, and what it costs to get as far as TPE in the end."""
    found = {(row["kind"], row["seed"]): row for row in rows if "areas" in row}
    print("\n| search | cost, steps | area in the end | share of TPE's cost to its area | tau |")
    print("|---|---|---|---|---|")
    for kind in searches:
        mine = {seed: row for (name, seed), row in found.items() if name == kind}
        shares = []
        for seed, row in mine.items():
            peer = found["tpe", seed]
            reached = [
                cost
                for cost, area in zip(row["costs"], row["areas"], strict=True)
                if area >= peer["areas"][-1]
            ]
            shares.append(reached[0] / peer["cost"] if reached else float("inf"))
        cells = (
            kind,
            ranged([row["cost"] for row in mine.values()], 0),
            ranged([row["areas"][-1] for row in mine.values()], 4),
            ", ".join(f"{share:.2f}" for share in shares),
            ranged([row["tau"] for row in mine.values()], 2),
        )
        print(f"| {' | '.join(cells)} |")


def ranged(values: list[float], digits: int) -> str:
    """Return the mean and its 95 % interval."""
    if len(values) < 2:
        return f"{np.mean(values):.{digits}f}"
    return f"{np.mean(values):.{digits}f} +- {half_interval(values):.{digits}f}"
