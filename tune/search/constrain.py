"""Makes any sampler's draws new and small enough."""

import random
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search_spaces.allocation import Allocation
from search_spaces.controls import lowered
from search_spaces.spaces import Space
from tune.search.parameters import distributions, from_params, to_params

ATTEMPTS = 20


class Fitting:
    """Changes allocations as little as needed to be new and to fit in memory."""

    def __init__(self, space: Space, max_memory_bytes: int | None, seed: int) -> None:
        """Start with nothing proposed.

        Args:
            space: What may be drawn.
            max_memory_bytes: Limit on the deployed model; None for none.
            seed: Of the changes.
        """
        self._space = space
        self._limit = max_memory_bytes
        self._seed = seed
        self._random = random.Random(seed)
        self._seen: set[Allocation] = set()

    def start(self, number: int) -> None:
        """Make changes depend on the number of the proposal alone."""
        self._random = random.Random(f"{self._seed}-{number}")

    def remember(self, allocation: Allocation) -> None:
        """Never propose this allocation (again)."""
        self._seen.add(allocation)

    def changed(self, allocation: Allocation) -> Allocation:
        """Return an allocation that is new and fits."""
        fitted = self._fit(allocation)
        attempts = 0
        while fitted in self._seen and attempts < ATTEMPTS * len(allocation.choices):
            unit = self._random.choice(self._space.units)
            changed = dict.fromkeys(unit, self._space.draw(unit[0], self._random))
            fitted = self._fit(Allocation({**fitted.choices, **changed}))
            attempts += 1
        return fitted

    def _fit(self, allocation: Allocation) -> Allocation:
        if self._limit is None:
            return allocation
        return lowered(allocation, self._space, self._limit, self._random)


class FittingSampler(BaseSampler):
    """Another sampler's draws, changed as little as needed.

    Attributes:
        inner: The other sampler.
    """

    def __init__(self, inner: BaseSampler, space: Space, fitting: Fitting) -> None:
        """Wrap a sampler of a space."""
        self.inner, self._space, self._fitting = inner, space, fitting

    def infer_relative_search_space(
        self,
        study: Study,
        trial: FrozenTrial,
    ) -> dict[str, BaseDistribution]:
        """Return all of the space: the draw is checked as a whole."""
        return distributions(self._space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return one new allocation that fits."""
        inner_space = self.inner.infer_relative_search_space(study, trial)
        params = self.inner.sample_relative(study, trial, inner_space)
        for name, distribution in search_space.items():
            if name not in params:
                params[name] = self.inner.sample_independent(study, trial, name, distribution)
        allocation = self._fitting.changed(from_params(params, self._space))
        return to_params(allocation, self._space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the inner sampler's draw."""
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tell the inner sampler."""
        self.inner.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Tell the inner sampler."""
        self.inner.after_trial(study, trial, state, values)
