"""One study in the driver's process: writes every event, decides at every rung."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alrq_core.files import write_json
from alrq_core.recipe import Recipe
from alrq_core.records import Receipt, TestScore, TrialReport
from alrq_core.sensitivity.table import VisibilityTable
from tune.study.events import (
    Completed,
    Event,
    EventLog,
    Failed,
    Paused,
    Progressed,
    Promoted,
    Realised,
    Reported,
    Stopped,
    Tested,
    Work,
)
from tune.study.failures import Streak
from tune.study.finalists import REFERENCE_TRIAL
from tune.study.ladder import Ladder
from tune.study.plan import Plan
from tune.study.schedulers import RUNG_FACTOR, START_FACTOR, Scheduler, rungs_of
from tune.study.state import StudyState, TrialState

TABLE_FILE = "visibility.json"
# Times that a trial whose worker was lost begins anew.
WORKER_RESTARTS = 2
# Times that a study tells how far a piece of work is, from 0 on.
TOLD_PARTS = 10
# Whether a worker goes on with the trial that it has.
Decision = Literal["continue", "stop"]
Listener = Callable[[Event, StudyState], None]


@dataclass(frozen=True)
class Progress:
    """How far a worker is with what takes long: see `Progressed`."""

    work: Work
    made: int
    wanted: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a worker sends after each rung.

    Attributes:
        report: The rung's measurements; None if it never got there.
        receipt: What was really built; None if building failed.
        test: The score of a confirmed trial, with its last report.
        table: What was measured around the search's reference, with its report.
        progress: How far work is that takes long: see `Progressed`.
        error: Why the trial can't go on.
    """

    report: TrialReport | None = None
    receipt: Receipt | None = None
    test: TestScore | None = None
    table: VisibilityTable | None = None
    progress: Progress | None = None
    error: str | None = None


@dataclass
class Study:
    """The log, the state and the plan of one study, kept in step.

    Attributes:
        folder: Where everything is written.
        log: Events are appended here before they take effect.
        state: Made from the log.
        plan: What runs next.
        recipe: How trials are trained.
        scheduler: Decides at rungs.
        listeners: Told of every new event after it took effect.
    """

    folder: Path
    log: EventLog
    state: StudyState
    plan: Plan
    recipe: Recipe
    scheduler: Scheduler
    listeners: Sequence[Listener] = ()
    _orphans: list[str] = field(default_factory=list)
    _streak: Streak = field(default_factory=Streak)
    _lost: Counter[str] = field(default_factory=Counter)
    _told: dict[tuple[Work, str | None], int] = field(default_factory=dict)
    _planned: bool = False
    _ladder: Ladder = field(init=False)

    def __post_init__(self) -> None:
        # Proposed by an earlier run and never ended: they go first, from their checkpoints.
        self._orphans = [trial.id for trial in self.state.with_status("running")]
        started = self.plan.reference is not None
        factor = START_FACTOR if started else RUNG_FACTOR
        self._ladder = Ladder(self.scheduler, factor, capped=started and self.scheduler.pauses)
        for trial in self.state.of_role("search"):
            self._ladder.place(trial)

    def next_trial(self) -> TrialState | None:
        """Return the next trial to run, logged; None if none can be proposed now."""
        if self.halted is not None:
            return None
        if self._orphans:
            return self.state.trials[self._orphans.pop(0)]
        promoted = self._promoted()
        if promoted is not None:
            return promoted
        if not self._planned and self.plan.search_ended:
            self._planned = True
            self._record(self.plan.confirmation.planned())
        proposed = self.plan.next()
        if proposed is None:
            return None
        self._record(proposed)
        trial = self.state.trials[proposed.trial]
        if trial.searched and proposed.origin != self.plan.searcher:
            self.plan.proposer.adopt(trial.tried)
        return trial

    @property
    def finished(self) -> bool:
        """Whether nothing is left to propose or to run."""
        return not self._orphans and self.plan.finished

    @property
    def halted(self) -> str | None:
        """The reason for which trials fail one after another, so that none is run; or None."""
        return self._streak.reason

    def take(self, trial_id: str, outcome: Outcome) -> Decision:
        """Take in what a worker sent, log it, and decide whether the trial goes on.

        A repeated report changes nothing. In a halted study none goes on, and is resumed later.
        """
        decision = self._take(trial_id, outcome)
        return "stop" if self.halted is not None else decision

    def _take(self, trial_id: str, outcome: Outcome) -> Decision:
        trial = self.state.trials[trial_id]
        if trial.status != "running":
            return "stop"
        if outcome.progress is not None:
            self._tell_progress(trial_id, outcome.progress)
            return "continue"
        if outcome.receipt is not None:
            write_json(self.folder / f"receipts/{trial_id}.json", outcome.receipt.to_json())
        report = outcome.report
        known = max(trial.promoted_step, trial.last.step - 1 if trial.last else -1)
        if report is not None and report.step <= known:
            # From a checkpoint, and more of it follows.
            return "continue"
        if report is not None and not math.isfinite(report.loss):
            self.fail(trial_id, f"validation loss became {report.loss} at step {report.step}")
            return "stop"
        if report is not None and report.step not in {known.step for known in trial.reports}:
            rung = self._rungs(trial).index(report.step)
            self._record(Reported(trial=trial_id, rung=rung, report=report))
        if outcome.error is not None:
            self.fail(trial_id, outcome.error)
            return "stop"
        return self._decide(trial, outcome)

    def _tell_progress(self, trial_id: str, progress: Progress) -> None:
        whose = None if progress.work == "codes" else trial_id
        parts = TOLD_PARTS * progress.made // progress.wanted
        if parts > self._told.get((progress.work, whose), -1):
            self._told[progress.work, whose] = parts
            self._record(
                Progressed(
                    work=progress.work, made=progress.made, wanted=progress.wanted, trial=whose
                )
            )

    def _rungs(self, trial: TrialState) -> tuple[int, ...]:
        return rungs_of(self.recipe, trial.role, trial.reference is not None)

    def fail(self, trial_id: str, reason: str) -> None:
        """End a trial with its reason, unless it has ended."""
        trial = self.state.trials[trial_id]
        if trial.status == "running":
            self._record(Failed(trial=trial_id, reason=reason))
            self._tell(trial)

    def try_again(self, trial_id: str) -> bool:
        """Give a trial back whose worker was lost before it began; tell whether it is tried again.

        Not for ever: what keeps workers from starting may be the trial.
        """
        self._lost[trial_id] += 1
        again = self._lost[trial_id] <= WORKER_RESTARTS
        if again:
            self._orphans.append(trial_id)
        return again

    def _decide(self, trial: TrialState, outcome: Outcome) -> Decision:
        if trial.last is None:
            return "continue"
        rung = len(trial.reports) - 1
        if trial.role == "screen":
            self._record(Stopped(trial=trial.id, rung=rung))
            self._tell(trial)
            return "stop"
        if trial.last.step == self._rungs(trial)[-1]:
            self._complete(trial, outcome)
            return "stop"
        passing = self._ladder.passing(rung, closing=False) if trial.role == "search" else [trial]
        if any(other is trial for other in passing):
            if trial.role == "search" and self.scheduler.pauses:
                # Told again after a loss, it isn't judged by what came since.
                self._record(Promoted(trial=trial.id, rung=rung))
            self._tell(trial)
            return "continue"
        left = Paused if self.scheduler.pauses else Stopped
        self._record(left(trial=trial.id, rung=rung))
        self._tell(trial)
        return "stop"

    def _complete(self, trial: TrialState, outcome: Outcome) -> None:
        if outcome.table is not None:
            # A resumed study reads it from there.
            write_json(self.folder / TABLE_FILE, outcome.table.to_json())
            self.plan.proposer.use_table(outcome.table)
        # A killed study may have logged some of this: a trial that has not ended is told of again.
        if outcome.receipt is not None:
            realised = _realised(trial, outcome.receipt)
            known = trial.memory_bytes, trial.trainable_parameters
            if known != (realised.memory_bytes, realised.trainable_parameters):
                self._record(realised)
        if outcome.test is not None and trial.test is None:
            self._record(Tested(trial=trial.id, score=outcome.test))
        self._record(Completed(trial=trial.id))
        self._tell(trial)

    def _promoted(self) -> TrialState | None:
        """Return a paused trial that may go on by now, logged; the longest trained comes first.

        Once the search is over, and all that runs of it is at its end, no trial waits any longer.
        """
        if not self.state.count(statuses=["paused"]):
            return None
        closing = self.plan.search_closed and not self.state.count(["search"], ["running"])
        rungs = rungs_of(self.recipe, "search", self.plan.reference is not None)
        for rung in reversed(range(len(rungs) - 1)):
            for trial in [] if self.plan.late else self._ladder.passing(rung, closing):
                if trial.status == "paused" and len(trial.reports) == rung + 1:
                    self._record(Promoted(trial=trial.id, rung=rung))
                    return trial
        for trial in self.state.with_status("paused") if closing else []:
            self._record(Stopped(trial=trial.id, rung=len(trial.reports) - 1))
            self._tell(trial)
        return None

    def _tell(self, trial: TrialState) -> None:
        if trial.searched:
            self.plan.proposer.tell(trial.tried)

    def _record(self, event: Event) -> None:
        self.log.append(event)
        self.state.apply(event)
        self._streak.take(event, self.state)
        if isinstance(event, Reported | Promoted | Realised | Failed):
            trial = self.state.trials[event.trial]
            if trial.role == "search":
                self._ladder.place(trial)
        for listener in self.listeners:
            listener(event, self.state)


@dataclass(frozen=True)
class StudyEnd:
    """How far a run came with its study.

    Attributes:
        state: All trials.
        expected: What the searcher's model expects: see `Proposer.expected_losses`.
        finished: Whether nothing is left to do.
        halted: See `Study.halted`.
    """

    state: StudyState
    expected: Mapping[str, float]
    finished: bool
    halted: str | None


def known_table(folder: Path, state: StudyState) -> VisibilityTable | None:
    """Return the visibility table of a study; None where it has measured none.

    Raises:
        ValueError: See `load_study_table`.
    """
    measured = state.trials.get(REFERENCE_TRIAL)
    if measured is None or measured.status != "completed":
        return None
    return load_study_table(folder)


def load_study_table(folder: Path) -> VisibilityTable:
    """Return the visibility table that a study has kept.

    Raises:
        ValueError: Its file can't be read.
    """
    try:
        content = json.loads((folder / TABLE_FILE).read_text(encoding="utf-8"))
        return VisibilityTable.from_json(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"`--resume` must be a study with a readable {TABLE_FILE}, since its search began with "
            f"one, got {str(folder)!r} ({error}). Restore the file, or start a new study."
        ) from error


def _realised(trial: TrialState, receipt: Receipt) -> Realised:
    allocation = None
    if trial.allocation.final_rank is not None:
        allocation = trial.allocation.with_ranks(receipt.ranks).encode()
    return Realised(
        trial=trial.id,
        memory_bytes=receipt.memory_bytes,
        trainable_parameters=receipt.trainable_parameters,
        allocation=allocation,
    )
