"""What a study confirms with fresh seeds once its search is over, and what that is compared to."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from search_spaces.allocation import Allocation
from search_spaces.costs import memory_bytes
from search_spaces.fixed import fixed_allocation
from search_spaces.spaces import Space
from tune.search.proposer import Proposer
from tune.study.controls import Control, controls, longer
from tune.study.events import Planned, Proposed, Role
from tune.study.finalists import compared_finalist, finalists
from tune.study.state import StudyState, TrialState

# Fresh seeds of what learns the task from nothing, the fewest of which anything is recommended, and
# of what starts from a reference, and of it, which cost no more: five would be most of the time of
# a search of few trials.
CONFIRM_SEEDS, START_SEEDS = 3, 5
FEW_TRIALS = 20


@dataclass
class Confirmation:
    """Chooses the next trial that confirms something.

    Attributes:
        space: Of the search.
        state: Kept up to date by the study.
        proposer: Optuna's side.
        budget: Trials of the search.
        seed: Of every trial of the search; fresh ones follow.
        reference: The fixed configuration that trials start from; None to start from nothing.
    """

    space: Space
    state: StudyState
    proposer: Proposer
    budget: int
    seed: int
    reference: str | None

    def finalists(self, expected: Mapping[str, float] | None = None) -> list[TrialState]:
        """Return the trials to confirm, see `finalists`, by what the model expects of them."""
        if expected is None:
            expected = self.proposer.expected_losses()
        return finalists(self.state, expected, self.budget)

    def baselines(self) -> Proposed | None:
        """Return the next run of what is confirmed whatever the search finds."""
        return self._run([source for source in self.finalists() if source.role == "baseline"])

    def next(self) -> Proposed | None:
        """Return the next control or run, once all finalists are known."""
        wanted, expected = set(), self.proposer.expected_losses()
        for control in self._controls(expected):
            wanted.add(control.id)
            start = self._start(0) if control.started else None
            if control.id not in self.state.trials and self._ready(start):
                # On the first of the fresh seeds: nothing chose it, so it needs no other for that.
                return proposed(
                    self.space,
                    Proposal(control.id, "control", control.origin, self.seed + 1),
                    control.allocation,
                    start,
                    control.labels,
                )
        known = [t for t in self.state.of_role("control") if t.status == "completed"]
        return self._run([*self.finalists(expected), *(t for t in known if t.id in wanted)])

    def planned(self) -> Planned:
        """Return how many runs have not ended."""
        expected, runs = self.proposer.expected_losses(), Counter[bool]()
        for source in self.finalists(expected):
            first = 1 if source.test is None else 2
            names = [f"{source.id}-s{seed}" for seed in range(first, self._seeds(source) + 1)]
            runs[source.reference is not None] += sum(map(self._unended, names))
        for control in self._controls(expected):
            seeds = start_seeds(self.budget) if control.started else CONFIRM_SEEDS
            names = [control.id, *(f"{control.id}-s{seed}" for seed in range(2, seeds + 1))]
            runs[control.started] += sum(map(self._unended, names))
        return Planned(started=runs[True], plain=runs[False])

    def _unended(self, trial: str) -> bool:
        return trial not in self.state.trials or self.state.trials[trial].status == "running"

    def _controls(self, expected: Mapping[str, float]) -> Iterator[Control]:
        found = compared_finalist(self.state, expected)
        if found is None:
            return
        for control in controls(self.space, found, self.proposer, self.seed):
            # Where the finalist is uniform itself, or the table's best, it needs no such control.
            if not control.started or control.allocation != found.allocation:
                yield control
        if self.reference is not None:
            allocation = fixed_allocation(self.reference, self.space.inventory, self.space.formats)
            yield longer(self.reference, allocation)

    def _run(self, sources: Sequence[TrialState]) -> Proposed | None:
        """Return the next run of these trials with a fresh seed."""
        for repeat in range(start_seeds(self.budget)):
            for source in sources:
                started = source.reference is not None
                if repeat >= self._seeds(source) or (repeat == 0 and source.test is not None):
                    continue
                trial, start = f"{source.id}-s{repeat + 1}", self._start(repeat)
                if trial not in self.state.trials and (not started or self._ready(start)):
                    return proposed(
                        self.space,
                        Proposal(trial, "confirm", source.id, self.seed + 1 + repeat),
                        source.allocation,
                        start if started else None,
                        source.labels,
                    )
        return None

    def _seeds(self, source: TrialState) -> int:
        started = source.reference is not None or source.id == self.reference
        return start_seeds(self.budget) if started else CONFIRM_SEEDS

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


def start_seeds(budget: int) -> int:
    """Return the fresh seeds of what starts from a reference, after so many trials of a search."""
    return START_SEEDS if budget >= FEW_TRIALS else CONFIRM_SEEDS


@dataclass(frozen=True)
class Proposal:
    """Which trial is proposed, and why: see `Proposed`."""

    trial: str
    role: Role
    origin: str
    seed: int


def proposed(
    space: Space,
    why: Proposal,
    allocation: Allocation,
    start: str | None = None,
    labels: bool = False,
) -> Proposed:
    """Return the event that proposes a trial.

    Args:
        space: Whose inventory tells its bytes.
        why: The trial.
        allocation: Its bits and ranks.
        start: The trial that it starts from.
        labels: See `Proposed`.
    """
    return Proposed(
        trial=why.trial,
        role=why.role,
        origin=why.origin,
        seed=why.seed,
        allocation=allocation.encode(),
        memory_bytes=memory_bytes(allocation, space.inventory),
        reference=start,
        labels=labels,
    )
