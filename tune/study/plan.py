"""What a study runs next: fixed configurations, the search, the confirmation of its best."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from search_spaces.allocation import Allocation
from search_spaces.costs import memory_bytes
from search_spaces.fixed import BASELINES, fixed_allocation, unavailable
from search_spaces.spaces import Space
from tune.search.proposer import Proposer
from tune.search.searchers import NEED_TABLE
from tune.study.controls import Control, controls, longer
from tune.study.events import Proposed, Role
from tune.study.finalists import REFERENCE_TRIAL, compared_finalist, finalists
from tune.study.state import StudyState, TrialState

# Fresh seeds of what learns the task from nothing, the fewest of which anything is recommended, and
# of what starts from a reference, and of it: they cost no more.
CONFIRM_SEEDS, START_SEEDS = 3, 5
DEFAULT_REFERENCE = "B-FP"


@dataclass
class Plan:
    """Chooses the next trial of a study from its state.

    Attributes:
        space: Of the search.
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
        first = self._reference() or self._baseline() or self._search()
        return first or self._control() or self._confirmation()

    @property
    def search_closed(self) -> bool:
        """Whether no more trials of the search will be proposed."""
        return self.late or self._without_reference or self._tried("search") >= self.search_size

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

    @property
    def _without_reference(self) -> bool:
        """Whether what all trials would start from has failed."""
        trial = self.state.trials.get(REFERENCE_TRIAL)
        return self.reference is not None and trial is not None and trial.status == "failed"

    def finalists(self) -> list[TrialState]:
        """Return the trials to confirm: see `finalists`."""
        return finalists(self.state, self.proposer.expected_losses(), self.budget)

    def _tried(self, role: Role) -> int:
        return len(self.state.of_role(role))

    def _reference(self) -> Proposed | None:
        """Return the trial that the search waits for: it starts from it, and by its table."""
        needed = self.reference is not None or self.searcher in NEED_TABLE
        if self.search_closed or not needed or REFERENCE_TRIAL in self.state.trials:
            return None
        name = self.reference or DEFAULT_REFERENCE
        return self._proposed(
            REFERENCE_TRIAL, "reference", name, self.seed, _fixed(name, self.space)
        )

    def _baseline(self) -> Proposed | None:
        for name, allocation in baselines(self.space).items():
            if name not in self.state.trials:
                # On the first of the fresh seeds: nothing chose it, so it needs no other for that.
                return self._proposed(name, "baseline", "fixed", self.seed + 1, allocation)
        return None

    def _search(self) -> Proposed | None:
        reference = self.state.trials.get(REFERENCE_TRIAL)
        if self.search_closed or (reference is not None and reference.status == "running"):
            return None
        role: Role = "screen" if self._tried("screen") < self.screen else "search"
        number = self._tried(role)
        trial = f"{'s' if role == 'screen' else 't'}{number + 1:03d}"
        start = None if self.reference is None else REFERENCE_TRIAL
        anchors = self.space.anchors(self.anchors, self.max_memory_bytes)
        origin = self.searcher
        if role == "search" and number < len(anchors):
            origin, allocation = "anchor", anchors[number]
        else:
            allocation = self.proposer.propose(trial)
        return self._proposed(trial, role, origin, self.seed, allocation, start)

    def _control(self) -> Proposed | None:
        """Return what a finalist is compared to, for the first of the fresh seeds."""
        if not self.search_closed or self._unended_search():
            return None
        for control in self._controls():
            start = self._start(0) if control.started else None
            if control.id not in self.state.trials and self._ready(start):
                return self._proposed(
                    control.id,
                    "control",
                    control.origin,
                    self.seed + 1,
                    control.allocation,
                    start,
                    control.labels,
                )
        return None

    def _controls(self) -> list[Control]:
        found = compared_finalist(self.state, self.proposer.expected_losses())
        if found is None:
            return []
        best = self.proposer.tables_best(found.memory_bytes)
        every = controls(self.space, found, best, self.seed)
        # Where the finalist is uniform itself, or the table's best, it needs no such control.
        made = [c for c in every if not c.started or c.allocation != found.allocation]
        if self.reference is not None:
            made.append(longer(self.reference, _fixed(self.reference, self.space)))
        return made

    def _confirmation(self) -> Proposed | None:
        waiting = self.state.trials.get(REFERENCE_TRIAL)
        if not self.search_closed and (waiting is None or waiting.status != "running"):
            return None
        sources = self.finalists()
        if not self.search_closed or self._unended_search():
            # Who the others are isn't known yet.
            sources = [source for source in sources if source.role == "baseline"]
        else:
            wanted = {control.id for control in self._controls()}
            known = self.state.of_role("control")
            sources += [t for t in known if t.status == "completed" and t.id in wanted]
        for repeat in range(START_SEEDS):
            for source in sources:
                started = source.reference is not None
                if repeat >= self._seeds(source) or (repeat == 0 and source.test is not None):
                    continue
                trial, start = f"{source.id}-s{repeat + 1}", self._start(repeat)
                if trial not in self.state.trials and (not started or self._ready(start)):
                    return self._proposed(
                        trial,
                        "confirm",
                        source.id,
                        self.seed + 1 + repeat,
                        source.allocation,
                        start if started else None,
                        source.labels,
                    )
        return None

    def _seeds(self, source: TrialState) -> int:
        started = source.reference is not None or source.id == self.reference
        return START_SEEDS if started else CONFIRM_SEEDS

    def _start(self, repeat: int) -> str | None:
        """Return the trial that is the reference of a fresh seed."""
        if self.reference is None or repeat == 0:
            return self.reference
        return f"{self.reference}-s{repeat + 1}"

    def _ready(self, start: str | None) -> bool:
        """Tell whether what a trial starts from is there; what fails leaves its seed out."""
        if start is None:
            return True
        return start in self.state.trials and self.state.trials[start].status == "completed"

    def _unended_search(self) -> bool:
        """Tell whether finalists may still change."""
        unended = [*self.state.with_status("running"), *self.state.with_status("paused")]
        return any(trial.role == "baseline" or trial.searched for trial in unended)

    def _proposed(
        self,
        trial: str,
        role: Role,
        origin: str,
        seed: int,
        allocation: Allocation,
        start: str | None = None,
        labels: bool = False,
    ) -> Proposed:
        return Proposed(
            trial=trial,
            role=role,
            origin=origin,
            seed=seed,
            allocation=allocation.encode(),
            memory_bytes=memory_bytes(allocation, self.space.inventory),
            reference=start,
            labels=labels,
        )


def _fixed(name: str, space: Space) -> Allocation:
    return fixed_allocation(name, space.inventory, space.formats)


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
