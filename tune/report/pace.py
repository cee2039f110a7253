"""What a study does now, how far that is, and how long it takes still."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import fmean

from tune.study.config import StudyConfig
from tune.study.events import (
    Ended,
    Event,
    Paused,
    Planned,
    Progressed,
    Promoted,
    Proposed,
    Reported,
    Role,
    Started,
    Work,
)
from tune.study.finalists import REFERENCE_TRIAL
from tune.study.schedulers import RUNG_FACTOR, SCHEDULERS, START_FACTOR, rungs_of
from tune.study.state import SEARCHED, UNENDED, StudyState, TrialState

CONFIRMING: tuple[Role, ...] = ("control", "confirm")
DOES: Mapping[Work, tuple[str, str]] = {
    "codes": ("calibrating", "codes"),
    "training": ("training the reference", "steps"),
    "starts": ("making starts", "matrices"),
    "table": ("measuring what matrices cost", "batches"),
}


# Of the trials at a rung, the share that goes on, about the same at each, where it is not the part
# that a rule is for: `front-asha` let so many on in searches of 12 to 100 from nothing, since the
# order changes while others come. And how many reports say as much as this.
SHARES: Mapping[str, float] = {"front-asha": 0.7, "median": 0.5, "none": 1.0}
PRIOR_REPORTS = 10


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One part of a study.

    Attributes:
        title: What is done in it, or just now.
        done, total: How far it is, of how much; the latter 0 where that is not known.
        unit: Of both.
        seconds_left: Until its end, or that of what is done just now; None before that is known.
    """

    title: str
    done: int
    total: int
    unit: str
    seconds_left: float | None = None


@dataclass
class _Told:
    """What was told of one work: when, and how much was made."""

    points: list[tuple[float, int]]
    wanted: int

    @property
    def last(self) -> tuple[float, int]:
        """What was told last."""
        return self.points[-1]

    @property
    def earlier(self) -> tuple[float, int]:
        """What was told when at most half as much was made: works begin slower than they go on."""
        half = self.last[1] / 2
        return next((point for point in reversed(self.points) if point[1] <= half), self.points[0])


@dataclass
class Pace:
    """Follows the events of one run of a study.

    What is left of trials and of confirmation is the time that workers took for rungs of the same
    kind, as far as they are not begun or not yet over, shared among the workers.

    Attributes:
        config: Of the study.
        size: Trials of the search, or configurations of a fixed space.
        fixed: Whether the space is one.
    """

    config: StudyConfig
    size: int
    fixed: bool
    _planned: Planned | None = None
    # Runs that had ended before.
    _ended: set[str] = field(default_factory=set)
    _told: dict[tuple[Work, str | None], _Told] = field(default_factory=dict)
    # Since when a worker has had a trial, or is at its rung.
    _since: dict[str, float] = field(default_factory=dict)
    # Of the search or what follows it: when it began, the time so far, and the sum over it of how
    # many trials there were at a time. Some wait for a worker, in what they take as in this.
    _began: tuple[float, float, float] | None = None
    # Seconds by whether a trial confirms, whether it started from a reference, and steps.
    _costs: dict[tuple[bool, bool, int], list[float]] = field(default_factory=dict)
    # Of each report: steps, and the seconds of training and of scoring.
    _parts: list[tuple[int, float, float]] = field(default_factory=list)

    def take(self, time: float, event: Event, state: StudyState) -> None:
        """Take in an event, after the state did.

        Args:
            time: Seconds since whenever.
            event: What happened.
            state: All trials.
        """
        self._pass(time)
        if isinstance(event, Started):
            # What an earlier run did says nothing of how far this one is.
            self._planned = None
            self._told.clear()
            self._since.clear()
            self._began = None
        elif isinstance(event, Planned):
            self._planned = event
            self._began = time, time, 0.0
            self._ended = {trial.id for trial in _runs(state) if trial.status != "running"}
        elif isinstance(event, Progressed):
            told = self._told.setdefault((event.work, event.trial), _Told([], event.wanted))
            told.points.append((time, event.made))
        elif isinstance(event, Ended | Paused):
            self._since.pop(event.trial, None)
        elif isinstance(event, Reported):
            self._count(time, state.trials[event.trial])
            self._since[event.trial] = time
        elif isinstance(event, Proposed | Promoted):
            self._since[event.trial] = time
            if self._began is None and state.trials[event.trial].role == self._role:
                self._began = time, time, 0.0

    def _pass(self, time: float) -> None:
        """Let the time since the last event go by."""
        if self._began is not None:
            began, before, sums = self._began
            self._began = began, time, sums + len(self._since) * (time - before)

    @property
    def _workers(self) -> float:
        """How many trials there were at a time, on average."""
        if self._began is None or self._began[1] <= self._began[0]:
            return max(1.0, float(len(self._since)))
        began, now, sums = self._began
        return max(1.0, sums / (now - began))

    @property
    def _role(self) -> Role:
        return "baseline" if self.fixed else "search"

    def _count(self, time: float, trial: TrialState) -> None:
        """Take in what the last report of a trial took."""
        report = trial.reports[-1]
        before = trial.reports[-2].step if len(trial.reports) > 1 else 0
        steps = report.step - before
        self._parts.append((steps, report.train_seconds, report.eval_seconds))
        # What an earlier run began is not known.
        if trial.id in self._since:
            key = trial.role in CONFIRMING, trial.reference is not None, steps
            self._costs.setdefault(key, []).append(time - self._since[trial.id])

    def phases(self, time: float, state: StudyState) -> list[Phase]:
        """Return the parts of the study that have begun, in order; the last is the present one."""
        found = []
        if ("codes", None) in self._told:
            found.append(self._linear(time, "codes", None))
        if (reference := state.trials.get(REFERENCE_TRIAL)) is not None:
            found += self._reference(time, reference)
        if state.count(["screen"]):
            done = state.count(["screen"]) - state.count(["screen"], ["running"])
            found.append(
                Phase(title="screening", done=done, total=self.config.screen, unit="starts")
            )
        if self.fixed or state.count(["search"]):
            found.append(self._trials(time, state))
        # What an earlier release logged has no plan.
        unplanned = state.count(["control"]) and not state.count(SEARCHED, UNENDED)
        if self._planned is not None or unplanned:
            planned = self._planned or Planned(started=0, plain=0)
            found.append(self._confirming(time, state, planned))
        if len(found) > 1 and ("codes", None) in self._told:
            # They are told of by tenths, and what follows needs them all.
            found[0] = replace(found[0], done=found[0].total)
        return found

    def _reference(self, time: float, trial: TrialState) -> list[Phase]:
        if trial.status != "running":
            return [Phase(title=f"reference {trial.status}", done=1, total=1, unit="")]
        works: tuple[Work, ...] = ("table", "starts", "training")
        for work in works:
            if (work, REFERENCE_TRIAL) in self._told:
                return [self._linear(time, work, REFERENCE_TRIAL)]
        codes = self._told.get(("codes", None))
        begun = codes is None or codes.last[1] == codes.wanted
        return [Phase(title=DOES["training"][0], done=0, total=0, unit="")] if begun else []

    def _linear(self, time: float, work: Work, trial: str | None) -> Phase:
        """Return a work of many equal parts."""
        told = self._told[work, trial]
        (earlier, before), (last, made) = told.earlier, told.last
        left = None
        # Before the first start comes what takes longer than all of them.
        if made > before and (before > 0 or work != "starts"):
            pace = (last - earlier) / (made - before)
            left = max(0.0, pace * (told.wanted - made) - (time - last))
        title, unit = DOES[work]
        return Phase(title=title, done=made, total=told.wanted, unit=unit, seconds_left=left)

    def _trials(self, time: float, state: StudyState) -> Phase:
        role = self._role
        trials, unit = state.of_role(role), "configurations" if self.fixed else "trials"
        started = any(trial.reference is not None for trial in trials)
        left = 0.0
        for rung, steps in enumerate(self._steps(role, started)):
            unbegun = self._expected(trials, rung, started) - _begun(trials, rung)
            left += max(0.0, unbegun) * self._cost(False, started, steps)
        done = sum(trial.status != "running" for trial in trials)
        if left and not self.fixed:
            # What passes last is trained while the others have nothing to do.
            longest = max(self._cost(False, started, steps) for steps in self._steps(role, started))
            left += (self._workers - 1) * longest
        seconds = None
        if any(trial.reports for trial in trials):
            seconds = self._seconds_left(time, False, left, state)
        return Phase(title=unit, done=done, total=self.size, unit=unit, seconds_left=seconds)

    def _expected(self, trials: Sequence[TrialState], rung: int, started: bool) -> float:
        """Return how many trials will reach a rung."""
        if rung == 0 or self.fixed:
            return self.size
        size = self.size - sum(t.status == "failed" and not t.reports for t in trials)
        if started and SCHEDULERS[self.config.scheduler].pauses:
            return max(_begun(trials, rung), math.ceil(size / START_FACTOR))
        share = SHARES.get(self.config.scheduler, 1 / (START_FACTOR if started else RUNG_FACTOR))
        expected = float(size)
        for one in range(1, rung + 1):
            judged = sum(len(trial.reports) >= one for trial in trials)
            expected *= (_begun(trials, one) + PRIOR_REPORTS * share) / (judged + PRIOR_REPORTS)
        # In the end only what runs can go on; what waits hardly ever does.
        running = sum(t.status == "running" and _reached(t) < rung for t in trials)
        ended = sum(bool(trial.reports) for trial in trials) >= size
        return min(expected, _begun(trials, rung) + running) if ended else expected

    def _confirming(self, time: float, state: StudyState, planned: Planned) -> Phase:
        runs = [trial for trial in _runs(state) if trial.id not in self._ended]
        left = 0.0
        for started, wanted in ((True, planned.started), (False, planned.plain)):
            begun = sum((trial.reference is not None) == started for trial in runs)
            steps = self._steps("confirm", started)
            whole = sum(self._cost(True, started, each) for each in steps)
            left += max(0, wanted - begun) * whole
        done = sum(trial.status != "running" for trial in runs)
        known = self._planned is not None and any(trial.reports for trial in runs)
        return Phase(
            title="confirming",
            done=done,
            total=max(done, planned.started + planned.plain) if self._planned else 0,
            unit="runs",
            seconds_left=self._seconds_left(time, True, left, state) if known else None,
        )

    def _seconds_left(
        self, time: float, confirming: bool, unbegun: float, state: StudyState
    ) -> float:
        """Return the time until what is not begun, and what runs, is done by all workers."""
        running, others = [0.0], [0.0]
        for trial in state.with_status("running"):
            started, late = trial.reference is not None, trial.role in CONFIRMING
            steps = self._steps(trial.role, started)
            costs = [self._cost(late, started, each) for each in steps[len(trial.reports) :]]
            spent = time - self._since.get(trial.id, time)
            # What searches may be stopped at its next rung.
            rest = max(0.0, sum(costs[:1]) - spent) + sum(costs[1:]) * late
            (running if late == confirming else others).append(rest)
        # Others hold a worker for which something waits.
        waiting = unbegun + sum(running) + (sum(others) if unbegun else 0.0)
        return float(max(*running, waiting / self._workers))

    def _steps(self, role: Role, started: bool) -> list[int]:
        """Return the steps of each rung, from the one before."""
        return [b - a for a, b in pairwise((0, *rungs_of(self.config.recipe, role, started)))]

    def _cost(self, late: bool, started: bool, steps: int) -> float:
        """Return the seconds that a worker takes for so many steps and their report: the mean so
        far, or by what all trials took for a step and for scoring.

        What the first starts take to be scored is mostly what their workers do once.
        """
        known = self._costs.get((late, started, steps), [])
        if not steps and not late:
            known = known[round(self._workers) :]
        if known:
            return fmean(known)
        trained = sum(steps for steps, _, _ in self._parts)
        each = sum(seconds for _, seconds, _ in self._parts) / max(1, trained)
        return steps * each + fmean([seconds for _, _, seconds in self._parts] or [0.0])


def _reached(trial: TrialState) -> int:
    """Return the highest rung that a worker has begun with."""
    return len(trial.reports) - (trial.status not in ("running", "failed"))


def _begun(trials: Sequence[TrialState], rung: int) -> int:
    """Return with how many trials a worker has begun that rung."""
    return sum(_reached(trial) >= rung for trial in trials)


def _runs(state: StudyState) -> list[TrialState]:
    return [trial for role in CONFIRMING for trial in state.of_role(role)]
