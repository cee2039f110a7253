"""Proposes allocations by the name of a searcher, also in a study that was interrupted."""

from collections.abc import Mapping
from pathlib import Path

from optuna.samplers import BaseSampler

from alrq_core.sensitivity.table import VisibilityTable, flat_table
from search_spaces.allocation import Allocation
from search_spaces.costs import memory_bytes
from tune.search.budget import BudgetSolver, space_choices
from tune.search.constrain import Fitting, FittingSampler
from tune.search.journal import Journal
from tune.search.parameters import from_params
from tune.search.searchers import OWN, SAMPLERS, Setting
from tune.search.thompson import ThompsonSearch
from tune.search.tried import Tried


class Proposer:
    """What a study asks for allocations, and tells how they went."""

    def __init__(
        self, setting: Setting, searcher: str, folder: Path, table: VisibilityTable | None = None
    ) -> None:
        """Start with nothing tried.

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
        self._best: dict[int, Allocation] = {}
        self._tried: dict[str, Tried] = {}
        self._own: ThompsonSearch | None = None
        self._expected: dict[str, float] | None = None
        self._fitting = Fitting(setting.space, setting.max_memory_bytes, setting.seed)
        self._sampler: FittingSampler | None = None
        if self._searcher != OWN:
            self._sampler = FittingSampler(self._make(0), setting.space, self._fitting)
        objective = "divergence" if setting.rungs[0] == 0 else "validation loss"
        self._journal = Journal(folder, setting.space, self._sampler, objective)

    def use_table(self, table: VisibilityTable) -> None:
        """Propose by this table from now on."""
        self._table, self._own, self._expected, self._best = table, None, None, {}

    def predicted(self, allocation: Allocation) -> float:
        """Return the damage that the table predicts; of no meaning where none was measured."""
        return 0.0 if self._table is None else self._table.predict(allocation)

    def tables_best(self, limit_bytes: int) -> Allocation | None:
        """Return the allocation of at most these bytes that the table alone names; None where no
        table was measured.
        """
        if self._table is None:
            return None
        if limit_bytes not in self._best:
            space = self._space
            solver = BudgetSolver(space.inventory, space_choices(space), space.groups)
            values = solver.values(self._table.damage)
            self._best[limit_bytes] = solver.solve(values, limit_bytes)
        return self._best[limit_bytes]

    def propose(self, trial_id: str) -> Allocation:
        """Return the next allocation, which counts as running from now on."""
        number = len(self._journal.numbers)
        self._fitting.start(number)
        if self._sampler is None:
            allocation = self._fitting.changed(self._search().propose(number))
            size = memory_bytes(allocation, self._space.inventory)
            self.adopt(Tried(id=trial_id, allocation=allocation, memory_bytes=size))
            return allocation
        # A new one each time: a resumed study goes on as if never interrupted.
        self._sampler.inner = self._make(number)
        allocation = from_params(self._journal.ask(trial_id).params, self._space)
        self._fitting.remember(allocation)
        return allocation

    def adopt(self, trial: Tried) -> None:
        """Take in a trial that was proposed elsewhere or before, as running."""
        self._journal.add(trial, self._sampler and self._sampler.inner)
        self._fitting.remember(trial.allocation)
        # What has become of it is told when it was.
        self._learn(
            Tried(id=trial.id, allocation=trial.allocation, memory_bytes=trial.memory_bytes)
        )

    def tell(self, trial: Tried) -> None:
        """Take in which rung a trial reached, and how it ended if it did."""
        self._journal.tell(trial)
        self._learn(trial)

    def expected_losses(self) -> Mapping[str, float]:
        """Return the objective that the searcher's model expects of each trial that is judged at
        full fidelity, by id; nothing where it has no model.
        """
        if self._sampler is not None:
            return {}
        if self._expected is None:
            self._expected = self._search().expected_losses()
        return self._expected

    def _learn(self, trial: Tried) -> None:
        if self._sampler is None:
            self._tried[trial.id], self._expected = trial, None
            if self._own is not None:
                self._own.tell(trial)

    def _search(self) -> ThompsonSearch:
        """Return our own search, which begins when its table is known."""
        if self._own is None:
            setting = self._setting
            self._own = ThompsonSearch(
                setting.space,
                self._table or flat_table(setting.space),
                setting.rungs,
                setting.max_memory_bytes,
                setting.seed,
            )
            for trial in self._tried.values():
                self._own.tell(trial)
        return self._own

    def _make(self, number: int) -> BaseSampler:
        """Return the sampler of one proposal."""
        return SAMPLERS[self._searcher](self._setting, number)
