"""What starts from a reference are worth by what they are made with, and what trains them.

    python -m benchmarks.starts --results results/starts --seeds 2
    python -m benchmarks.starts --results results/starts-sft --model smollm2 --task sft --data FILE

MiniLM-L6 with the default recipe, or what `setups.py` says. For each seed, B-FP is trained. Starts
are then made with the second moments of the base's inputs alone, and with both factors of the
Fisher information of the reference's answers, and scored before any step; and four allocations
whose starts are near or far are trained towards its answers at several rates. Prints Markdown
tables, a column a seed; every score is kept, and the command may be given again.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random

import torch

from alrq_core.adapters.reference import Reference
from alrq_core.adapters.starts import Corrections
from alrq_core.context import TrialContext
from alrq_core.data.fisher import Factors
from alrq_core.data.moments import InputMoments
from alrq_core.memory.cores import usable_cores
from alrq_core.trial import TrialRun
from benchmarks.real_search import Job, known_table, trained
from benchmarks.setups import SETUPS, load
from search_spaces.allocation import Allocation
from search_spaces.controls import random_of_bytes
from tune.search.budget import BudgetSolver, space_choices

UNIFORM = ((2, 2), (2, 8), (3, 2), (3, 8))
# None for the product's own.
RATES = (None, 6e-5, 1.25e-4, 2.5e-4, 5e-4, 1e-3)
Row = dict[str, float | str]


def main() -> None:
    """Score what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--model", choices=SETUPS, default="minilm")
    parser.add_argument("--task", default="rotten_tomatoes")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    about = given.model, given.task, given.data
    jobs = [Job(given.results, seed, *about) for seed in range(given.seeds)]
    with ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn")) as pool:
        found = list(pool.map(scores, jobs))
    print_table("divergence by inputs alone / by both factors", found, "start", show_starts)
    print_table("rate: divergence, test loss (step kept)", found, "trained", show_trained)


def scores(job: Job) -> dict[str, Row]:
    """Return the rows of one seed by their names."""
    torch.set_num_threads(1)
    context, space = load(job.task, job.data, job.model)
    folder, sizes = job.results / f"seed-{job.seed}", SETUPS[job.model].limits[:2]
    folder.mkdir(parents=True, exist_ok=True)
    reference, report = trained(context, space, job.seed, folder)
    table = known_table(context, space, reference, report.loss_standard_error, folder)
    solver = BudgetSolver(space.inventory, space_choices(space))
    best = dict(zip(sizes, solver.frontier(solver.values(table.damage), sizes), strict=True))
    log = folder / "rows.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    rows: dict[str, Row] = {row["name"]: row for row in map(json.loads, lines)}

    def keep(name: str, measure: Callable[[], Row]) -> None:
        if name not in rows:
            rows[name] = {"name": name, **measure()}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[name]) + "\n")

    tuned = {f"table's best of {size / 1e6} MB": found for size, found in best.items()}
    uniform = {f"{b} bits, rank {r}": space.nearest_uniform(b, r) for b, r in UNIFORM}
    for name, allocation in (tuned | uniform).items():
        keep(f"start {name}", partial(both_starts, context, reference, allocation))
    tuned["2 bits, rank 16"] = space.nearest_uniform(2, 16)
    tuned["random"] = random_of_bytes(space, sizes[0], Random(f"{job.seed}-{sizes[0]}"))
    for of, allocation in tuned.items():
        for rate in RATES:
            name = f"trained {of}, {'as by default' if rate is None else f'{rate:g}'}"
            keep(name, partial(at_rate, context, reference, allocation, rate))
    return rows


def both_starts(context: TrialContext, reference: Reference, allocation: Allocation) -> Row:
    """Return divergences of starts by the inputs alone, and by both factors."""
    found = []
    for known in ({}, {"factors": lambda _: Even(context.moments)}):
        other, fresh = changed(context, {}), replace(reference, corrections=Corrections())
        other.__dict__.update(known)
        found.append(TrialRun(other, allocation, fresh.seed, reference=fresh).advance(0).divergence)
    return {"fisher": found[0] or 0.0, "inputs": found[1] or 0.0}


@dataclass(frozen=True)
class Even:
    """Factors of the inputs alone."""

    moments: InputMoments

    def of(self, name: str) -> Factors:
        """Return those of a module."""
        return Factors(self.moments[name])


def changed(context: TrialContext, recipe: Mapping[str, float | None]) -> TrialContext:
    """Return a context with another recipe, and the same codes."""
    other = replace(context, recipe=replace(context.recipe, **recipe))  # type: ignore[arg-type]
    other.__dict__.update(packed=context.packed, moments=context.moments)
    return other


def at_rate(
    context: TrialContext, reference: Reference, allocation: Allocation, rate: float | None
) -> Row:
    """Return what an allocation is worth before any step, and trained at a rate."""
    run = TrialRun(
        changed(context, {"tune_learning_rate": rate}),
        allocation,
        reference.seed,
        reference=reference,
    )
    start = run.advance(0)
    report = run.advance(run.recipe.max_steps)
    assert start.divergence is not None and report.divergence is not None
    return {
        "start": start.divergence,
        "divergence": report.divergence,
        "kept": report.kept_step or 0,
        "test_loss": run.test().loss,
    }


def print_table(
    title: str, found: list[dict[str, Row]], kind: str, show: Callable[[Row], str]
) -> None:
    """Print one kind of rows, a column a seed."""
    print(f"\n| {title} | {' | '.join(f'seed {seed}' for seed in range(len(found)))} |")
    print(f"|{'-|' * (len(found) + 1)}")
    for name in (name for name in found[0] if name.startswith(kind)):
        cells = [show(rows[name]) for rows in found]
        print(f"| {name.removeprefix(kind).strip()} | {' | '.join(cells)} |")


def show_starts(row: Row) -> str:
    """Return both divergences."""
    return f"{row['inputs']:.4f} / {row['fisher']:.4f}"


def show_trained(row: Row) -> str:
    """Return divergences before and after, test loss, and the step that was kept."""
    divergences = f"{row['start']:.4f} to {row['divergence']:.4f}"
    return f"{divergences}, {row['test_loss']:.4f} ({row['kept']})"


if __name__ == "__main__":
    main()
