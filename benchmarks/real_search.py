"""What searches offer at three limits, beside what nobody searched for, all trained for real.

    python -m benchmarks.real_search --results results/real
    python -m benchmarks.real_search --results results/real-sst2 --task sst2 --data DIR
    python -m benchmarks.real_search --results results/sft --model smollm2 --task sft --data FILE

MiniLM-L6 with the default recipe, codes and space, or what `setups.py` says. For each seed, B-FP is
trained, and searches of 50 trials start from it: `alrq` as by default, and Optuna's TPE by the same
scores. At each limit on the deployed model, what a search offers is the best of its front that
fits, by its model's expectation where it has one. Those, the next larger uniform allocation, that
of up to a tenth more bytes which the visibility table expects most of, a random one and the table's
own best of no more start from a B-FP of another seed that no search has seen, are trained towards
its answers, and are scored on the test split before and after. Prints Markdown tables with 95 %
intervals over seeds and sentences, and writes `offers.csv` beside what each seed keeps: the command
may be given again.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import log2
from multiprocessing import get_context
from pathlib import Path
from random import Random

import torch
from scipy.stats import kendalltau

from alrq_core.adapters.reference import Reference
from alrq_core.context import TrialContext
from alrq_core.memory.cores import usable_cores
from alrq_core.records import TrialReport
from alrq_core.sensitivity.shifts import visibility_table
from alrq_core.sensitivity.table import VisibilityTable
from alrq_core.trial import TrialRun
from benchmarks.search_tables import Row, print_limits, print_searches, write_scores
from benchmarks.setups import CONTROLS, SETUPS, Setup, load
from benchmarks.tester import Log, Tester
from search_spaces.allocation import Allocation
from search_spaces.controls import random_of_bytes, uniform_of_bytes
from search_spaces.costs import memory_bytes
from search_spaces.fixed import fixed_allocation
from search_spaces.spaces import Space
from tune.search.budget import BudgetSolver, space_choices
from tune.search.front import hypervolume
from tune.search.proposer import Proposer
from tune.search.searchers import Setting
from tune.study.events import LOG_NAME, EventLog, Started
from tune.study.plan import Plan
from tune.study.replay import replay_search
from tune.study.schedulers import Scheduler, judging_rungs
from tune.study.state import StudyState, TrialState
from tune.study.study import Outcome, Study

# Of the seed that is searched with, to that which scores what was found.
FRESH = 1000
# What scoring a sequence costs beside a step of 32, which goes forward and backward.
SCORE_STEPS = 1 / 3 / 32
# No search goes by what training makes of its trials, so that none is trained for show.
SCORED_ONLY = Scheduler(passes=lambda points, closing, factor: [False] * len(points), pauses=False)
# Areas count below these.
WORST = 0.1


@dataclass(frozen=True)
class Job:
    """One seed of one task."""

    results: Path
    seed: int
    model: str
    task: str
    data: Path | None


def main() -> None:
    """Do what is missing of every seed and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--model", choices=SETUPS, default="minilm")
    parser.add_argument("--task", default="rotten_tomatoes")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    about = given.model, given.task, given.data
    jobs = [Job(given.results, seed, *about) for seed in range(given.seeds)]
    with ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn")) as pool:
        rows = [row for found in pool.map(run_seed, jobs) for row in found]
    write_scores(rows, given.task, given.results / "offers.csv")
    print_limits(rows)
    if "tpe" in SETUPS[given.model].searches:
        print_searches(rows, SETUPS[given.model].searches)


def run_seed(job: Job) -> list[Row]:
    """Search with one seed, score what was found with a fresh one, and return the rows."""
    torch.set_num_threads(1)
    setup = SETUPS[job.model]
    context, space = load(job.task, job.data, job.model)
    folder = job.results / f"seed-{job.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    reference, report = trained(context, space, job.seed, folder)
    table = known_table(context, space, reference, report.loss_standard_error, folder)
    fresh, _ = trained(context, space, FRESH + job.seed, folder)
    tester = Tester(context, fresh, Log(folder / "scores.jsonl"))
    rows: list[Row] = [{"kind": "B-FP", "seed": job.seed, **tester.reference_score()}]
    offers: dict[str, Mapping[int, Allocation]] = {}
    for name in setup.searches:
        search = Search(
            context, space, setup, reference, report, table, folder / name, name, job.seed
        )
        search.run()
        offers[name] = search.offers()
        rows.append({"kind": name, "seed": job.seed, **search.summary()})
    for limit in setup.limits:
        found = {name: offer[limit] for name, offer in offers.items() if limit in offer}
        size = memory_bytes(found["alrq"], space.inventory)
        every = dict(zip(CONTROLS, controls(space, table, size, job.seed), strict=True))
        found |= {name: every[name] for name in setup.controls}
        rows += [
            {"kind": kind, "seed": job.seed, "limit": limit, **tester.score(allocation)}
            for kind, allocation in found.items()
        ]
    return rows


class Search:
    """One search in this process: a study's plan, log and decisions, without its confirmation."""

    def __init__(
        self,
        context: TrialContext,
        space: Space,
        setup: Setup,
        reference: Reference,
        report: TrialReport,
        table: VisibilityTable,
        folder: Path,
        searcher: str,
        seed: int,
    ) -> None:
        """Go on with what the folder holds."""
        self._context, self._reference, self._report = context, reference, report
        self._table, self._seed, self._limits = table, seed, setup.limits
        folder.mkdir(exist_ok=True)
        log = EventLog(folder / LOG_NAME)
        events = list(log.read())
        self.state = StudyState(space.inventory.names).replay(events)
        started = Started(time=0.0, budget=setup.trials)
        log.append(started)
        self.state.apply(started)
        rungs = judging_rungs(context.recipe, started=True)
        setting = Setting(
            space=space,
            rungs=rungs,
            budget=setup.trials,
            seed=seed,
            max_memory_bytes=setup.largest,
        )
        self._proposer = Proposer(setting, searcher, folder, table)
        replay_search(events, self.state, self._proposer)
        plan = Plan(
            space=space,
            baselines={},
            state=self.state,
            proposer=self._proposer,
            budget=setup.trials,
            screen=0,
            anchors=0,
            seed=seed,
            max_memory_bytes=setup.largest,
            deadline=None,
            searcher=searcher,
            reference="B-FP",
        )
        self._study = Study(
            folder=folder,
            log=log,
            state=self.state,
            plan=plan,
            recipe=context.recipe,
            scheduler=SCORED_ONLY,
        )

    def run(self) -> None:
        """Score starts until the search is over."""
        while (trial := self._study.next_trial()) is not None:
            if trial.role == "reference":
                self._study.take(trial.id, Outcome(report=self._report, table=self._table))
            elif trial.role == "search":
                self._score(trial)
            else:
                break
        self._study.log.close()

    def _score(self, trial: TrialState) -> None:
        run = TrialRun(self._context, trial.allocation, self._seed, reference=self._reference)
        self._study.take(trial.id, Outcome(report=run.advance(0)))

    def offers(self) -> dict[int, Allocation]:
        """Return the best that fits in each limit, as far as anything does."""
        front = self.state.front(self._proposer.expected_losses())
        found = {}
        for limit in self._limits:
            fitting = [trial for trial in front if trial.memory_bytes <= limit]
            if fitting:
                found[limit] = fitting[-1].allocation
        return found

    def summary(self) -> Row:
        """Return costs in steps, areas of the front as it grew, and how the table orders trials."""
        done = self.state.of_role("search")
        cost, costs, areas, points = 0.0, [], [], []
        for trial in done:
            cost += sum(SCORE_STEPS * self._scored(report) for report in trial.reports)
            if trial.judged is not None:
                points.append((trial.judged.objective, log2(trial.memory_bytes)))
                costs.append(cost)
                areas.append(hypervolume(points, (WORST, log2(2 * max(self._limits)))))
        first = [trial.judged.objective for trial in done if trial.judged is not None]
        predicted = [self._table.predict(t.allocation) for t in done if t.judged is not None]
        tau = float(kendalltau(predicted, first).statistic)
        return {"cost": cost, "costs": costs, "areas": areas, "tau": tau, "trials": len(done)}

    def _scored(self, report: TrialReport) -> int:
        return report.sequences + len(self._context.parts.scored)


def controls(space: Space, table: VisibilityTable, size: int, seed: int) -> Iterator[Allocation]:
    """Yield two uniform allocations of no fewer bytes, a random one and the table's best."""
    yield uniform_of_bytes(space, size)
    yield uniform_of_bytes(space, size, table.predict)
    yield random_of_bytes(space, size, Random(f"{seed}-{size}"))

    solver = BudgetSolver(space.inventory, space_choices(space))
    yield solver.solve(solver.values(table.damage), size)


def trained(
    context: TrialContext, space: Space, seed: int, folder: Path
) -> tuple[Reference, TrialReport]:
    """Return B-FP of a seed, and what it reported."""
    path, told = folder / f"B-FP-{seed}.safetensors", folder / f"B-FP-{seed}.json"
    if not told.is_file():
        run = TrialRun(context, fixed_allocation("B-FP", space.inventory, space.formats), seed)
        report = run.advance(context.recipe.max_steps)
        run.reference().save(path)
        told.write_text(json.dumps(report.to_json()), encoding="utf-8")
    report = TrialReport(**json.loads(told.read_text(encoding="utf-8")))
    return Reference.load(path, space.inventory.names), report


def known_table(
    context: TrialContext, space: Space, reference: Reference, resolution: float, folder: Path
) -> VisibilityTable:
    """Return the table around a reference."""
    path = folder / "visibility.json"
    if not path.is_file():
        table = visibility_table(context, space, reference, resolution)
        path.write_text(json.dumps(table.to_json()), encoding="utf-8")
    return VisibilityTable.from_json(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
