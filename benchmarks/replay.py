"""Runs whole studies for comparison: the same searchers, schedulers and log, without Ray.

Losses come from recorded curves, or from training.
"""

import heapq
import tempfile
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from alrq_core.receipt import ReceiptError
from alrq_core.records import TrialReport
from alrq_core.sensitivity.table import VisibilityTable
from alrq_core.training import TrainingDivergedError
from search_spaces.allocation import Allocation
from search_spaces.costs import memory_bytes
from search_spaces.spaces import Space
from tune.search.front import hypervolume
from tune.search.proposer import Proposer
from tune.search.searchers import Setting
from tune.study.events import LOG_NAME, EventLog, Started
from tune.study.plan import Plan
from tune.study.schedulers import SCHEDULERS
from tune.study.state import StudyState, TrialState
from tune.study.study import Outcome, Study

CHANCE = float(np.log(2))
# A study proposes until its cost is spent.
NO_LIMIT = 10**6
# Files in memory, where there are any: a replay writes the same log as a study.
MEMORY = Path("/dev/shm")


class Losses(Protocol):
    """Where the losses of a study come from."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of the rungs, ascending."""

    def loss(self, allocation: Allocation, seed: int, rung: int) -> float:
        """Return the validation loss of one training with a seed at a rung.

        Raises:
            TrainingDivergedError, ReceiptError: See `TrialRun.advance`.
        """


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What things cost, in optimiser steps.

    Attributes:
        half, full: Scoring half of the validation split, and all of it.
        table: Measuring the visibility table.
    """

    half: float
    full: float
    table: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Arm:
    """A way to search.

    Attributes:
        name: For tables.
        searcher, scheduler: As on the command line.
        anchors: Uniform allocations that are tried first.
        plain: Trials are scored at their end only, as `OptunaSearch` without a scheduler would.
        table: The visibility table that the searcher gets; a flat one costs nothing.
    """

    name: str
    searcher: str
    scheduler: str
    anchors: int = 0
    plain: bool = False
    table: VisibilityTable


@dataclass(frozen=True)
class Replay:
    """What one replayed study found.

    Attributes:
        costs: Training cost at each completed trial.
        fronts: What the study would offer by then: by the losses that its searcher's model expects,
            or where it has no model by those observed, at full fidelity.
    """

    costs: list[float]
    fronts: list[list[Allocation]]


def replay(
    arm: Arm,
    space: Space,
    losses: Losses,
    costs: Costs,
    *,
    limit: float,
    workers: int,
    seed: int,
    budget: int,
    closes: bool = False,
    max_memory_bytes: int | None = None,
) -> Replay:
    """Run one study until its running trials have cost `limit` together.

    Args:
        arm: How to search.
        space: What is searched.
        losses: Of the trials.
        costs: Of all but steps.
        limit: In optimiser steps.
        workers: Trials at a time.
        seed: Of proposals and of the noise.
        budget: Trials that the searcher is told.
        closes: Whether the search ends after them, as a real one does; else only `limit` ends it.
        max_memory_bytes: Limit on proposals; None for none.
    """
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        setting = Setting(
            space=space,
            rungs=losses.steps,
            budget=budget,
            seed=seed,
            max_memory_bytes=max_memory_bytes,
        )
        study = _study(arm, setting, Path(folder), budget if closes else NO_LIMIT)
        with closing(study.log):
            return _Simulation(study, arm, losses, costs, limit, seed).run(workers)


def _study(arm: Arm, setting: Setting, folder: Path, end: int) -> Study:
    space = setting.space
    state = StudyState(space.inventory.names)
    state.apply(Started(time=0.0, budget=end))
    plan = Plan(
        space=space,
        state=state,
        proposer=Proposer(setting, arm.searcher, folder, arm.table),
        budget=end,
        anchors=arm.anchors,
        seed=setting.seed,
        max_memory_bytes=setting.max_memory_bytes,
        deadline=None,
        searcher=arm.searcher,
    )
    return Study(
        folder=folder,
        log=EventLog(folder / LOG_NAME),
        state=state,
        plan=plan,
        rungs=setting.rungs,
        scheduler=SCHEDULERS[arm.scheduler],
    )


class _Simulation:
    """Workers that take no time for what they do, and the clock that counts it."""

    def __init__(
        self, study: Study, arm: Arm, losses: Losses, costs: Costs, limit: float, seed: int
    ) -> None:
        self._study, self._arm, self._losses, self._costs = study, arm, losses, costs
        self._limit, self._seed = limit, seed
        self._spent = 0.0
        self._found = Replay([], [])

    def run(self, workers: int) -> Replay:
        """Run until the cost is spent. Workers are as fast as each other."""
        running: list[tuple[float, int, TrialState]] = []
        now, count = 0.0, 0
        while True:
            while len(running) < workers and self._spent < self._limit:
                trial = self._study.next_trial()
                if trial is None:
                    break
                count += 1
                heapq.heappush(running, (now + self._start(trial), count, trial))
            if not running:
                return self._found
            now, _, trial = heapq.heappop(running)
            if self._end(trial) and self._spent < self._limit:
                count += 1
                heapq.heappush(running, (now + self._start(trial), count, trial))

    def _start(self, trial: TrialState) -> float:
        """Spend what the trial's next rung costs; return it."""
        cost = self._cost(trial)
        self._spent += cost
        return cost

    def _cost(self, trial: TrialState) -> float:
        if trial.role == "baseline":
            return 0.0
        if trial.role == "table":
            return self._costs.table if self._arm.table.steps else 0.0
        steps, rung = self._losses.steps, self._rung(trial)
        done = trial.last.step if trial.last is not None else 0
        last = rung == len(steps) - 1
        return steps[rung] - done + (self._costs.full if last else self._costs.half)

    def _rung(self, trial: TrialState) -> int:
        """Return the rung that a trial is at next."""
        return len(self._losses.steps) - 1 if self._arm.plain else len(trial.reports)

    def _end(self, trial: TrialState) -> bool:
        """Report the rung that a trial reached; return whether it goes on."""
        if trial.role == "table":
            self._study.take(trial.id, Outcome(table=self._arm.table))
            return False
        if trial.role == "baseline":
            self._study.fail(trial.id, "not part of the comparison")
            return False
        rung = self._rung(trial)
        try:
            loss = self._losses.loss(trial.allocation, self._seed, rung)
        except (ReceiptError, TrainingDivergedError) as error:
            self._study.fail(trial.id, str(error))
            return False
        outcome = Outcome(report=_report(self._losses.steps[rung], loss))
        goes_on = self._study.take(trial.id, outcome) == "continue"
        if trial.role == "search" and trial.status == "completed":
            self._found.costs.append(self._spent)
            expected = self._study.plan.proposer.expected_losses()
            front = self._study.state.front(expected)
            self._found.fronts.append([trial.allocation for trial in front])
        return goes_on


def _report(step: int, loss: float) -> TrialReport:
    return TrialReport(
        step=step,
        train_loss=loss,
        loss=loss,
        loss_standard_error=0.012,
        sequences=853,
        accuracy=None,
        f1=None,
        train_seconds=0.0,
        eval_seconds=0.0,
        peak_memory_bytes=0,
    )


def area(
    front: Iterable[Allocation], loss_of: Callable[[Allocation], float], space: Space
) -> float:
    """Return the hypervolume of what a study offers.

    A study sees losses with their noise and chooses by them; what counts is another loss of the
    chosen, to which that noise did not contribute. Coordinates: loss, up to that of guessing one
    of two classes, and the logarithm of bytes to the base 2, up to those of the largest allocation.
    """

    def log_bytes(allocation: Allocation) -> float:
        return float(np.log2(memory_bytes(allocation, space.inventory)))

    points = [(loss_of(allocation), log_bytes(allocation)) for allocation in front]
    return hypervolume(points, (CHANCE, log_bytes(space.largest())))
