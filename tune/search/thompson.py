"""The search of `FrontDraws` as an Optuna sampler like any other."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from alrq_core.sensitivity.table import VisibilityTable
from search_spaces.allocation import Allocation
from search_spaces.spaces import Space
from tune.search.effects import Observation
from tune.search.front_draws import FrontDraws, Sized
from tune.search.parameters import distributions, from_params, to_params

# Of the lowest loss seen at a rung.
FLOOR = 0.93
# Of what a validation split can tell: what loses less is as good as any, and more as bad as any.
TOLD, ALL = (0.25, 4.0), (0.0, math.inf)


class ThompsonSampler(BaseSampler):
    """Reads what Optuna knows of a study's trials, and hands on what `FrontDraws` proposes."""

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
            rungs: Steps at which trials report, ascending. A trial that was stopped has its last
                objective and step in the user attributes `objective` and `step`.
            max_memory_bytes: Limit on proposals.
            seed: Of the draws.
        """
        self._space = space
        self._rungs = tuple(rungs)
        self._entropy = np.random.SeedSequence(seed).entropy
        # How much the losses of trials from nothing are above the least is not known.
        least, most = TOLD if self._rungs[0] == 0 else ALL
        told = table.resolution * least, table.resolution * most
        self._draws = FrontDraws(space, table, len(self._rungs), max_memory_bytes, told)
        self._known: dict[int, Sized] = {}

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return all of the space."""
        return distributions(self._space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return one allocation as parameters."""
        earlier = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        return to_params(self.propose(earlier, trial.number), self._space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Raise, since all parameters are drawn together.

        Raises:
            ValueError: A parameter is not one of the space.
        """
        raise ValueError(
            f"`{param_name}` must be a parameter of this sampler's space, got another one. "
            "Suggest the parameters of `distributions(space)` only."
        )

    def propose(self, earlier: Sequence[FrozenTrial], number: int) -> Allocation:
        """Return the next allocation after the given trials.

        Args:
            earlier: Of one study in all calls: each trial's parameters are read once.
            number: Of the trial that it is for. The draw depends on it, and not on the draws
                before: a resumed study goes on as if never interrupted.
        """
        tried = _tried(earlier)
        seed = np.random.SeedSequence(self._entropy, spawn_key=(number,))
        return self._draws.propose(
            [self._read(t) for t in tried], self._observations(tried), np.random.default_rng(seed)
        )

    def expected_losses(self, trials: Sequence[FrozenTrial]) -> dict[int, float]:
        """Return what `FrontDraws.expected` does for completed trials, by their number.

        Args:
            trials: All of a study, as `propose` takes them.
        """
        done = [t for t in trials if t.state == TrialState.COMPLETE]
        if not done:
            return {}
        seen = self._observations(_tried(trials))
        losses = self._draws.expected([self._read(t) for t in done], seen)
        zero = self._zeros(trials)[0]
        return {t.number: zero + loss for t, loss in zip(done, losses, strict=True)}

    def _observations(self, tried: Sequence[FrozenTrial]) -> list[Observation]:
        """Return what is known of trials so far, at the highest rung that each reached."""
        zeros = self._zeros(tried)
        return [
            Observation(self._read(t).choices, rung, objective - zeros[rung])
            for t in tried
            for rung, objective in [self._observed(t)]
            if objective is not None
        ]

    def _zeros(self, tried: Sequence[FrozenTrial]) -> list[float]:
        """Return what is taken from the objectives of each rung, so that 0 is no loss at all.

        A divergence is counted from 0. Of losses it is not known which is the least.
        """
        if self._rungs[0] == 0:
            return [0.0] * len(self._rungs)
        found = [math.inf] * len(self._rungs)
        for rung, objective in map(self._observed, tried):
            if objective is not None:
                found[rung] = min(found[rung], FLOOR * objective)
        return [zero if math.isfinite(zero) else 0.0 for zero in found]

    def _read(self, trial: FrozenTrial) -> Sized:
        """Return a trial's allocation as the model reads it."""
        if trial.number not in self._known:
            self._known[trial.number] = self._draws.sized(from_params(trial.params, self._space))
        return self._known[trial.number]

    def _observed(self, trial: FrozenTrial) -> tuple[int, float | None]:
        """Return the rung that a trial reached, 0 for the highest, and its objective there."""
        if trial.state == TrialState.COMPLETE:
            return 0, trial.values[0]
        step, objective = trial.user_attrs.get("step"), trial.user_attrs.get("objective")
        if step not in self._rungs or objective is None or not math.isfinite(objective):
            return 0, None
        return len(self._rungs) - 1 - self._rungs.index(step), float(objective)


def _tried(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials whose allocation is known and did not fail."""
    return [t for t in trials if t.params and t.state != TrialState.FAIL]
