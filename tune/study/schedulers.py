"""Rungs, and the rules that say at a rung which trials go on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median

from alrq_core.recipe import Recipe
from tune.search.front import Point, best
from tune.study.events import Role

RUNG_FACTOR = 2
RUNGS = 3
# Of what started from a reference so many trials are scored for each that is trained on, to show
# how well starts order what they come to: it costs as much as seven scores, and nothing goes by it.
START_FACTOR = 5
# The median of fewer says nothing.
MEDIAN_TRIALS = 4


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """Which trials go on at a rung.

    Attributes:
        passes: Tells for each of the (objective, memory_bytes) that reached the rung whether that
            trial goes on; also given are whether no others will follow, and of how many trials one
            goes on.
        pauses: Whether what doesn't pass waits, to be asked again when others have come, until the
            search ends; else it is stopped.
    """

    passes: Callable[[Sequence[Point], bool, int], list[bool]]
    pauses: bool


def rungs_of(recipe: Recipe, role: Role, started: bool) -> tuple[int, ...]:
    """Return the steps at which a trial reports.

    Args:
        recipe: Of all trials.
        role: Only what is searched may be stopped on the way.
        started: Whether it starts from a reference; it is then scored before any step.
    """
    if role == "screen":
        return (0,)
    if started:
        return 0, recipe.tuning.max_steps
    return rung_steps(recipe.max_steps) if role == "search" else (recipe.max_steps,)


def judging_rungs(recipe: Recipe, started: bool) -> tuple[int, ...]:
    """Return the steps whose reports the search may go by, see `TrialState.judged`."""
    return (0,) if started else rung_steps(recipe.max_steps)


def rung_steps(max_steps: int) -> tuple[int, ...]:
    """Return the steps at which trials from nothing report, which end with `max_steps`.

    Each rung trains twice as long as the one before it. Successive halving's first rungs of
    less than a quarter are left out: a fine-tuned classifier is still in its warm-up there.
    """
    steps = {max_steps // RUNG_FACTOR**power for power in range(RUNGS)}
    return tuple(sorted(step for step in steps if step > 0))


def part(count: int, closing: bool, factor: int) -> int:
    """Return how many of so many trials may go on."""
    return ceil(count / factor) if closing else count // factor


def _front_asha(points: Sequence[Point], closing: bool, factor: int) -> list[bool]:
    """Let the best part pass, by non-dominated rank and then by spread.

    Li et al. 2020, arXiv:1810.05934, algorithm 2, `get_job`, with an order of the front for the
    order by loss. Where no more will come the part is rounded up, so that one always passes.
    """
    kept = best(points, part(len(points), closing, factor))
    return [index in kept for index in range(len(points))]


def _asha(points: Sequence[Point], closing: bool, factor: int) -> list[bool]:
    """Let the best part by loss pass, of those that came so far."""
    passing = ceil(len(points) / factor)
    worst = sorted(loss for loss, _ in points)[passing - 1]
    return [loss <= worst for loss, _ in points]


def _median(points: Sequence[Point], closing: bool, factor: int) -> list[bool]:
    """Let what is no worse by loss than the median of those that came so far pass.

    Golovin et al. 2017, "Google Vizier: a service for black-box optimization", section 3.2.
    """
    middle = median(loss for loss, _ in points)
    return [len(points) < MEDIAN_TRIALS or loss <= middle for loss, _ in points]


def _all(points: Sequence[Point], closing: bool, factor: int) -> list[bool]:
    return [True] * len(points)


SCHEDULERS: Mapping[str, Scheduler] = {
    "front-asha": Scheduler(passes=_front_asha, pauses=True),
    "asha": Scheduler(passes=_asha, pauses=False),
    "median": Scheduler(passes=_median, pauses=False),
    "none": Scheduler(passes=_all, pauses=False),
}
