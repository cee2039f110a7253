"""Proposes allocations by Thompson sampling over effects of modules, exactly on a budget."""

import numpy as np

from alrq_core.sensitivity.table import VisibilityTable
from search_spaces.allocation import Allocation
from search_spaces.costs import BYTES_16_BIT, memory_bytes, module_bytes
from search_spaces.spaces import Space
from tune.search.budget import BudgetSolver, space_choices
from tune.search.effects import Effects, EffectsModel, Observations
from tune.search.front import hypervolume_gain

# Sizes at which a draw's best allocations are looked at, one in each part of a range, by chance.
SIZES = 12
# Times the least loss at any size.
NEAREST = 4.0
# Where bytes are limited, the best that fits is asked for, and it is near the limit. Replayed with
# limits of 11, 12 and 14 MB, 12 seeds each, what was best had a loss that was lower than with 0 by
# 0.013, 0.023 and 0.004; areas changed by -2, -3 and +0.2 %. With 1 they fell by up to 6 %.
BEYOND_LIMIT = 0.3


class FrontDraws:
    """Draws a model of all effects, solves it for sizes along the front, and takes what adds most.

    Each proposal is one draw of the posterior (Thompson 1933) of `EffectsModel`. For a row of sizes
    the budget solver finds the allocation that this draw says is best; proposed is the one whose
    addition to all that was tried, as the draw sees that, dominates the most new area of loss and
    the logarithm of bytes. Running trials count as tried, so parallel proposals differ.
    """

    def __init__(
        self,
        space: Space,
        table: VisibilityTable,
        rungs: int,
        max_memory_bytes: int | None,
        told: tuple[float, float],
    ) -> None:
        """Prepare the model and the solver.

        Args:
            space: What may be chosen.
            table: Of this space.
            rungs: How many there are.
            max_memory_bytes: Limit on proposals; None for none.
            told: Losses below the first are as good as any, above the second as bad as any: the
                search is for sizes between.
        """
        self._solver = BudgetSolver(space.inventory, space_choices(space), space.groups)
        pairs = self._solver.pairs
        self._model = EffectsModel(
            pairs,
            {pair: table.damage(*pair) for pair in pairs},
            rungs,
        )
        largest = memory_bytes(space.largest(), space.inventory)
        self._limit = min(largest, max_memory_bytes or largest)
        self._told = told
        self._beyond = 0.0 if max_memory_bytes is None else BEYOND_LIMIT
        targets = {target.name: target for target in space.inventory.modules}
        self.columns = self._model.columns
        self._bytes = np.array([module_bytes(targets[name], choice) for name, choice in pairs])
        self._other = BYTES_16_BIT * space.inventory.other_parameters

    def propose(
        self, tried: np.ndarray, seen: Observations, generator: np.random.Generator
    ) -> Allocation:
        """Return the next allocation.

        Args:
            tried: What was proposed before and did not fail, ended or not: allocations x modules,
                see `index`.
            seen: What is known of their losses.
            generator: Of the draw.
        """
        effects = self._model.draw(seen, generator)
        found, told = self._frontier(effects, generator)
        candidates = self._points(effects, np.array([self.index(one) for one in found]), told)
        known = self._points(effects, tried, told)
        gains = hypervolume_gain(known, candidates, self._beyond)
        new = ~(candidates[:, None] == known).all(axis=2).any(axis=1)
        return found[int(np.where(new, gains, gains - gains.max() - 1).argmax())]

    def expected(self, wanted: np.ndarray, seen: Observations) -> np.ndarray:
        """Return what the posterior mean says that allocations x modules lose at full fidelity.

        They are free of most of the luck of a seed, which among good allocations is as large as
        what differs between them.
        """
        return self._model.mean(seen).losses(wanted)

    def index(self, allocation: Allocation) -> np.ndarray:
        """Return the number of each module's choice."""
        return self._model.index(allocation)

    def rows(self, choices: np.ndarray) -> np.ndarray:
        """Return what `Observations` has of allocations x modules."""
        return self._model.rows(choices)

    def sizes(self, choices: np.ndarray) -> np.ndarray:
        """Return the bytes of allocations x modules, of all of the deployed model."""
        found: np.ndarray = self._bytes[choices].sum(axis=-1) + self._other
        return found

    def _frontier(
        self, effects: Effects, generator: np.random.Generator
    ) -> tuple[list[Allocation], tuple[float, float]]:
        """Return the allocations that a draw says are best, by size, where losses can be told, and
        between which losses that is.
        """
        (best,) = self._solver.frontier(effects.values, [self._limit])
        # Larger limits leave the best as it is.
        smallest, largest = self._solver.smallest_bytes, int(self.sizes(self.index(best)))
        sizes, values, predicted = self._solver.path(effects.values, effects.predicted)
        losses = effects.losses_of_sums(values, predicted)[sizes <= largest]
        sizes = sizes[sizes <= largest]
        # Where nothing is as good as that, what is nearest to it is searched for.
        least, most = self._told[0], max(self._told[1], NEAREST * float(losses.min()))
        low = int(sizes[losses > most].max(initial=smallest))
        high = int(sizes[losses < least].min(initial=largest))
        # A draw may be wrong about where that is, so that sizes a little beyond are looked at too.
        beyond = (largest / smallest) ** (1 / (2 * SIZES))
        low, high = max(smallest, int(low / beyond)), min(largest, int(high * beyond))
        found = [*self._solved(effects, low, max(low, high), generator), best]
        return found, (least, most)

    def _solved(
        self, effects: Effects, smallest: int, largest: int, generator: np.random.Generator
    ) -> list[Allocation]:
        """Return the best of sizes between two, one in each part of the range by chance."""
        parts = (np.arange(SIZES) + generator.random(SIZES)) / SIZES
        sizes = [max(smallest, int(size)) for size in smallest * (largest / smallest) ** parts]
        return self._solver.frontier(effects.values, sizes)

    def _points(
        self, effects: Effects, choices: np.ndarray, told: tuple[float, float]
    ) -> np.ndarray:
        """Return what allocations lose by these effects, and the logarithm of their bytes.

        As the root of it, which of divergences is how far answers move: what has lost nearly all,
        at the smallest sizes, would be most of the area without.
        """
        losses = np.sqrt(np.clip(effects.losses(choices), *told))
        return np.column_stack([losses, np.log(self.sizes(choices))])
