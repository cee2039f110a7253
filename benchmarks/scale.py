"""A study of many trials on many workers that train nothing: what its driver costs.

    python -m benchmarks.scale --trials 10000 --workers 1000

The driver is real: plan, searcher, scheduler and event log of a study whose trials start from a
reference, over 72 modules (144 parameters) of BERT-base's shapes. Workers are entries of a heap of
events in virtual time; a start is scored in 20 s and a trial trained in 300 s, half or twice as
long at most, and what it scores is the table's prediction with noise. The driver's decisions take
their real time, one after the other, and workers wait for them. Then the study is resumed from its
log. Prints Markdown.
"""

import argparse
import heapq
import math
import os
import random
import resource
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np

from alrq_core.recipe import Recipe
from alrq_core.records import TrialReport
from alrq_core.sensitivity.table import VisibilityTable, flat_table
from search_spaces.fixed import fixed_allocation
from search_spaces.inventory import Inventory, TargetModule
from search_spaces.spaces import Space, make_space
from tune.search.proposer import Proposer
from tune.search.searchers import Setting
from tune.study.events import LOG_NAME, EventLog, Started
from tune.study.plan import Plan
from tune.study.replay import replay_search
from tune.study.schedulers import SCHEDULERS, judging_rungs, rungs_of
from tune.study.state import StudyState, TrialState
from tune.study.study import Outcome, Study, known_table

RECIPE = Recipe(max_steps=200, tune_steps=100)
BLOCKS = 12
# Out and in features of a block's modules.
SHAPES = (*((768, 768),) * 4, (3072, 768), (768, 3072))
SCORED_SECONDS, TRAINED_SECONDS = 20.0, 300.0
NOISE = 0.1
T = TypeVar("T")


def main() -> None:
    """Run a study and resume it, and print what both took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--searcher", default="alrq")
    flags = parser.parse_args()
    space = make_space("joint", inventory())
    with TemporaryDirectory() as folder:
        study = make_study(Path(folder), space, flags.trials, flags.searcher)
        simulation = Simulation(study, flags.workers, flat_table(space))
        with closing(study.log):
            simulation.run()
        print_run(simulation, flags.trials)
        started = time.perf_counter()
        with closing(make_study(Path(folder), space, flags.trials + 1, flags.searcher).log):
            pass
        mebibytes = (Path(folder) / LOG_NAME).stat().st_size / 2**20
        print(f"| resumed in | {time.perf_counter() - started:.1f} s, log {mebibytes:.0f} MiB |")
    print(f"\nload averages {[round(value, 1) for value in os.getloadavg()]}")


@dataclass
class Simulation:
    """Workers in virtual time and one driver in real time.

    Attributes:
        study: The driver's.
        workers: How many trials run at a time.
        table: What a start's divergence is made of.
        decisions: Seconds of each.
        work: When each piece of work began and ended.
        full: From when until when there was work for all.
    """

    study: Study
    workers: int
    table: VisibilityTable
    decisions: list[float] = field(default_factory=list)
    work: list[tuple[float, float]] = field(default_factory=list)
    full: tuple[float, float] = (0.0, 0.0)
    _generator: random.Random = field(default_factory=lambda: random.Random(0))
    _free_at: float = 0.0
    _running: list[tuple[float, int, TrialState]] = field(default_factory=list)

    def run(self) -> None:
        """Run the search to its end."""
        closed, began = self.study.plan, 0.0
        while True:
            while len(self._running) < self.workers and not closed.search_closed:
                trial = self._timed(self.study.next_trial)
                if trial is None:
                    break
                self._start(trial)
            if len(self._running) == self.workers:
                began = began or self._free_at
                self.full = began, self._free_at
            if not self._running:
                return
            now, _, trial = heapq.heappop(self._running)
            self._free_at = max(self._free_at, now)
            outcome = self._end(trial)
            if self._timed(partial(self.study.take, trial.id, outcome)) == "continue":
                self._start(trial)

    @property
    def busy(self) -> float:
        """The part of their time that workers worked while there was work for all."""
        first, last = self.full
        parts = (min(end, last) - max(start, first) for start, end in self.work)
        return sum(max(0.0, part) for part in parts) / (self.workers * (last - first))

    def _timed(self, decide: Callable[[], T]) -> T:
        started = time.perf_counter()
        found = decide()
        self.decisions.append(time.perf_counter() - started)
        self._free_at += self.decisions[-1]
        return found

    def _start(self, trial: TrialState) -> None:
        scored = trial.reference is not None and trial.last is None
        mean = SCORED_SECONDS if scored else TRAINED_SECONDS
        end = self._free_at + mean * 2 ** self._generator.uniform(-1, 1)
        self.work.append((self._free_at, end))
        heapq.heappush(self._running, (end, len(self.work), trial))

    def _end(self, trial: TrialState) -> Outcome:
        """Return what a worker would send of a trial's next rung."""
        started = trial.reference is not None
        rungs = rungs_of(RECIPE, trial.role, started)
        step = next(s for s in rungs if s > (trial.last.step if trial.last else -1))
        noise = math.exp(self._generator.gauss(0, NOISE))
        divergence = self.table.predict(trial.allocation) * noise if started else None
        report = TrialReport(
            step=step,
            train_loss=0.5,
            loss=0.4 + (divergence or 0.0),
            loss_standard_error=0.01,
            sequences=853,
            accuracy=0.8,
            f1=0.8,
            divergence=divergence,
            train_seconds=1.0,
            eval_seconds=1.0,
            peak_memory_bytes=10**9,
        )
        table = self.table if trial.role == "reference" else None
        return Outcome(report=report, table=table)


def make_study(folder: Path, space: Space, budget: int, searcher: str) -> Study:
    """Return a study that goes on from what a folder holds."""
    log = EventLog(folder / LOG_NAME)
    events = list(log.read())
    state = StudyState(space.inventory.names).replay(events)
    started = Started(time=0.0, budget=budget)
    log.append(started)
    state.apply(started)
    setting = Setting(
        space=space,
        rungs=judging_rungs(RECIPE, started=True),
        budget=budget,
        seed=0,
        max_memory_bytes=None,
    )
    proposer = Proposer(setting, searcher, folder, known_table(folder, state))
    replay_search(events, state, proposer)
    plan = Plan(
        space=space,
        baselines={"B-FP": fixed_allocation("B-FP", space.inventory, space.formats)},
        state=state,
        proposer=proposer,
        budget=budget,
        screen=0,
        anchors=0,
        seed=0,
        max_memory_bytes=None,
        deadline=None,
        searcher=searcher,
        reference="B-FP",
    )
    return Study(
        folder=folder,
        log=log,
        state=state,
        plan=plan,
        recipe=RECIPE,
        scheduler=SCHEDULERS["front-asha"],
    )


def inventory() -> Inventory:
    """Return 72 modules."""
    targets = tuple(
        TargetModule(
            name=f"encoder.layer.{block}.m{number}",
            out_features=shape[0],
            in_features=shape[1],
            part="attention" if number < 4 else "feed-forward",
            block=block,
        )
        for block in range(BLOCKS)
        for number, shape in enumerate(SHAPES)
    )
    return Inventory(model="made up", targets=targets, other_parameters=25_000_000)


def print_run(simulation: Simulation, trials: int) -> None:
    """Print what the driver did."""
    seconds = np.array(simulation.decisions)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"| {trials} trials on | {simulation.workers} workers |\n|-|-|")
    print(f"| decisions | {len(seconds)}, {len(seconds) / seconds.sum():.0f} a second |")
    print(f"| of them half within | {1000 * np.median(seconds):.1f} ms |")
    print(f"| 99 % within | {1000 * np.quantile(seconds, 0.99):.1f} ms |")
    print(f"| workers busy | {100 * simulation.busy:.1f} % |")
    print(f"| driver's memory | {peak / 2**20:.0f} MiB |")


if __name__ == "__main__":
    main()
