"""The allocation of least predicted loss under a limit on bytes, exactly."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search_spaces.allocation import Allocation, Choice
from search_spaces.costs import BYTES_16_BIT, format_bytes, module_bytes
from search_spaces.inventory import Inventory
from search_spaces.spaces import Space
from tune.search.knapsack import price_path, solve_knapsack


@dataclass(frozen=True, eq=False)
class _Options:
    """What each unit (a module, or modules that choose together) may take, by bytes, ascending.

    Attributes:
        parts: units x options x members: numbers of pairs; behind the last pair where there is
            no such member.
        bytes: units x options.
        real: units x options, whether there is such an option.
    """

    parts: np.ndarray
    bytes: np.ndarray
    real: np.ndarray


class BudgetSolver:
    """Solves the multiple-choice knapsack of one space for any values and limits.

    Attributes:
        pairs: Modules and their choices, in the order of the values that `solve` takes.
        smallest_bytes: Of the smallest allocation that the groups allow, in all.
        expanded: States that the last call of `solve` or `frontier` looked at.
        unproven: How much less than the allocations of the last call others may lose, at most:
            see `Solution`.
    """

    def __init__(
        self,
        inventory: Inventory,
        choices: Mapping[str, Sequence[Choice]],
        groups: Iterable[Sequence[str]] = (),
    ) -> None:
        """Compute the bytes of all choices once.

        Args:
            inventory: The model's modules.
            choices: Module name to what it may take; see `space_choices`.
            groups: Modules that take the same choice: see `Space.groups`.

        Raises:
            ValueError: A group names an unknown module or one of another group, or its modules
                have no choice in common.
        """
        self.expanded, self.unproven = 0, 0.0
        self._names = inventory.names
        self._other = BYTES_16_BIT * inventory.other_parameters
        self.pairs = tuple((name, choice) for name in self._names for choice in choices[name])
        targets = {target.name: target for target in inventory.modules}
        sizes = [module_bytes(targets[name], choice) for name, choice in self.pairs]
        own: dict[str, dict[Choice, int]] = {name: {} for name in self._names}
        for number, (name, choice) in enumerate(self.pairs):
            own[name][choice] = number
        units = _units(self._names, [tuple(group) for group in groups])
        self._options = _options(
            [_combinations([own[name] for name in unit], unit) for unit in units], sizes
        )
        self.smallest_bytes = self._other + int(self._options.bytes[:, 0].sum())

    def values(self, value: Callable[[str, Choice], float]) -> np.ndarray:
        """Return the values of all pairs, for `solve`."""
        found: np.ndarray = np.array([value(*pair) for pair in self.pairs], dtype=np.float64)
        return found

    def solve(self, values: np.ndarray, limit_bytes: int) -> Allocation:
        """Return the allocation with the smallest sum of values that fits.

        Exact but for the rounding of sums, unless `unproven` says otherwise: see `solve_knapsack`.

        Args:
            values: Predicted loss of each of `pairs`, finite; the smaller the better.
            limit_bytes: Of the whole deployed model, as `memory_bytes` counts.

        Raises:
            ValueError: Nothing fits, or there is a value that is no number.
        """
        return self.frontier(values, [limit_bytes])[0]

    def frontier(self, values: np.ndarray, limits: Iterable[int]) -> list[Allocation]:
        """Return what `solve` returns, for several limits.

        Raises:
            ValueError: See `solve`.
        """
        if len(values) != len(self.pairs) or not np.isfinite(values).all():
            raise ValueError(
                f"`values` must be {len(self.pairs)} finite numbers, one for each of `pairs`, got "
                f"{np.isfinite(values).sum()} of {len(values)}. Use `BudgetSolver.values`."
            )
        losses = np.where(self._options.real, self._sums(values), np.inf)
        # Not better than a smaller option.
        least = np.minimum.accumulate(losses, axis=1)
        losses[:, 1:][losses[:, 1:] >= least[:, :-1]] = np.inf
        self.expanded, self.unproven = 0, 0.0
        return [self._allocation(self._solve(losses, limit)) for limit in limits]

    def path(self, values: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return bytes, and sums of values, along the relaxation's frontier, by bytes.

        Every one is an allocation that `solve` would find for its bytes; between them lie others.

        Args:
            values: As of `solve`.
            others: Values of pairs that are only added up along it.
        """
        sums = self._sums(values)
        losses = np.where(self._options.real, sums, np.inf)
        units, before, after = price_path(losses, self._options.bytes)
        found = []
        for table in (self._options.bytes, sums, *map(self._sums, others)):
            steps = table[units, after] - table[units, before]
            found.append(np.cumsum(np.append(table[:, 0].sum(), steps)))
        return found[0] + self._other, *found[1:]

    def _sums(self, values: np.ndarray) -> np.ndarray:
        """Return units x options of the sums of values over a unit's members."""
        found: np.ndarray = np.append(values, 0.0)[self._options.parts].sum(axis=2)
        return found

    def _solve(self, losses: np.ndarray, limit_bytes: int) -> np.ndarray:
        """Return the number of each unit's option."""
        if limit_bytes < self.smallest_bytes:
            raise ValueError(
                f"`--max-memory` must be at least {format_bytes(self.smallest_bytes)} "
                f"({self.smallest_bytes} bytes), the smallest allocation of this space, got "
                f"{limit_bytes} bytes. Raise it, or allow fewer bits."
            )
        found = solve_knapsack(losses, self._options.bytes, limit_bytes - self._other)
        self.expanded += found.expanded
        self.unproven = max(self.unproven, found.unproven)
        return found.options

    def _allocation(self, options: np.ndarray) -> Allocation:
        parts = self._options.parts[np.arange(len(options)), options].ravel()
        chosen: dict[str, Choice] = dict(self.pairs[n] for n in parts if n < len(self.pairs))
        return Allocation({name: chosen[name] for name in self._names})


def space_choices(space: Space) -> dict[str, tuple[Choice, ...]]:
    """Return every module's choices in a searched space, each once."""
    return {name: space.choices(name) for name in space.inventory.names}


def _units(names: Sequence[str], groups: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    grouped = [name for group in groups for name in group]
    for name in grouped:
        if name not in names or grouped.count(name) > 1:
            problem = "twice" if name in names else "which is no module"
            raise ValueError(
                f"`--tie` must name modules of the model, each once, got {name} {problem}. "
                "Correct the groups."
            )
    return [*groups, *((name,) for name in names if name not in set(grouped))]


def _combinations(own: list[dict[Choice, int]], unit: tuple[str, ...]) -> list[tuple[int, ...]]:
    """Return what the members of a unit may take together, as numbers of pairs."""
    shared = [choice for choice in own[0] if all(choice in other for other in own)]
    if not shared:
        raise ValueError(
            f"`--tie` must join modules with a choice in common, got {', '.join(unit)} with none. "
            "Leave one of them out."
        )
    return [tuple(choices[choice] for choices in own) for choice in shared]


def _options(units: list[list[tuple[int, ...]]], sizes: list[int]) -> _Options:
    known = np.array([*sizes, 0], dtype=np.int64)
    shape = (len(units), max(map(len, units)), max(len(unit[0]) for unit in units))
    parts = np.full(shape, len(sizes))
    real = np.zeros(shape[:2], dtype=bool)
    for number, combinations in enumerate(units):
        rows = np.array(combinations)
        rows = rows[np.argsort(known[rows].sum(axis=1), kind="stable")]
        parts[number, : len(rows), : rows.shape[1]] = rows
        real[number, : len(rows)] = True
    return _Options(parts, known[parts].sum(axis=2), real)
