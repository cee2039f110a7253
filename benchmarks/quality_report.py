"""Tables and the picture of replayed searches."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

RESAMPLES = 2000
# Plain TPE, and TPE that begins with uniform allocations, the strongest of the others.
PEER, PEERS = "tpe", ("tpe", "tpe with anchors")
# The cost of so many full trials of a peer is what all may spend.
TRIALS = 50
POINTS = 200
# Of the largest area: what lies below is of the first few trials.
SHOWN = 0.6
NEVER = float("inf")


def write_report(
    folder: Path, lines: list[dict[str, Any]], fits: list[dict[str, Any]], trial_cost: float
) -> None:
    """Write `search_quality.md` and `search_quality.png`, and print the former.

    Args:
        folder: Where they go.
        lines: Replayed studies.
        fits: Of the surrogate, a rung each.
        trial_cost: Of one full trial of the peer.
    """
    text = [*_fit_table(fits)]
    counts = sorted({line["workers"] for line in lines})
    for workers in counts:
        inside = [line for line in lines if line["workers"] == workers]
        text += ["", f"{workers} worker{'' if workers == 1 else 's'}:", ""]
        text += _table(inside, trial_cost)
    (folder / "search_quality.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))
    _draw(folder / "search_quality.png", lines, counts, trial_cost)


def _fit_table(fits: list[dict[str, Any]]) -> list[str]:
    rows = ["| steps | Spearman | Kendall | error | spread | noise of a seed |", "|-|-|-|-|-|-|"]
    return rows + [
        f"| {fit['rung']} | {fit['spearman']:.2f} | {fit['kendall']:.2f} | {fit['error']:.4f} "
        f"| {fit['spread']:.4f} | {fit['noise']:.4f} |"
        for fit in fits
    ]


def _table(lines: list[dict[str, Any]], trial_cost: float) -> list[str]:
    """Return a row an arm: areas at a fifth and at all of the cost, and the ratios of costs.

    A ratio is what 50 trials of a peer cost to what it cost to get to their area.
    """
    full = TRIALS * trial_cost
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for line in lines:
        by_arm.setdefault(line["arm"], {})[line["seed"]] = line
    peers = [peer for peer in PEERS if peer in by_arm]
    columns = ["search", "area at 1/5 of the cost", "area at equal cost"]
    columns += [f"times cheaper than {peer}" for peer in peers] + ["seeds"]
    rows = [f"| {' | '.join(columns)} |", f"|{'-|' * len(columns)}"]
    for arm, found in by_arm.items():
        cells = [
            interval([volume_at(line, full / 5) for line in found.values()], np.mean),
            interval([volume_at(line, full) for line in found.values()], np.mean),
            *(_ratio(found, by_arm[peer], full) for peer in peers),
        ]
        rows.append(f"| {arm} | {' | '.join(cells)} | {len(found)} |")
    return rows


def _ratio(found: dict[int, dict[str, Any]], peer: dict[int, dict[str, Any]], full: float) -> str:
    """Return the median ratio of costs over the seeds that both have, and how many have none."""
    both = found.keys() & peer.keys()
    # A study that never got there counts as 0, so that a median is honest.
    ratios = [full / cost_to(found[seed], volume_at(peer[seed], full)) for seed in sorted(both)]
    never = ratios.count(0.0)
    return interval(ratios, np.median, digits=1) + (f", {never} never" if never else "")


def volume_at(line: dict[str, Any], cost: float) -> float:
    """Return the area that a study had when so much was spent."""
    place = int(np.searchsorted(line["costs"], cost, side="right"))
    return float(line["volumes"][place - 1]) if place else 0.0


def cost_to(line: dict[str, Any], volume: float) -> float:
    """Return what a study had spent when its area first reached this one, or infinity."""
    for cost, found in zip(line["costs"], line["volumes"], strict=True):
        if found >= volume:
            return float(cost)
    return NEVER


def interval(values: Sequence[float], statistic: Callable[..., Any], digits: int = 3) -> str:
    """Return a statistic with its 95 % interval over seeds, by resampling them."""
    generator = np.random.default_rng(0)
    array = np.array(values)
    drawn = statistic(generator.choice(array, (RESAMPLES, len(array))), axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{statistic(array):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _draw(path: Path, lines: list[dict[str, Any]], counts: list[int], trial_cost: float) -> None:
    figure, axes = plt.subplots(
        1, len(counts), figsize=(6 * len(counts) + 3, 5), layout="constrained", squeeze=False
    )
    known: dict[str, Any] = {}
    grid = np.linspace(0, TRIALS * trial_cost, POINTS)
    for workers, axis in zip(counts, axes[0], strict=True):
        arms = dict.fromkeys(line["arm"] for line in lines)
        for number, arm in enumerate(arms):
            curves = np.array(
                [
                    [volume_at(line, cost) for cost in grid]
                    for line in lines
                    if line["arm"] == arm and line["workers"] == workers
                ]
            )
            if not len(curves):
                continue
            spread = 1.96 * curves.std(axis=0) / np.sqrt(len(curves))
            middle, colour = curves.mean(axis=0), plt.get_cmap("tab20")(number % 20)
            (known[arm],) = axis.plot(grid / trial_cost, middle, color=colour)
            axis.fill_between(
                grid / trial_cost, middle - spread, middle + spread, alpha=0.15, color=colour
            )
        axis.set_xlabel("training cost, in full trials")
        axis.set_ylabel("area that the front dominates (loss x log2 bytes)")
        axis.set_title(f"{workers} worker{'' if workers == 1 else 's'}", fontsize=10)
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=SHOWN * axis.get_ylim()[1])
    figure.legend(known.values(), known.keys(), fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=130)
    plt.close(figure)
