"""Proposes allocations with Optuna, which is told the truth about every trial and its rung."""

import random
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import (
    BaseGASampler,
    BaseSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from search_spaces.allocation import Allocation, Choice
from search_spaces.costs import memory_bytes, module_bytes
from search_spaces.spaces import Space
from tune.events import Completed, Event, Failed, Proposed, Stopped
from tune.state import StudyState
from tune.state import TrialState as StudyTrial

ATTEMPTS = 20
STUDY_NAME = "alrq"
STORAGE_NAME = "optuna.journal"

optuna.logging.set_verbosity(optuna.logging.ERROR)


def _nsga2(seed: int, budget: int) -> BaseSampler:
    # The default population of 50 would spend a usual budget on random draws.
    return NSGAIISampler(seed=seed, population_size=max(4, budget // 5))


SEARCHERS: Mapping[str, Callable[[int, int], BaseSampler]] = {
    "tpe": lambda seed, _: TPESampler(seed=seed),
    "nsga2": _nsga2,
    "random": lambda seed, _: RandomSampler(seed=seed),
}


class FittingSampler(BaseSampler):
    """Another sampler's draws, changed as little as needed to be new and to fit in memory.

    Attributes:
        inner: The other sampler.
    """

    def __init__(
        self, inner: BaseSampler, space: Space, max_memory_bytes: int | None, seed: int
    ) -> None:
        """Wrap a sampler.

        Args:
            inner: Draws bits and ranks.
            space: What may be drawn.
            max_memory_bytes: Limit on the deployed model; None for none.
            seed: Of the changes.
        """
        self.inner = inner
        self._space = space
        self._limit = max_memory_bytes
        self._seed = seed
        self._random = random.Random(seed)
        self._seen: set[Allocation] = set()

    def start_draw(self, inner: BaseSampler, number: int) -> None:
        """Use another sampler, and changes that depend on the number of the draw alone."""
        self.inner = inner
        self._random = random.Random(f"{self._seed}-{number}")

    def remember(self, allocation: Allocation) -> None:
        """Never propose this allocation (again)."""
        self._seen.add(allocation)

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
        allocation = self._new_and_fitting(from_params(params, self._space))
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

    def _new_and_fitting(self, allocation: Allocation) -> Allocation:
        fitted = self._fit(allocation)
        attempts = 0
        while fitted in self._seen and attempts < ATTEMPTS * len(allocation.choices):
            name = self._random.choice(self._space.inventory.names)
            choice = self._space.draw(name, self._random)
            fitted = self._fit(Allocation({**fitted.choices, name: choice}))
            attempts += 1
        return fitted

    def _fit(self, allocation: Allocation) -> Allocation:
        """Lower bits and ranks of randomly chosen modules, a step each, until it fits."""
        inventory = self._space.inventory
        if self._limit is None:
            return allocation
        excess = memory_bytes(allocation, inventory) - self._limit
        choices = dict(allocation.choices)
        while excess > 0:
            steps = [
                (module, smaller)
                for module in inventory.modules
                for smaller in self._one_step_down(module.name, choices[module.name])
            ]
            module, smaller = self._random.choice(steps)
            excess -= module_bytes(module, choices[module.name]) - module_bytes(module, smaller)
            choices[module.name] = smaller
        return Allocation(choices)

    def _one_step_down(self, name: str, choice: Choice) -> list[Choice]:
        """Return the next smaller bits, rank and group size of a module, each by itself."""
        space, group_size = self._space, choice.group_size or self._space.group_sizes[name][0]
        bits = [value for value in space.bits[name] if value < choice.bits]
        ranks = [value for value in space.ranks[name] if value < choice.rank]
        wider = [value for value in space.group_sizes[name] if 0 < choice.group_size < value]
        down = []
        if bits:
            down.append(space.choice(name, bits[-1], choice.rank, group_size))
        if ranks:
            down.append(space.choice(name, choice.bits, ranks[-1], group_size))
        if wider:
            down.append(space.choice(name, choice.bits, choice.rank, wider[0]))
        return down


class Proposer:
    """Optuna's view of a study, rebuilt from the log and kept in a file for its dashboard.

    Optuna counts a stopped trial as pruned, without values, and a failed one as failed: only
    trials at full fidelity enter its front.
    """

    def __init__(
        self,
        space: Space,
        searcher: str,
        budget: int,
        seed: int,
        max_memory_bytes: int | None,
        folder: Path,
    ) -> None:
        """Start an empty Optuna study in `folder`, over what may be there."""
        self._space = space
        self._make = lambda number: SEARCHERS[searcher](seed + number, budget)
        self._sampler = FittingSampler(self._make(0), space, max_memory_bytes, seed)
        path = folder / STORAGE_NAME
        path.unlink(missing_ok=True)
        self._study = optuna.create_study(
            study_name=STUDY_NAME,
            storage=JournalStorage(JournalFileBackend(str(path))),
            sampler=self._sampler,
            directions=["minimize", "minimize"],
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.set_metric_names(["validation_loss", "memory_bytes"])
        self._numbers: dict[str, int] = {}

    def propose(self, trial_id: str) -> Allocation:
        """Return the next allocation, which Optuna knows as running from now on."""
        # A sampler of its own for each draw: a resumed study goes on as if never interrupted.
        number = len(self._numbers)
        self._sampler.start_draw(self._make(number), number)
        trial = self._study.ask(distributions(self._space))
        trial.set_user_attr("trial", trial_id)
        self._numbers[trial_id] = trial.number
        allocation = from_params(trial.params, self._space)
        self._sampler.remember(allocation)
        return allocation

    def adopt(self, trial: StudyTrial) -> None:
        """Take in a trial that was proposed elsewhere or before, as running."""
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=to_params(trial.allocation, self._space),
                distributions=distributions(self._space),
                user_attrs={"trial": trial.id},
            )
        )
        adopted = self._study.get_trials(deepcopy=False)[-1]
        self._numbers[trial.id] = adopted.number
        inner = self._sampler.inner
        if isinstance(inner, BaseGASampler):
            # It breeds from trials whose generation it noted, and notes their parents only once.
            generation = inner.get_trial_generation(self._study, adopted)
            inner.get_parent_population(self._study, generation)
        self._sampler.remember(trial.allocation)

    def replay(self, events: Iterable[Event], state: StudyState) -> None:
        """Take in the trials of an earlier run in the order in which they began and ended."""
        for event in events:
            if not isinstance(event, Proposed | Completed | Stopped | Failed):
                continue
            trial = state.trials[event.trial]
            if trial.role != "search":
                continue
            if isinstance(event, Proposed):
                self.adopt(trial)
            else:
                self.tell(trial)

    def tell(self, trial: StudyTrial) -> None:
        """Tell Optuna how a trial ended, and at which rung."""
        number = self._numbers[trial.id]
        frozen = self._study.get_trials(deepcopy=False)[number]
        storage = self._study._storage
        details: dict[str, Any] = {"memory_bytes": trial.memory_bytes, "rungs": len(trial.reports)}
        if trial.last is not None:
            details |= {"step": trial.last.step, "loss": trial.last.loss}
        if trial.reason is not None:
            details["reason"] = trial.reason
        for key, value in details.items():
            storage.set_trial_user_attr(frozen._trial_id, key, value)
        if trial.status == "completed" and trial.last is not None:
            self._study.tell(number, [trial.last.loss, float(trial.memory_bytes)])
        elif trial.status == "stopped":
            self._study.tell(number, state=TrialState.PRUNED)
        else:
            self._study.tell(number, state=TrialState.FAIL)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return Optuna's distributions: bits and rank of every module, and its group size where
    there are several.
    """
    found: dict[str, BaseDistribution] = {}
    for name in space.inventory.names:
        found[f"{name}.bits"] = CategoricalDistribution(space.bits[name])
        found[f"{name}.rank"] = CategoricalDistribution(space.ranks[name])
        if len(space.group_sizes[name]) > 1:
            found[f"{name}.group_size"] = CategoricalDistribution(space.group_sizes[name])
    return found


def to_params(allocation: Allocation, space: Space) -> dict[str, int]:
    """Return an allocation as Optuna's parameters.

    A format without groups gets the first group size, since it has to have one.
    """
    params = {}
    for name, choice in allocation.choices.items():
        params[f"{name}.bits"] = choice.bits
        params[f"{name}.rank"] = choice.rank
        sizes = space.group_sizes[name]
        if len(sizes) > 1:
            params[f"{name}.group_size"] = choice.group_size or sizes[0]
    return params


def from_params(params: Mapping[str, Any], space: Space) -> Allocation:
    """Return the allocation that Optuna's parameters stand for."""
    return Allocation(
        {
            name: space.choice(
                name,
                int(params[f"{name}.bits"]),
                int(params[f"{name}.rank"]),
                int(params.get(f"{name}.group_size", space.group_sizes[name][0])),
            )
            for name in space.inventory.names
        }
    )
