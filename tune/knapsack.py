"""The multiple-choice knapsack: one option of each unit, the least loss that fits."""

from dataclasses import dataclass
from math import gcd

import numpy as np

# Halvings of the interval of prices: to the last digit of a float.
HALVINGS = 100
# Of the sum of the largest losses: a gap below is rounding.
TOLERANCE = 1e-13
# States that are kept after a unit, and that are looked at in all: bounds on the time, below half a
# second. Tables and random values over 500 modules need a hundredth of them. Where losses depend
# on shapes alone, so that hundreds of units are tied, proofs ended with up to 0.6 % of the loss
# open.
MOST_KEPT = 4096
MOST_EXPANDED = 3_000_000


@dataclass(frozen=True, eq=False)
class Solution:
    """One option of each unit.

    Attributes:
        options: Number of each unit's option.
        expanded: States that were looked at.
        unproven: How much less another solution may lose, at most: 0 but where `MOST_KEPT` or
            `MOST_EXPANDED` ended the proof.
    """

    options: np.ndarray
    expanded: int = 0
    unproven: float = 0.0


def solve_knapsack(losses: np.ndarray, sizes: np.ndarray, room: int) -> Solution:
    """Return the options with the smallest sum of losses whose sizes fit.

    A price per byte makes a relaxation whose best options are found unit by unit. What an option
    loses against its unit's best at that price bounds every solution that takes it. What the bound
    leaves open is enumerated, the most undecided units first, without dominated states (Pisinger
    1995, "A minimal algorithm for the multiple-choice knapsack problem", European Journal of
    Operational Research 83, sections 3 and 4). Hardly any unit is left open.

    Args:
        losses: units x options; infinite where there is no such option.
        sizes: units x options, whole bytes, ascending in each unit.
        room: Bytes; at least the sum of the first sizes, which are options.
    """
    price = _price(losses, sizes, room)
    priced = losses + price * sizes
    best = priced.argmin(axis=1)
    rows = np.arange(len(best))
    slack = room - int(sizes[rows, best].sum())
    if price == 0 or slack == 0:
        return Solution(best)
    undecided = _Undecided(
        losses=priced - priced[rows, best][:, None],
        sizes=sizes - sizes[rows, best][:, None],
        price=price,
        tolerance=TOLERANCE * float(np.abs(losses[np.isfinite(losses)]).max()) * len(losses),
    )
    for unit, option in undecided.best_changes(slack).items():
        best[unit] = option
    return Solution(best, undecided.expanded, undecided.unproven)


@dataclass(frozen=True, eq=False)
class _Level:
    """States after one more unit: where each came from, and the option that was taken."""

    unit: int
    parents: np.ndarray
    options: np.ndarray


class _Undecided:
    """Enumerates what a relaxation left open.

    Attributes:
        expanded: States that were looked at.
        unproven: See `Solution`.
    """

    def __init__(
        self, losses: np.ndarray, sizes: np.ndarray, price: float, tolerance: float
    ) -> None:
        """Take a relaxation's options, each against the one that it took.

        Args:
            losses: units x options, at least 0: lost with bytes at their price.
            sizes: units x options: bytes more, or fewer if negative.
            price: Loss a byte.
            tolerance: Smallest loss that counts.
        """
        self.expanded, self.unproven = 0, 0.0
        self._dropped = np.inf
        self._losses, self._sizes = losses, sizes
        self._price, self._tolerance = price, tolerance
        # Loss of each byte that a unit takes more, or gives back.
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = losses / np.abs(sizes)
        more = np.where(sizes > 0, rates, np.inf).min(axis=1)
        fewer = np.where(sizes < 0, rates, np.inf).min(axis=1)
        self._order = np.argsort(np.minimum(more, fewer), kind="stable")
        # Of all units that come after.
        self._more, self._fewer = (_least_after(found[self._order]) for found in (more, fewer))

    def best_changes(self, slack: int) -> dict[int, int]:
        """Return the option of each unit that another one than the relaxation's is better for.

        Args:
            slack: Bytes that the relaxation's options leave free, at least 0.
        """
        kept = self._sizes[np.isfinite(self._losses)]
        # No sum of options fills less than this.
        slack -= slack % max(1, gcd(*map(int, np.unique(np.abs(kept)))))
        filled, gap = self._filled(slack)
        sizes, losses = np.zeros(1, dtype=np.int64), np.zeros(1)
        levels: list[_Level] = []
        found: tuple[int, int] | None = None
        for place, unit in enumerate(self._order):
            if gap <= self._tolerance or not len(sizes):
                break
            if self.expanded > MOST_EXPANDED:
                self._dropped = min(self._dropped, float(losses.min()))
                break
            options = np.flatnonzero(self._losses[unit] < gap)
            sizes = (sizes[:, None] + self._sizes[unit, options]).ravel()
            losses = (losses[:, None] + self._losses[unit, options]).ravel()
            self.expanded += len(sizes)
            ends = np.where(sizes <= slack, losses + self._price * (slack - sizes), np.inf)
            end = int(ends.argmin())
            better = ends[end] < gap - self._tolerance
            gap = min(gap, float(ends[end])) if better else gap
            kept = self._undominated(sizes, losses, slack, gap, place)
            if better:
                # The best end needs no further change, but must be found again.
                kept = np.append(kept, end)
                found = (len(levels), len(kept) - 1)
            levels.append(_Level(int(unit), kept // len(options), options[kept % len(options)]))
            sizes, losses = sizes[kept], losses[kept]
        self.unproven = max(0.0, gap - self._dropped)
        return filled if found is None else _changes(levels, found)

    def _filled(self, slack: int) -> tuple[dict[int, int], float]:
        """Return larger options that fill the slack, the cheapest first, and what they lose."""
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = self._losses / self._sizes
        useful = (self._sizes > 0) & (self._sizes <= slack) & (rates < self._price)
        units, options = np.nonzero(useful)
        order = np.lexsort((-self._sizes[units, options], rates[units, options]))
        changes: dict[int, int] = {}
        lost = 0.0
        for unit, option in zip(units[order].tolist(), options[order].tolist(), strict=True):
            size = int(self._sizes[unit, option])
            if size <= slack and unit not in changes:
                changes[unit] = option
                slack -= size
                lost += float(self._losses[unit, option])
        return changes, lost + self._price * slack

    def _undominated(
        self, sizes: np.ndarray, losses: np.ndarray, slack: int, gap: float, place: int
    ) -> np.ndarray:
        """Return the states that may still lead to less than `gap`, as numbers."""
        free = slack - sizes
        with np.errstate(invalid="ignore"):
            rate = np.where(free > 0, min(self._price, self._more[place]), self._fewer[place])
            later = np.where(free == 0, 0.0, np.abs(free) * rate)
        bounds = losses + later
        alive = np.flatnonzero(bounds < gap - self._tolerance)
        plain = losses[alive] - self._price * sizes[alive]
        order = np.lexsort((plain, sizes[alive]))
        least = np.minimum.accumulate(plain[order])
        first = np.ones(len(order), dtype=bool)
        first[1:] = plain[order][1:] < least[:-1]
        kept: np.ndarray = alive[order[first]]
        if len(kept) > MOST_KEPT:
            kept = kept[np.lexsort((np.abs(free[kept]), bounds[kept]))]
            self._dropped = min(self._dropped, float(bounds[kept[MOST_KEPT]]))
            kept = kept[:MOST_KEPT]
        return kept


def _price(losses: np.ndarray, sizes: np.ndarray, room: int) -> float:
    """Return the smallest loss a byte at which each unit's best option fits; 0 if all do."""
    rows = np.arange(len(losses))

    def fits(price: float) -> bool:
        best = (losses + price * sizes).argmin(axis=1)
        return int(sizes[rows, best].sum()) <= room

    if fits(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not fits(high):
        high *= 2.0
    while high > 1e-300 and fits(high / 2.0):
        high /= 2.0
    low = high / 2.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        if not low < middle < high:
            break
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _least_after(values: np.ndarray) -> np.ndarray:
    """Return the least of all later values at each place, infinity at the end."""
    found: np.ndarray = np.append(np.minimum.accumulate(values[::-1])[::-1][1:], np.inf)
    return found


def _changes(levels: list[_Level], found: tuple[int, int]) -> dict[int, int]:
    changes: dict[int, int] = {}
    last, state = found
    for level in reversed(levels[: last + 1]):
        changes[level.unit] = int(level.options[state])
        state = int(level.parents[state])
    return changes
