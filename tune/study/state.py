"""The state of a study, made from its events and from nothing else."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, product
from operator import attrgetter
from typing import Literal, get_args

from alrq_core.records import TestScore, TrialReport
from search_spaces.allocation import Allocation, decode
from tune.search.front import front
from tune.search.tried import Tried
from tune.study.events import (
    Completed,
    Event,
    Failed,
    Paused,
    Planned,
    Progressed,
    Promoted,
    Proposed,
    Realised,
    Reported,
    Role,
    Started,
    Stopped,
    Tested,
)

# Roles of what a searcher proposed.
SEARCHED: frozenset[Role] = frozenset({"screen", "search"})
Status = Literal["running", "paused", "stopped", "failed", "completed"]
ROLES: tuple[Role, ...] = get_args(Role)
STATUSES: tuple[Status, ...] = get_args(Status)
UNENDED: tuple[Status, ...] = ("running", "paused")


@dataclass
class TrialState:
    """All that is known of one trial.

    Attributes:
        reports: One a rung, in order.
        status: `running` until an end was logged, also after a crash.
        reason: Why it failed.
        promoted_step: Of the rung from which rules that pause others last let it go on; or -1.
        trainable_parameters: From its receipt, once completed.
        realised: With AdaLoRA, the allocation that it ended with; its bytes are then known too.
        reference, labels: See `Proposed`.
        number: Of proposals before it.
    """

    id: str
    role: Role
    origin: str
    seed: int
    allocation: Allocation
    memory_bytes: int
    reports: list[TrialReport] = field(default_factory=list)
    status: Status = "running"
    reason: str | None = None
    promoted_step: int = -1
    test: TestScore | None = None
    trainable_parameters: int | None = None
    realised: Allocation | None = None
    reference: str | None = None
    labels: bool = False
    number: int = 0

    @property
    def final(self) -> Allocation:
        """The allocation that the trial ended with, or as yet should have."""
        return self.realised or self.allocation

    @property
    def source(self) -> str:
        """Id of the trial that this one confirms: with a fixed configuration its own."""
        return self.origin if self.role == "confirm" else self.id

    @property
    def last(self) -> TrialReport | None:
        """The report of the highest rung."""
        return self.reports[-1] if self.reports else None

    @property
    def judged(self) -> TrialReport | None:
        """The report that the search goes by.

        Where trials start from a reference it is that of the start, which all of them have: what
        training adds is nearly the same for all, and which state is kept is chance besides. From
        nothing, it is that of the highest rung.
        """
        return self.reports[0] if self.reports and self.reference is not None else self.last

    @property
    def train_seconds(self) -> float:
        """Seconds of training, at all rungs together."""
        return sum(report.train_seconds for report in self.reports)

    @property
    def comparable(self) -> bool:
        """Whether it may be on the front: judged at the same fidelity as others."""
        known = self.status == "completed" if self.reference is None else self.status != "failed"
        return known and self.judged is not None

    @property
    def searched(self) -> bool:
        """Whether a searcher proposed it, and is told of it."""
        return self.role in SEARCHED

    @property
    def tried(self) -> Tried:
        """What the search knows of it."""
        judged, status = self.judged, self.status
        ended = None if status == "running" or status == "paused" else status
        if judged is not None and self.reference is not None:
            # Whatever comes of it: the search has got what it asked for.
            ended = "completed"
        return Tried(
            id=self.id,
            allocation=self.allocation,
            memory_bytes=self.memory_bytes,
            ended=ended,
            rungs=len(self.reports),
            step=judged.step if judged else None,
            objective=judged.objective if judged else None,
            reason=self.reason,
        )


@dataclass
class StudyState:
    """All trials of a study, by id, in the order of their proposals.

    What failed outside of the search is forgotten when a new run begins, which tries it again.

    Attributes:
        names: The target modules, to read encoded allocations with.
        trials: Trial id to trial.
        budgets: The budget of each run of the program on this study.
    """

    names: tuple[str, ...]
    trials: dict[str, TrialState] = field(default_factory=dict)
    budgets: list[int] = field(default_factory=list)
    # Trials by role and status: with ten thousand of them, no decision looks at all.
    _groups: dict[tuple[Role, Status], dict[str, TrialState]] = field(
        default_factory=lambda: defaultdict(dict), compare=False, repr=False
    )
    _proposed: int = field(default=0, compare=False, repr=False)

    def replay(self, events: Iterable[Event]) -> "StudyState":
        """Apply all events and return this state."""
        for event in events:
            self.apply(event)
        return self

    def apply(self, event: Event) -> None:
        """Take one event in."""
        if isinstance(event, Progressed | Planned):
            return
        if isinstance(event, Started):
            self.budgets.append(event.budget)
            # Whatever it was may be mended by now. Of the search, others stand for what failed.
            for trial in self.with_status("failed"):
                if trial.role not in SEARCHED:
                    del self.trials[trial.id], self._groups[trial.role, "failed"][trial.id]
            return
        if isinstance(event, Proposed):
            self.add(
                TrialState(
                    id=event.trial,
                    role=event.role,
                    origin=event.origin,
                    seed=event.seed,
                    allocation=decode(event.allocation, self.names),
                    memory_bytes=event.memory_bytes,
                    reference=event.reference,
                    labels=event.labels,
                )
            )
            return
        trial = self.trials[event.trial]
        if isinstance(event, Reported):
            trial.reports.append(event.report)
        elif isinstance(event, Tested):
            trial.test = event.score
        elif isinstance(event, Realised):
            trial.memory_bytes = event.memory_bytes
            trial.trainable_parameters = event.trainable_parameters
            if event.allocation is not None:
                trial.realised = decode(event.allocation, self.names)
        else:
            del self._groups[trial.role, trial.status][trial.id]
            _change_status(trial, event)
            self._groups[trial.role, trial.status][trial.id] = trial

    def add(self, trial: TrialState) -> None:
        """Take a trial in, as the newest."""
        trial.number = self._proposed
        self._proposed += 1
        self.trials[trial.id] = trial
        self._groups[trial.role, trial.status][trial.id] = trial

    def of_role(self, role: Role) -> list[TrialState]:
        """Return the trials of one role, in order."""
        return _in_order(self._groups[role, status] for status in STATUSES)

    def with_status(self, status: Status) -> list[TrialState]:
        """Return the trials of one status, in order."""
        return _in_order(self._groups[role, status] for role in ROLES)

    def count(self, roles: Iterable[Role] = ROLES, statuses: Iterable[Status] = STATUSES) -> int:
        """Return how many trials have one of these roles and one of these statuses."""
        return sum(len(self._groups[pair]) for pair in product(roles, statuses))

    def confirmed_runs(self) -> list[TrialState]:
        """Return the trials that were scored on the test split, in order."""
        done = self.with_status("completed")
        return [trial for trial in done if trial.test is not None]

    def front(self, expected: Mapping[str, float] | None = None) -> list[TrialState]:
        """Return the front of the search, of trials that are judged at equal fidelity, from the
        smallest to the largest.

        Args:
            expected: Trial id to the objective that counts, instead of the one observed.
        """
        done = [trial for trial in self.of_role("search") if trial.comparable]
        objectives = {t.id: t.judged.objective for t in done if t.judged is not None}
        objectives |= dict(expected or {})
        points = [(objectives[trial.id], float(trial.memory_bytes)) for trial in done]
        return [done[index] for index in front(points)]


def _in_order(groups: Iterable[Mapping[str, TrialState]]) -> list[TrialState]:
    return sorted(chain.from_iterable(g.values() for g in groups), key=attrgetter("number"))


def _change_status(trial: TrialState, event: Event) -> None:
    if isinstance(event, Paused):
        trial.status = "paused"
    elif isinstance(event, Promoted):
        trial.status = "running"
        trial.promoted_step = trial.reports[event.rung].step
    elif isinstance(event, Stopped):
        trial.status = "stopped"
    elif isinstance(event, Failed):
        trial.status, trial.reason = "failed", event.reason
    elif isinstance(event, Completed):
        trial.status = "completed"
