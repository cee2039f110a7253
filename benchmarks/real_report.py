"""The table and the picture of searches that were trained for real."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FixedLocator
from scipy.stats import t as student

from benchmarks.quality_report import PEER
from benchmarks.replay import CHANCE
from tune.search.front import front, hypervolume

# Of the cost of the peer's 50 trials.
PARTS = (0.1, 0.2, 1 / 3, 1.0)
NAMES = ("1/10", "1/5", "1/3", "all")


def write_real_report(folder: Path, studies: Sequence[dict[str, Any]], largest: float) -> None:
    """Write `real_search.md` and `real_search.png`, and print the former.

    Args:
        folder: Where they go.
        studies: Arm, seed, the confirmed (loss, bytes) that it offered after each of `PARTS`, and
            where known the losses of a uniform and a random allocation beside each of the last.
        largest: Bytes of the largest allocation, to which areas count.
    """
    areas: dict[str, dict[int, list[float]]] = {}
    for study in studies:
        found = [_area(points, largest) for points in study["fronts"]]
        areas.setdefault(study["arm"], {})[study["seed"]] = found
    text = [*_areas_table(areas), "", *_reached_table(areas), "", *_controls_table(studies)]
    (folder / "real_search.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))
    _draw(folder / "real_search.png", studies)


def _area(points: Sequence[Sequence[float]], largest: float) -> float:
    known = [(loss, float(np.log2(size))) for loss, size in points]
    return hypervolume(known, (CHANCE, float(np.log2(largest))))


def _areas_table(areas: dict[str, dict[int, list[float]]]) -> list[str]:
    """Return mean areas, and at all of the cost how far they are above the peer's, seed by seed."""
    titles = [*(f"area at {name} of the cost" for name in NAMES), f"minus that of {PEER}", "seeds"]
    rows = [f"| search | {' | '.join(titles)} |", "|-" * (len(titles) + 1) + "|"]
    peers = areas.get(PEER, {})
    for arm, found in areas.items():
        cells = [_interval([volumes[part] for volumes in found.values()]) for part in range(4)]
        gaps = [found[seed][-1] - peers[seed][-1] for seed in found if seed in peers]
        cells.append("-" if arm == PEER or not gaps else _interval(gaps))
        rows.append(f"| {arm} | {' | '.join(cells)} | {len(found)} |")
    return rows


def _reached_table(areas: dict[str, dict[int, list[float]]]) -> list[str]:
    """Return at which part of the cost each study had the area of its peer's whole study."""
    seeds = sorted(areas.get(PEER, {}))
    rows = [f"| search | {' | '.join(f'seed {seed}' for seed in seeds)} |"]
    rows.append("|-" * (len(seeds) + 1) + "|")
    for arm, found in areas.items():
        cells = []
        for seed in seeds:
            target = areas[PEER][seed][-1]
            reached = [
                name
                for name, area in zip(NAMES, found.get(seed, []), strict=False)
                if area >= target
            ]
            cells.append(reached[0] if reached else "never")
        rows.append(f"| {arm} | {' | '.join(cells)} |")
    return rows


def _controls_table(studies: Sequence[dict[str, Any]]) -> list[str]:
    """Return how what was offered compares to uniform and random allocations of its bytes."""
    rows = [
        "| search | seed | offered | loss minus uniform's | lower | minus random's | lower |",
        f"|{'-|' * 7}",
    ]
    known = [study for study in studies if study["controls"]]
    gaps = []
    for study in known:
        losses = np.array([loss for loss, _ in study["fronts"][-1]])
        gaps.append((losses[:, None] - np.array(study["controls"])).T)
        cells = [f"{gap.mean():+.4f} | {(gap < 0).sum()}" for gap in gaps[-1]]
        rows.append(f"| {study['arm']} | {study['seed']} | {len(losses)} | {' | '.join(cells)} |")
    if len(known) > 1:
        kinds = [[gap[kind] for gap in gaps] for kind in range(2)]
        lower = [sum(int((gap < 0).sum()) for gap in kind) for kind in kinds]
        means = [_interval([float(gap.mean()) for gap in kind], "+.4f") for kind in kinds]
        cells = [f"{mean} | {count}" for mean, count in zip(means, lower, strict=True)]
        count = sum(gap.shape[1] for gap in gaps)
        rows.append(f"| {known[0]['arm']} | all | {count} | {' | '.join(cells)} |")
    return rows


def _interval(values: Sequence[float], shape: str = ".3f") -> str:
    """Return the mean with its 95 % interval over seeds, by Student's t."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:{shape}}"
    half = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return f"{mean:{shape}} [{mean - half:{shape}}, {mean + half:{shape}}]"


def _draw(path: Path, studies: Sequence[dict[str, Any]]) -> None:
    seeds = sorted({study["seed"] for study in studies})
    arms = list(dict.fromkeys(study["arm"] for study in studies))
    figure, axes = plt.subplots(
        1,
        len(seeds),
        figsize=(5 * len(seeds), 4.2),
        layout="constrained",
        squeeze=False,
        sharey=True,
        sharex=True,
    )
    for study in studies:
        axis = axes[0][seeds.index(study["seed"])]
        colour = plt.get_cmap("tab10")(arms.index(study["arm"]))
        for part, style in ((1, ":"), (3, "-")):
            points = [(loss, size) for loss, size in study["fronts"][part]]
            chosen = [points[index] for index in front(points)]
            axis.step(
                [size / 1e6 for _, size in chosen],
                [loss for loss, _ in chosen],
                style,
                where="post",
                marker=".",
                color=colour,
                label=f"{study['arm']}, {NAMES[part]} of the cost",
            )
        axis.set_title(f"seed {study['seed']}", fontsize=10)
        axis.set_xlabel("deployed model, MB")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(FixedLocator([10, 12, 14, 16, 20, 24, 32, 48]))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("test loss on a fresh seed")
    axes[0][-1].legend(fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)
