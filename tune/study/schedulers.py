"""Rungs, and the rules that say at a rung which trials go on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median

from tune.search.front import Point, order

RUNG_FACTOR = 2
RUNGS = 3
# The median of fewer says nothing.
MEDIAN_TRIALS = 4


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """Which trials go on at a rung.

    Attributes:
        passes: Tells for each of the (loss, memory_bytes) that reached the rung whether that trial
            goes on; also given is whether no others will follow.
        pauses: Whether what doesn't pass waits, to be asked again when others have come, until the
            search ends; else it is stopped.
    """

    passes: Callable[[Sequence[Point], bool], list[bool]]
    pauses: bool


def rung_steps(max_steps: int) -> tuple[int, ...]:
    """Return the steps at which trials report, whole numbers that end with `max_steps`.

    Each rung trains twice as long as the one before it. Successive halving's first rungs of
    less than a quarter are left out: a fine-tuned classifier is still in its warm-up there.
    """
    steps = {max_steps // RUNG_FACTOR**power for power in range(RUNGS)}
    return tuple(sorted(step for step in steps if step > 0))


def _front_asha(points: Sequence[Point], closing: bool) -> list[bool]:
    """Let the better half pass, by non-dominated rank and then by spread.

    Li et al. 2020, arXiv:1810.05934, algorithm 2, `get_job`, with an order of the front for the
    order by loss. Where no more will come the half is rounded up, so that one always passes.
    """
    passing = ceil(len(points) / RUNG_FACTOR) if closing else len(points) // RUNG_FACTOR
    best = set(order(points)[:passing])
    return [index in best for index in range(len(points))]


def _asha(points: Sequence[Point], closing: bool) -> list[bool]:
    """Let the better half by loss pass, of those that came so far."""
    passing = ceil(len(points) / RUNG_FACTOR)
    worst = sorted(loss for loss, _ in points)[passing - 1]
    return [loss <= worst for loss, _ in points]


def _median(points: Sequence[Point], closing: bool) -> list[bool]:
    """Let what is no worse by loss than the median of those that came so far pass.

    Golovin et al. 2017, "Google Vizier: a service for black-box optimization", section 3.2.
    """
    middle = median(loss for loss, _ in points)
    return [len(points) < MEDIAN_TRIALS or loss <= middle for loss, _ in points]


def _all(points: Sequence[Point], closing: bool) -> list[bool]:
    return [True] * len(points)


SCHEDULERS: Mapping[str, Scheduler] = {
    "front-asha": Scheduler(passes=_front_asha, pauses=True),
    "asha": Scheduler(passes=_asha, pauses=False),
    "median": Scheduler(passes=_median, pauses=False),
    "none": Scheduler(passes=_all, pauses=False),
}
