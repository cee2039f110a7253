"""What a study runs next: fixed configurations, the search, the confirmation of its best."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from search_spaces.allocation import Allocation
from search_spaces.fixed import fixed_allocation
from search_spaces.spaces import Space
from tune.search.proposer import Proposer
from tune.search.searchers import OWN
from tune.study.confirming import Confirmation, Proposal, proposed
from tune.study.events import Proposed, Role
from tune.study.finalists import REFERENCE_TRIAL
from tune.study.state import SEARCHED, UNENDED, StudyState

# What all is compared to where it fits in memory.
COMPARATOR = "B-FP"


@dataclass
class Plan:
    """Chooses the next trial of a study from its state.

    Attributes:
        space: Of the search.
        baselines: Fixed configurations that are trained as they are.
        state: Kept up to date by the study.
        proposer: Optuna's side.
        budget: Trials of the search.
        screen: Allocations that are scored beside them before any step.
        anchors: Uniform allocations that are tried first, at most.
        seed: Of every trial of the search.
        max_memory_bytes: Limit on proposals.
        deadline: Time, as of `time.monotonic`, after which the search proposes nothing.
        searcher: Its name, for the log.
        reference: The fixed configuration that trials start from; None to start from nothing.
    """

    space: Space
    baselines: Mapping[str, Allocation]
    state: StudyState
    proposer: Proposer
    budget: int
    screen: int
    anchors: int
    seed: int
    max_memory_bytes: int | None
    deadline: float | None
    searcher: str
    reference: str | None

    def next(self) -> Proposed | None:
        """Return the next trial; None while it depends on running ones, or at the end."""
        return self._reference() or self._baseline() or self._search() or self._confirmation()

    @property
    def search_closed(self) -> bool:
        """Whether no more trials of the search will be proposed."""
        return self.late or self._without_reference or self._tried("search") >= self.search_size

    @property
    def search_ended(self) -> bool:
        """Whether the search, or all of a fixed space, is over: finalists can no longer change."""
        if not self.search_closed or self.state.count({"baseline", *SEARCHED}, UNENDED):
            return False
        return self._baseline() is None

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
        if self.state.count(statuses=UNENDED):
            return False
        if not self.search_closed:
            return False
        return not (self._baseline() or self._confirmation())

    @property
    def _without_reference(self) -> bool:
        """Whether what all trials would start from has failed."""
        trial = self.state.trials.get(REFERENCE_TRIAL)
        return self.reference is not None and trial is not None and trial.status == "failed"

    @property
    def confirmation(self) -> Confirmation:
        """What follows the search."""
        return Confirmation(
            self.space, self.state, self.proposer, self.budget, self.seed, self.reference
        )

    def _confirmation(self) -> Proposed | None:
        """Return what confirms the search's best; before its end, or while it waits for its
        reference, what is confirmed whatever it finds.
        """
        reference = self.state.trials.get(REFERENCE_TRIAL)
        if self.search_ended:
            return self.confirmation.next()
        if self.search_closed or (reference is not None and reference.status == "running"):
            return self.confirmation.baselines()
        return None

    def _tried(self, role: Role) -> int:
        return self.state.count([role])

    def _reference(self) -> Proposed | None:
        """Return the trial that the search waits for: it starts from it, and by its table."""
        needed = self.reference is not None or self.searcher == OWN
        if self.search_closed or not needed or REFERENCE_TRIAL in self.state.trials:
            return None
        name = self.reference or next(iter(self.baselines))
        why = Proposal(REFERENCE_TRIAL, "reference", name, self.seed)
        allocation = fixed_allocation(name, self.space.inventory, self.space.formats)
        return proposed(self.space, why, allocation)

    def _baseline(self) -> Proposed | None:
        for name, allocation in self.baselines.items():
            if name not in self.state.trials:
                # On the first of the fresh seeds: nothing chose it, so it needs no other for that.
                why = Proposal(name, "baseline", "fixed", self.seed + 1)
                return proposed(self.space, why, allocation)
        return None

    def _search(self) -> Proposed | None:
        reference = self.state.trials.get(REFERENCE_TRIAL)
        if self.search_closed or (reference is not None and reference.status == "running"):
            return None
        role: Role = "screen" if self._tried("screen") < self.screen else "search"
        number = self._tried(role)
        trial = f"{'s' if role == 'screen' else 't'}{number + 1:03d}"
        start = None if self.reference is None else REFERENCE_TRIAL
        origin, allocation = "anchor", self._anchor(number) if role == "search" else None
        if allocation is None:
            origin, allocation = self.searcher, self.proposer.propose(trial)
        return proposed(self.space, Proposal(trial, role, origin, self.seed), allocation, start)

    def _anchor(self, number: int) -> Allocation | None:
        if number >= self.anchors:
            return None
        found = self.space.anchors(self.anchors, self.max_memory_bytes)
        return found[number] if number < len(found) else None
