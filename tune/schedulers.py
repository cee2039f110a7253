"""Rungs, and the rules that say at a rung which trials go on."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil

from tune.front import Point, dominates, order

RUNG_FACTOR = 2
RUNGS = 3
# Harsher than the rungs' spacing, since what no other trial beats goes on besides.
FRONT_REDUCTION = 3

# A rule sees the (loss, memory_bytes) of all that reached the rung, the newest last, and tells
# whether the newest goes on.
Rule = Callable[[Sequence[Point]], bool]


def rung_steps(max_steps: int) -> tuple[int, ...]:
    """Return the steps at which trials report, whole numbers that end with `max_steps`.

    Each rung trains twice as long as the one before it. Successive halving's first rungs of
    less than a quarter are left out: a fine-tuned classifier is still in its warm-up there.
    """
    steps = {max_steps // RUNG_FACTOR**power for power in range(RUNGS)}
    return tuple(sorted(step for step in steps if step > 0))


def _front_asha(points: Sequence[Point]) -> bool:
    """Keep what no other trial beats in both loss and bytes, and of the rest what is in the
    better third by non-dominated rank, then by spread.
    """
    newest = len(points) - 1
    if not any(dominates(point, points[newest]) for point in points):
        return True
    return order(points).index(newest) < ceil(len(points) / FRONT_REDUCTION)


def _asha(points: Sequence[Point]) -> bool:
    """Keep the better half by loss alone (Li et al. 2020, arXiv:1810.05934, algorithm 2)."""
    better = sum(loss < points[-1][0] for loss, _ in points)
    return better < ceil(len(points) / RUNG_FACTOR)


def _none(points: Sequence[Point]) -> bool:
    """Keep all."""
    return True


SCHEDULERS: Mapping[str, Rule] = {"front-asha": _front_asha, "asha": _asha, "none": _none}
