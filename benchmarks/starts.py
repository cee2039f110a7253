"""What starts from a reference are worth by the moments they are made with, and what trains them.

    python -m benchmarks.starts --results results/starts --seeds 2

MiniLM-L6 on Rotten Tomatoes. For each seed, B-FP is trained with the default recipe. Starts are
then made with the second moments of the base's inputs and with those of the reference's, and scored
before any step; and the table's best allocations of two sizes are trained towards its answers at
several rates, for several numbers of steps. Prints Markdown tables, a column a seed; every score is
kept, and the command may be given again.
"""

import argparse
import copy
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from alrq_core.adapters.reference import Reference
from alrq_core.adapters.starts import Corrections
from alrq_core.context import TrialContext
from alrq_core.data.moments import InputMoments
from alrq_core.memory.cores import usable_cores
from alrq_core.trial import TrialRun
from benchmarks.real_search import known_table, load, trained
from search_spaces.allocation import Allocation
from search_spaces.spaces import Space
from tune.search.budget import BudgetSolver, space_choices

SIZES = (7_900_000, 8_300_000)
UNIFORM = ((2, 2), (2, 8), (3, 2), (3, 8))
RECIPES = (
    *((25, 1e-3), (50, 2.5e-4), (50, 5e-4), (50, 1e-3), (50, 2e-3)),
    *((100, 5e-4), (100, 1e-3), (100, 2e-3), (200, 1e-3)),
)
Row = dict[str, float | str]


def main() -> None:
    """Score what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    with ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn")) as pool:
        found = list(pool.map(partial(scores, given.results), range(given.seeds)))
    print_table("divergence, base's moments / reference's", found, "moments", show_moments)
    print_table("test loss (accuracy, %; step kept)", found, "recipe", show_recipe)


def scores(results: Path, seed: int) -> dict[str, Row]:
    """Return the rows of one seed by their names."""
    torch.set_num_threads(1)
    context, space = load("rotten_tomatoes", None)
    folder = results / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    reference, report = trained(context, space, seed, folder)
    table = known_table(context, space, reference, report.loss_standard_error, folder)
    solver = BudgetSolver(space.inventory, space_choices(space))
    best = dict(zip(SIZES, solver.frontier(solver.values(table.damage), SIZES), strict=True))
    log = folder / "rows.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    rows: dict[str, Row] = {row["name"]: row for row in map(json.loads, lines)}

    def keep(name: str, measure: Callable[[], Row]) -> None:
        if name not in rows:
            rows[name] = {"name": name, **measure()}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[name]) + "\n")

    every = {f"table's best of {size / 1e6} MB": found for size, found in best.items()}
    every |= {f"{b} bits, rank {r}": space.nearest_uniform(b, r) for b, r in UNIFORM}
    theirs = reference_moments(context, reference)
    for name, allocation in every.items():
        keep(f"moments {name}", partial(with_moments, context, reference, allocation, theirs))
    for size, allocation in best.items():
        for steps, rate in RECIPES:
            name = f"recipe {size / 1e6} MB, {steps} steps at {rate:g}"
            keep(name, partial(with_recipe, context, space, reference, allocation, steps, rate))
    return rows


def reference_moments(context: TrialContext, reference: Reference) -> InputMoments:
    """Return the moments of the inputs of the tuned model's modules."""
    tuned = copy.deepcopy(context.base)
    for name in reference.adapters:
        weight = tuned.get_submodule(name).get_parameter("weight")
        weight.data = context.tuned_weight(reference, name)
    modules = {target.name: target.name for target in context.inventory.targets}
    return InputMoments(tuned, modules, context._calibration, torch.device("cpu"), ())


def changed(
    context: TrialContext, recipe: Mapping[str, float], moments: InputMoments
) -> TrialContext:
    """Return a context with another recipe and other moments, and the same codes."""
    other = replace(context, recipe=replace(context.recipe, **recipe))  # type: ignore[arg-type]
    other.__dict__.update(packed=context.packed, moments=moments)
    return other


def with_moments(
    context: TrialContext, reference: Reference, allocation: Allocation, theirs: InputMoments
) -> Row:
    """Return divergences of starts that are made with both kinds of moments."""
    found = []
    for moments in (context.moments, theirs):
        fresh = replace(reference, corrections=Corrections())
        run = TrialRun(changed(context, {}, moments), allocation, fresh.seed, reference=fresh)
        found.append(run.advance(0).divergence or 0.0)
    return {"base": found[0], "reference": found[1]}


def with_recipe(
    context: TrialContext,
    space: Space,
    reference: Reference,
    allocation: Allocation,
    steps: int,
    rate: float,
) -> Row:
    """Return what an allocation is worth after so many steps."""
    recipe = {"tune_steps": steps, "tune_learning_rate": rate}
    other = changed(context, recipe, context.moments)
    # The reference's answers to as many sequences as these steps see.
    itself = TrialRun(other, reference.allocation, reference.seed, reference=reference)
    answers = {**reference.answers, "tuned": itself._scorer.answers_to(other.tuned)}
    run = TrialRun(other, allocation, reference.seed, reference=replace(reference, answers=answers))
    run.advance(0)
    report, test = run.advance(steps), run.test()
    return {
        "divergence": report.divergence or 0.0,
        "loss": report.loss,
        "kept": report.kept_step or 0,
        "test_loss": test.loss,
        "accuracy": 100 * test.value,
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


def show_moments(row: Row) -> str:
    """Return both divergences."""
    return f"{row['base']:.4f} / {row['reference']:.4f}"


def show_recipe(row: Row) -> str:
    """Return test loss and accuracy, and the step that was kept."""
    return f"{row['test_loss']:.4f} ({row['accuracy']:.1f}; {row['kept']})"


if __name__ == "__main__":
    main()
