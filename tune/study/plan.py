"""What a study runs next: fixed configurations, the search, the confirmation of its best."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from alrq_core.sensitivity.measure import warm_allocation
from search_spaces.allocation import Allocation
from search_spaces.costs import memory_bytes
from search_spaces.fixed import BASELINES, fixed_allocation, unavailable
from search_spaces.spaces import Space
from tune.search.proposer import Proposer
from tune.search.searchers import NEED_TABLE
from tune.study.controls import controls
from tune.study.events import Proposed
from tune.study.finalists import finalists, smallest_found
from tune.study.state import StudyState, TrialState

CONFIRM_SEEDS = 3
# Id of the trial that measures the visibility table.
TABLE = "visibility"


@dataclass
class Plan:
    """Chooses the next trial of a study from its state.

    Attributes:
        space: Of the search.
        state: Kept up to date by the study.
        proposer: Optuna's side.
        budget: Trials of the search.
        anchors: Uniform allocations that are tried first, at most.
        seed: Of every trial of the search.
        max_memory_bytes: Limit on proposals.
        deadline: Time, as of `time.monotonic`, after which the search proposes nothing.
        searcher: Its name, for the log.
    """

    space: Space
    state: StudyState
    proposer: Proposer
    budget: int
    anchors: int
    seed: int
    max_memory_bytes: int | None
    deadline: float | None
    searcher: str

    def next(self) -> Proposed | None:
        """Return the next trial; None while it depends on running ones, or at the end."""
        first = self._table() or self._baseline() or self._search()
        return first or self._control() or self._confirmation()

    @property
    def search_closed(self) -> bool:
        """Whether no more trials of the search will be proposed."""
        return self.late or len(self.state.of_role("search")) >= self.search_size

    @property
    def late(self) -> bool:
        """Whether the time of the search is over."""
        return self.deadline is not None and time.monotonic() > self.deadline

    @property
    def search_size(self) -> int:
        """Trials of the search: the budget, and none in a fixed space."""
        return 0 if self.space.fixed else self.budget

    @property
    def finished(self) -> bool:
        """Whether nothing runs and nothing is left to run. Proposes nothing."""
        if self.state.with_status("running") or self.state.with_status("paused"):
            return False
        if not self.search_closed:
            return False
        return not (self._baseline() or self._control() or self._confirmation())

    def finalists(self) -> list[TrialState]:
        """Return the trials to confirm: see `finalists`."""
        return finalists(self.state, self.proposer.expected_losses(), self.budget)

    def _table(self) -> Proposed | None:
        """Return the trial that measures the visibility table: it goes first, since the search
        waits for it.
        """
        if self.search_closed or self.searcher not in NEED_TABLE or TABLE in self.state.trials:
            return None
        return self._proposed(TABLE, "table", "table", self.seed, warm_allocation(self.space))

    def _baseline(self) -> Proposed | None:
        for name, allocation in baselines(self.space).items():
            if name not in self.state.trials:
                # On the first of the fresh seeds: nothing chose it, so it needs no other for that.
                return self._proposed(name, "baseline", "fixed", self.seed + 1, allocation)
        return None

    def _search(self) -> Proposed | None:
        table = self.state.trials.get(TABLE)
        if self.search_closed or (table is not None and table.status == "running"):
            return None
        number = len(self.state.of_role("search"))
        trial = f"t{number + 1:03d}"
        anchors = self.space.anchors(self.anchors, self.max_memory_bytes)
        if number < len(anchors):
            return self._proposed(trial, "search", "anchor", self.seed, anchors[number])
        allocation = self.proposer.propose(trial)
        return self._proposed(trial, "search", self.searcher, self.seed, allocation)

    def _control(self) -> Proposed | None:
        """Return an allocation of the smallest finalist's bytes that no search has found."""
        if not self.search_closed or self._unended_search():
            return None
        chosen = self.finalists()
        smallest = smallest_found(chosen)
        if smallest is None:
            return None
        for name, allocation in controls(self.space, smallest, self.seed).items():
            # A finalist that is uniform itself needs no control of that kind.
            known = allocation in [t.allocation for t in chosen if t.role == "search"]
            if name not in self.state.trials and not known:
                return self._proposed(name, "control", smallest.id, self.seed + 1, allocation)
        return None

    def _confirmation(self) -> Proposed | None:
        if not self.search_closed:
            return None
        sources = self.finalists()
        if self._unended_search():
            # Who the others are isn't known yet.
            sources = [source for source in sources if source.role == "baseline"]
        smallest = smallest_found(sources)
        if smallest is not None:
            known = self.state.of_role("control")
            sources += [t for t in known if t.status == "completed" and t.origin == smallest.id]
        for repeat in range(CONFIRM_SEEDS):
            for source in sources:
                if repeat == 0 and source.test is not None:
                    continue
                trial = f"{source.id}-s{repeat + 1}"
                if trial not in self.state.trials:
                    seed = self.seed + 1 + repeat
                    return self._proposed(trial, "confirm", source.id, seed, source.allocation)
        return None

    def _unended_search(self) -> bool:
        """Tell whether finalists may still change."""
        unended = [*self.state.with_status("running"), *self.state.with_status("paused")]
        return any(trial.role in ("baseline", "search") for trial in unended)

    def _proposed(
        self, trial: str, role: str, origin: str, seed: int, allocation: Allocation
    ) -> Proposed:
        return Proposed(
            trial=trial,
            role=role,  # type: ignore[arg-type]
            origin=origin,
            seed=seed,
            allocation=allocation.encode(),
            memory_bytes=memory_bytes(allocation, self.space.inventory),
        )


def baselines(space: Space) -> Mapping[str, Allocation]:
    """Return the fixed configurations that a study runs, as far as its backend has them."""
    if space.fixed:
        return space.points
    inventory, formats = space.inventory, space.formats
    return {
        name: fixed_allocation(name, inventory, formats)
        for name in BASELINES
        if unavailable(name, inventory, formats) is None
    }
