"""Proposes allocations by the name of a searcher, also in a study that was interrupted."""

from pathlib import Path

from optuna.samplers import BaseSampler

from alrq_core.sensitivity.table import VisibilityTable
from search_spaces.allocation import Allocation
from tune.search.budget import BudgetSolver, space_choices
from tune.search.constrain import FittingSampler
from tune.search.journal import Journal
from tune.search.parameters import from_params
from tune.search.searchers import NEED_TABLE, SEARCHERS, Setting
from tune.search.thompson import ThompsonSampler
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
        self._own: BaseSampler | None = None
        limit, seed = setting.max_memory_bytes, setting.seed
        self._sampler = FittingSampler(self._make(0), setting.space, limit, seed)
        self._journal = Journal(folder, setting.space, self._sampler)

    def use_table(self, table: VisibilityTable) -> None:
        """Propose by this table from now on."""
        self._table, self._own, self._best = table, None, {}

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
        self._sampler.start_draw(self._make(number), number)
        allocation = from_params(self._journal.ask(trial_id).params, self._space)
        self._sampler.remember(allocation)
        return allocation

    def adopt(self, trial: Tried) -> None:
        """Take in a trial that was proposed elsewhere or before, as running."""
        self._journal.add(trial, self._sampler.inner)
        self._sampler.remember(trial.allocation)

    def tell(self, trial: Tried) -> None:
        """Take in which rung a trial reached, and how it ended if it did."""
        self._journal.tell(trial)

    def expected_losses(self) -> dict[str, float]:
        """Return the objective that the searcher's model expects of each trial that is judged at
        full fidelity, by id; nothing where it has no model.
        """
        if self._searcher not in NEED_TABLE:
            return {}
        numbers = self._journal.numbers
        sampler = self._make(len(numbers))
        assert isinstance(sampler, ThompsonSampler)
        expected = sampler.expected_losses(self._journal.trials)
        ids = {number: trial for trial, number in numbers.items()}
        return {ids[number]: loss for number, loss in expected.items()}

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
