"""Replays whole studies on recorded losses: the same searchers, schedulers and log, no training."""

import heapq
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alrq_core.records import TrialReport
from alrq_core.visibility import VisibilityTable
from benchmarks.surrogate import Landscape
from search_spaces.allocation import Allocation
from search_spaces.costs import memory_bytes
from search_spaces.spaces import Space
from tune.events import LOG_NAME, EventLog, Started
from tune.front import Point, hypervolume
from tune.plan import Plan
from tune.schedulers import SCHEDULERS
from tune.searchers import Proposer, Setting
from tune.state import StudyState, TrialState
from tune.study import Outcome, Study

# A study proposes until its cost is spent.
NO_LIMIT = 10**6
# Files in memory, where there are any: a replay writes the same log as a study.
MEMORY = Path("/dev/shm")


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
    landscape: Landscape,
    costs: Costs,
    *,
    limit: float,
    workers: int,
    seed: int,
    budget: int,
) -> Replay:
    """Run one study until its running trials have cost `limit` together.

    Args:
        arm: How to search.
        space: What is searched.
        landscape: The losses.
        costs: Of all but steps.
        limit: In optimiser steps.
        workers: Trials at a time.
        seed: Of proposals and of the noise.
        budget: Trials that the searcher is told; it goes on after them.
    """
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        study = _study(arm, space, landscape.steps, Path(folder), seed, budget)
        with closing(study.log):
            return _Simulation(study, arm, landscape, costs, limit, seed).run(workers)


def _study(
    arm: Arm, space: Space, rungs: tuple[int, ...], folder: Path, seed: int, budget: int
) -> Study:
    setting = Setting(space=space, rungs=rungs, budget=budget, seed=seed)
    state = StudyState(space.inventory.names)
    state.apply(Started(time=0.0, budget=NO_LIMIT))
    plan = Plan(
        space=space,
        state=state,
        proposer=Proposer(setting, arm.searcher, folder, arm.table),
        budget=NO_LIMIT,
        anchors=arm.anchors,
        seed=seed,
        max_memory_bytes=None,
        deadline=None,
        searcher=arm.searcher,
    )
    return Study(
        folder=folder,
        log=EventLog(folder / LOG_NAME),
        state=state,
        plan=plan,
        rungs=rungs,
        scheduler=SCHEDULERS[arm.scheduler],
    )


class _Simulation:
    """Workers that take no time for what they do, and the clock that counts it."""

    def __init__(
        self, study: Study, arm: Arm, landscape: Landscape, costs: Costs, limit: float, seed: int
    ) -> None:
        self._study, self._arm, self._landscape, self._costs = study, arm, landscape, costs
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
            if self._end(trial) and (self._arm.plain or self._spent < self._limit):
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
        steps, rung = self._landscape.steps, len(trial.reports)
        if self._arm.plain:
            # Nothing can end it, so it is paid for as a whole.
            return 0.0 if rung else steps[-1] + self._costs.full
        done = trial.last.step if trial.last is not None else 0
        last = rung == len(steps) - 1
        return steps[rung] - done + (self._costs.full if last else self._costs.half)

    def _end(self, trial: TrialState) -> bool:
        """Report the rung that a trial reached; return whether it goes on."""
        steps = self._landscape.steps
        if trial.role == "table":
            self._study.take(trial.id, Outcome(table=self._arm.table))
            return False
        losses = self._landscape.observed(trial.allocation, self._seed)
        rung = len(steps) - 1 if trial.role == "baseline" else len(trial.reports)
        outcome = Outcome(report=_report(steps[rung], float(losses[rung])))
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


def quality(
    found: Replay, landscape: Landscape, space: Space, reference: tuple[float, float]
) -> list[float]:
    """Return the hypervolume at each completed trial.

    A study sees losses with their noise and chooses its front by them; what counts are the
    expected losses of the chosen. Coordinates: loss, and the logarithm of bytes to the base 2.
    """

    def point(allocation: Allocation) -> Point:
        size = np.log2(memory_bytes(allocation, space.inventory))
        return float(landscape.expected(allocation)[-1]), float(size)

    return [hypervolume([*map(point, front)], reference) for front in found.fronts]
