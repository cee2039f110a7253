"""The searchers by name: our own, and Optuna's samplers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from search_spaces.spaces import Space


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a searcher is made for.

    Attributes:
        space: What may be proposed.
        rungs: Steps at which trials report, ascending.
        budget: Trials of the search.
        seed: Of all draws.
        max_memory_bytes: Limit on the deployed model; None for none.
    """

    space: Space
    rungs: tuple[int, ...]
    budget: int
    seed: int
    max_memory_bytes: int | None = None

    def seed_of(self, number: int) -> int:
        """Return the seed of one proposal, which no proposal of another study's seed shares."""
        return int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])


def _tpe(setting: Setting, number: int) -> BaseSampler:
    # Without `multivariate` it draws each parameter by itself, where there are two objectives. All
    # trials have all parameters, so that `group` would make one group of them.
    return TPESampler(seed=setting.seed_of(number), multivariate=True, constant_liar=True)


def _nsga2(setting: Setting, number: int) -> BaseSampler:
    # The default population of 50 would spend a usual budget on random draws.
    population = max(4, setting.budget // 5)
    return NSGAIISampler(seed=setting.seed_of(number), population_size=population)


def _gp(setting: Setting, number: int) -> BaseSampler:
    return GPSampler(seed=setting.seed_of(number))


def _random(setting: Setting, number: int) -> BaseSampler:
    return RandomSampler(seed=setting.seed_of(number))


# Each is given the number of the proposal that it is made for.
SAMPLERS: Mapping[str, Callable[[Setting, int], BaseSampler]] = {
    "tpe": _tpe,
    "nsga2": _nsga2,
    "gp": _gp,
    "random": _random,
}
# It proposes nothing before the visibility table was measured.
OWN = "alrq"
SEARCHERS = (OWN, *SAMPLERS)
