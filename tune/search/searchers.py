"""Proposes allocations with Optuna, which is told the truth about every trial and its rung."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import (
    BaseGASampler,
    BaseSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from alrq_core.sensitivity.table import VisibilityTable, flat_table
from search_spaces.allocation import Allocation
from search_spaces.spaces import Space
from tune.search.constrain import FittingSampler
from tune.search.parameters import distributions, from_params, to_params
from tune.search.thompson import ThompsonSampler
from tune.study.events import Ended, Event, Proposed
from tune.study.state import StudyState
from tune.study.state import TrialState as StudyTrial

STUDY_NAME = "alrq"
STORAGE_NAME = "optuna.journal"

optuna.logging.set_verbosity(optuna.logging.ERROR)


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


def _alrq(setting: Setting, table: VisibilityTable | None, number: int) -> BaseSampler:
    return ThompsonSampler(
        setting.space,
        table or flat_table(setting.space),
        setting.rungs,
        setting.max_memory_bytes,
        setting.seed,
    )


def _tpe(setting: Setting, table: VisibilityTable | None, number: int) -> BaseSampler:
    return TPESampler(seed=setting.seed + number)


def _nsga2(setting: Setting, table: VisibilityTable | None, number: int) -> BaseSampler:
    # The default population of 50 would spend a usual budget on random draws.
    population = max(4, setting.budget // 5)
    return NSGAIISampler(seed=setting.seed + number, population_size=population)


def _gp(setting: Setting, table: VisibilityTable | None, number: int) -> BaseSampler:
    return GPSampler(seed=setting.seed + number)


def _random(setting: Setting, table: VisibilityTable | None, number: int) -> BaseSampler:
    return RandomSampler(seed=setting.seed + number)


# Each is given the number of the proposal that it is made for.
SEARCHERS: Mapping[str, Callable[[Setting, VisibilityTable | None, int], BaseSampler]] = {
    "alrq": _alrq,
    "tpe": _tpe,
    "nsga2": _nsga2,
    "gp": _gp,
    "random": _random,
}
# They propose nothing before the visibility table was measured.
NEED_TABLE = frozenset({"alrq"})


class Proposer:
    """Optuna's view of a study, rebuilt from the log and kept in a file for its dashboard.

    Optuna counts a stopped trial as pruned, without values, and a failed one as failed: only
    trials at full fidelity enter its front.
    """

    def __init__(
        self, setting: Setting, searcher: str, folder: Path, table: VisibilityTable | None = None
    ) -> None:
        """Start an empty Optuna study in `folder`, over what may be there.

        Args:
            setting: What the searcher is made for.
            searcher: Its name.
            folder: Of the study.
            table: Of the space, where it was measured.
        """
        self._setting, self._space = setting, setting.space
        # In a fixed space there is nothing to propose, and no table.
        self._searcher = "random" if setting.space.fixed else searcher
        self._table = table
        self._own: BaseSampler | None = None
        limit, seed = setting.max_memory_bytes, setting.seed
        self._sampler = FittingSampler(self._make(0), setting.space, limit, seed)
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

    def use_table(self, table: VisibilityTable) -> None:
        """Propose by this table from now on."""
        self._table, self._own = table, None

    def _make(self, number: int) -> BaseSampler:
        """Return the sampler of one proposal.

        Optuna's own get a new one each time: a resumed study goes on as if never interrupted.
        Ours draws by the number of the proposal, and what it has computed is worth keeping.
        """
        if self._searcher not in NEED_TABLE:
            return SEARCHERS[self._searcher](self._setting, None, number)
        if self._own is None:
            self._own = SEARCHERS[self._searcher](self._setting, self._table, number)
        return self._own

    def propose(self, trial_id: str) -> Allocation:
        """Return the next allocation, which Optuna knows as running from now on."""
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

    def expected_losses(self) -> dict[str, float]:
        """Return what the searcher's model expects of each completed trial at full fidelity, by id;
        nothing where it has no model.
        """
        if self._searcher not in NEED_TABLE:
            return {}
        sampler = self._make(len(self._numbers))
        assert isinstance(sampler, ThompsonSampler)
        expected = sampler.expected_losses(self._study.get_trials(deepcopy=False))
        ids = {number: trial for trial, number in self._numbers.items()}
        return {ids[number]: loss for number, loss in expected.items()}

    def replay(self, events: Iterable[Event], state: StudyState) -> None:
        """Take in the trials of an earlier run in the order in which they began and ended."""
        searched = {trial.id: trial for trial in state.of_role("search")}
        for event in events:
            if isinstance(event, Proposed) and event.trial in searched:
                self.adopt(searched[event.trial])
            elif isinstance(event, Ended) and event.trial in searched:
                self.tell(searched.pop(event.trial))
        for trial in searched.values():
            self.tell(trial)

    def tell(self, trial: StudyTrial) -> None:
        """Tell Optuna which rung a trial reached, and how it ended if it did."""
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
        elif trial.status == "failed":
            self._study.tell(number, state=TrialState.FAIL)
