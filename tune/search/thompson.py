"""Keeps what is known of a search's trials as arrays, and hands on what `FrontDraws` proposes."""

import math
from collections.abc import Sequence

import numpy as np

from alrq_core.sensitivity.table import VisibilityTable
from search_spaces.allocation import Allocation
from search_spaces.spaces import Space
from tune.search.effects import Observations
from tune.search.front_draws import FrontDraws
from tune.search.tried import Tried

# Of the lowest loss seen at a rung.
FLOOR = 0.93
# Of what a validation split can tell: what loses less is as good as any, and more as bad as any.
TOLD, ALL = (0.25, 4.0), (0.0, math.inf)
# Trials for which there is place at first.
PLACES = 64


class ThompsonSearch:
    """Proposes by Thompson sampling: see `FrontDraws`."""

    def __init__(
        self,
        space: Space,
        table: VisibilityTable,
        rungs: Sequence[int],
        max_memory_bytes: int | None = None,
        seed: int | None = None,
    ) -> None:
        """Prepare the model and the solver.

        Args:
            space: What may be chosen.
            table: Of this space.
            rungs: Steps at which trials report, ascending.
            max_memory_bytes: Limit on proposals.
            seed: Of the draws.
        """
        self._rungs = tuple(rungs)
        self._entropy = np.random.SeedSequence(seed).entropy
        # How much the losses of trials from nothing are above the least is not known.
        least, most = TOLD if self._rungs[0] == 0 else ALL
        told = table.resolution * least, table.resolution * most
        self._draws = FrontDraws(space, table, len(self._rungs), max_memory_bytes, told)
        modules, columns = len(space.inventory.names), self._draws.columns
        fields = [("choices", "i4", modules), ("row", "f8", columns), ("objective", "f8")]
        marks = [("rung", "i8"), ("completed", "?"), ("failed", "?")]
        self._trials = np.zeros(PLACES, dtype=[*fields, *marks])
        self._places: dict[str, int] = {}

    def tell(self, trial: Tried) -> None:
        """Take in a trial, or what has become known of one; how it ended is final."""
        if trial.id not in self._places:
            self._add(trial)
        known = self._trials[self._places[trial.id]]
        if known["completed"] or known["failed"]:
            return
        known["rung"], known["objective"] = self._observed(trial)
        known["completed"], known["failed"] = trial.ended == "completed", trial.ended == "failed"

    def propose(self, number: int) -> Allocation:
        """Return the next allocation.

        Args:
            number: Of the proposal. The draw depends on it, and not on the draws before: a resumed
                study goes on as if never interrupted.
        """
        seed = np.random.SeedSequence(self._entropy, spawn_key=(number,))
        tried = self._known()["choices"]
        return self._draws.propose(tried, self._seen()[0], np.random.default_rng(seed))

    def expected_losses(self) -> dict[str, float]:
        """Return what `FrontDraws.expected` does for completed trials, by id."""
        seen, zeros = self._seen()
        done = self._trials["completed"][: len(self._places)]
        if not done.any():
            return {}
        choices = self._trials["choices"][: len(self._places)][done]
        losses = zeros[0] + self._draws.expected(choices, seen)
        ids = [trial for trial, place in self._places.items() if done[place]]
        return dict(zip(ids, losses.tolist(), strict=True))

    def _add(self, trial: Tried) -> None:
        place = self._places[trial.id] = len(self._places)
        if place == len(self._trials):
            self._trials = np.concatenate([self._trials, np.zeros_like(self._trials)])
        choices = self._draws.index(trial.allocation)
        self._trials["choices"][place] = choices
        self._trials["row"][place] = self._draws.rows(choices[None])[0]

    def _known(self) -> np.ndarray:
        """Return the trials that did not fail."""
        known = self._trials[: len(self._places)]
        return known if not known["failed"].any() else known[~known["failed"]]

    def _seen(self) -> tuple[Observations, np.ndarray]:
        """Return what is known of trials so far, at the highest rung that each reached, and what
        was taken from the objectives of each rung.

        That is so much that 0 is no loss at all. A divergence is counted from 0. Of losses it is
        not known which is the least.
        """
        seen = self._known()
        seen = seen[np.isfinite(seen["objective"])]
        zeros = np.zeros(len(self._rungs))
        for rung in range(len(zeros)) if self._rungs[0] > 0 else ():
            there = seen["objective"][seen["rung"] == rung]
            zeros[rung] = FLOOR * there.min() if len(there) else 0.0
        excess = seen["objective"] - zeros[seen["rung"]]
        return Observations(seen["row"], seen["rung"], excess), zeros

    def _observed(self, trial: Tried) -> tuple[int, float]:
        """Return the rung that a trial reached, 0 for the highest, and its objective there."""
        if trial.objective is None or not math.isfinite(trial.objective):
            return 0, math.nan
        if trial.ended == "completed":
            return 0, trial.objective
        if trial.step not in self._rungs:
            return 0, math.nan
        return len(self._rungs) - 1 - self._rungs.index(trial.step), trial.objective
