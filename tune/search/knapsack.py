"""The multiple-choice knapsack: one option of each unit, the least loss that fits."""

from dataclasses import dataclass

import numpy as np

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
    price, best = _relaxation(losses, sizes, room)
    rows = np.arange(len(best))
    slack = room - int(sizes[rows, best].sum())
    if price == 0 or slack == 0:
        return Solution(best)
    priced = losses + price * sizes
    undecided = _Undecided(
        # Not below 0 by rounding.
        losses=np.maximum(priced - priced[rows, best][:, None], 0.0),
        sizes=sizes - sizes[rows, best][:, None],
        price=price,
        tolerance=TOLERANCE * float(np.abs(losses[np.isfinite(losses)]).max()) * len(losses),
    )
    for unit, option in undecided.best_changes(slack).items():
        best[unit] = option
    return Solution(best, undecided.expanded, undecided.unproven)


def price_path(losses: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the changes that a falling price of bytes makes, from the smallest options on.

    Along them lie all solutions of the relaxation, from each unit's smallest option to its best.

    Args:
        losses, sizes: As in `solve_knapsack`.

    Returns:
        Of each change, in order: its unit, and the options before and after.
    """
    rows, now = np.arange(len(losses)), np.zeros(len(losses), dtype=np.int64)
    changes = []
    while True:
        more = sizes - sizes[rows, now][:, None]
        fewer = losses[rows, now][:, None] - losses
        rates = np.where((more > 0) & (fewer > 0), fewer / np.maximum(more, 1), 0.0)
        following = rates.argmax(axis=1)
        moved = rates[rows, following] > 0
        if not moved.any():
            break
        changes.append((rows[moved], now[moved], following[moved], rates[rows, following][moved]))
        now = np.where(moved, following, now)
    if not changes:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    units, before, after, rates = map(np.concatenate, zip(*changes, strict=True))
    # The rates of one unit fall, and where they are equal its changes stay in order.
    order = np.argsort(-rates, kind="stable")
    return units[order], before[order], after[order]


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

    def best_changes(self, slack: int) -> dict[int, int]:
        """Return the option of each unit that another one than the relaxation's is better for.

        Args:
            slack: Bytes that the relaxation's options leave free, at least 0.
        """
        filled, gap = self._filled(slack)
        # What loses more by itself is in no better solution; hardly any unit keeps another option.
        open_ = self._losses < gap
        # No sum of these options fills less than this.
        unfilled = slack % max(1, int(np.gcd.reduce(self._sizes[open_])))
        slack, gap = slack - unfilled, gap - self._price * unfilled
        free, losses = np.array([slack]), np.zeros(1)
        levels: list[_Level] = []
        found: tuple[int, int] | None = None
        for unit, more, fewer in self._ordered(open_, gap):
            if gap <= self._tolerance or not len(free):
                break
            if self.expanded > MOST_EXPANDED:
                self._dropped = min(self._dropped, float(losses.min()))
                break
            options = (self._losses[unit] < gap).nonzero()[0]
            if len(options) == 1:
                continue
            free = (free[:, None] - self._sizes[unit, options]).ravel()
            losses = (losses[:, None] + self._losses[unit, options]).ravel()
            self.expanded += len(free)
            ends = losses + self._price * free
            end = int(np.where(free >= 0, ends, np.inf).argmin())
            better = free[end] >= 0 and ends[end] < gap - self._tolerance
            gap = float(ends[end]) if better else gap
            bounds = losses + np.where(free > 0, free * more, -free * fewer)
            kept = self._undominated(free, ends, bounds, gap)
            if better:
                # The best end needs no further change, but must be found again.
                kept = np.append(kept, end)
                found = (len(levels), len(kept) - 1)
            levels.append(_Level(unit, kept // len(options), options[kept % len(options)]))
            free, losses = free[kept], losses[kept]
        self.unproven = max(0.0, gap - self._dropped)
        return filled if found is None else _changes(levels, found)

    def _ordered(self, open_: np.ndarray, gap: float) -> list[tuple[int, float, float]]:
        """Return the units with several open options, each with two rates of all behind it.

        These are the least loss of a byte more, which may also stay free, and of a byte fewer; at
        most a gap a byte.
        """
        units = np.flatnonzero(open_.sum(axis=1) > 1)
        sizes, useful = self._sizes[units], open_[units]
        rates = self._losses[units] / np.maximum(np.abs(sizes), 1)
        more = np.where(useful & (sizes > 0), rates, gap).min(axis=1)
        fewer = np.where(useful & (sizes < 0), rates, gap).min(axis=1)
        order = np.argsort(np.minimum(more, fewer), kind="stable")
        more = _least_after(more[order], min(self._price, gap))
        fewer = _least_after(fewer[order], gap)
        return list(zip(units[order].tolist(), more.tolist(), fewer.tolist(), strict=True))

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
        self, free: np.ndarray, ends: np.ndarray, bounds: np.ndarray, gap: float
    ) -> np.ndarray:
        """Return the states that may still lead to less than `gap`, as numbers.

        Args:
            free: Bytes that each leaves free; negative where it takes too many.
            ends: Its loss, with these bytes at their price.
            bounds: The least loss that it leads to.
            gap: Of the best end so far.
        """
        alive = (bounds < gap - self._tolerance).nonzero()[0]
        plain, room = ends[alive], free[alive]
        order = np.lexsort((plain, -room))
        plain = plain[order]
        first = np.ones(len(order), dtype=bool)
        first[1:] = plain[1:] < np.minimum.accumulate(plain)[:-1]
        kept: np.ndarray = alive[order[first]]
        if len(kept) > MOST_KEPT:
            kept = kept[np.lexsort((np.abs(free[kept]), bounds[kept]))]
            self._dropped = min(self._dropped, float(bounds[kept[MOST_KEPT]]))
            kept = kept[:MOST_KEPT]
        return kept


def _relaxation(losses: np.ndarray, sizes: np.ndarray, room: int) -> tuple[float, np.ndarray]:
    """Return the smallest loss a byte at which best options fit, and these; 0 if all do.

    Between options that fit and options that don't, one price makes both lose the same. What is
    best at that price replaces one of them, until nothing lies between.
    """
    rows = np.arange(len(losses))
    above = losses.argmin(axis=1)
    larger = int(sizes[rows, above].sum())
    if larger <= room:
        return 0.0, above
    fitting = np.where(sizes == sizes[:, :1], losses, np.inf).argmin(axis=1)
    smaller = int(sizes[rows, fitting].sum())
    plain = sizes.astype(np.float64)
    while True:
        lost = float((losses[rows, fitting] - losses[rows, above]).sum())
        price = lost / (larger - smaller)
        best = (losses + price * plain).argmin(axis=1)
        size = int(sizes[rows, best].sum())
        if not smaller < size < larger:
            return price, fitting
        if size <= room:
            fitting, smaller = best, size
        else:
            above, larger = best, size


def _least_after(values: np.ndarray, last: float) -> np.ndarray:
    """Return the least of all later values at each place, `last` at the end."""
    found: np.ndarray = np.minimum.accumulate(np.append(values, last)[:0:-1])[::-1]
    return found


def _changes(levels: list[_Level], found: tuple[int, int]) -> dict[int, int]:
    changes: dict[int, int] = {}
    last, state = found
    for level in reversed(levels[: last + 1]):
        changes[level.unit] = int(level.options[state])
        state = int(level.parents[state])
    return changes
