"""What allocations are worth that start from a reference, before any step and after a few.

    python -m benchmarks.reference_starts --seeds 3 --results results/reference-starts

MiniLM-L6 on Rotten Tomatoes. For each seed, B-FP is trained with the plain recipe, and the
divergence that each format and rank of each module brings about is measured to first order. At
three sizes of the deployed model, uniform, random and the table's best allocations start from that
seed's B-FP and are trained towards its answers. Scored on the test split, each paired with its own
B-FP. Prints Markdown tables with 95 % intervals (Student's t over seeds); every score is kept, and
the command may be stopped and given again.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
import torch
from scipy.stats import kendalltau

from alrq_core.adapters.reference import Reference
from alrq_core.context import TrialContext, load_context
from alrq_core.memory.cores import usable_cores
from alrq_core.records import Recipe
from alrq_core.sensitivity.shifts import visibility_table
from alrq_core.trial import TrialRun
from benchmarks.codes import gaps, interval
from search_spaces.allocation import Allocation
from search_spaces.controls import random_of_bytes
from search_spaces.costs import average_bits, average_rank, memory_bytes
from search_spaces.fixed import fixed_allocation
from search_spaces.formats import GROUP_SIZE, Formats
from search_spaces.spaces import Space, make_space
from tune.search.budget import BudgetSolver, space_choices

SIZES = (8_300_000, 9_200_000, 10_700_000)
KINDS = ("uniform", "random", "table's best")
TUNE_STEPS = 50
# Allocations of all sizes between the smallest and the largest of `SIZES`, to be ordered.
ORDERED = 24
Row = dict[str, float | str]


def main() -> None:
    """Score what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    given = parser.parse_args()
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    given.results.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn")) as pool:
        rows = [row for part in pool.map(partial(scores, given.results), seeds) for row in part]
    report(rows)


class Log:
    """Rows of one seed, each kept once it is known."""

    def __init__(self, path: Path, seed: int) -> None:
        """Begin with what the file holds."""
        kept = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self._path, self._seed = path, seed
        self.rows: list[Row] = [json.loads(line) for line in kept]
        self._known = {str(row["id"]) for row in self.rows}

    def keep(self, name: str, measure: Callable[[], Row]) -> None:
        """Measure a row, unless it is known."""
        if name in self._known:
            return
        self.rows.append({"id": name, "seed": self._seed, **measure()})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")


def scores(folder: Path, seed: int) -> list[Row]:
    """Return the rows of one seed."""
    torch.set_num_threads(1)
    context, space = load()
    log = Log(folder / f"seed-{seed}.jsonl", seed)
    path = folder / f"seed-{seed}.safetensors"
    log.keep("B-FP", partial(train_reference, context, space, seed, path))
    reference = Reference.load(path, context.inventory.names)
    table = visibility_table(context, space, reference)
    solver = BudgetSolver(context.inventory, space_choices(space))
    for size in SIZES:
        drawn = random_of_bytes(space, size, Random(f"{seed}-{size}"))
        best = solver.solve(solver.values(table.damage), size)
        every = (uniform_of(space, size), drawn, best)
        for kind, allocation in zip(KINDS, every, strict=True):
            label: Row = {"size": size, "kind": kind}
            for step in (0, TUNE_STEPS):
                measure = partial(started, context, allocation, reference, step, label)
                log.keep(f"{size} {kind} {step}", measure)
    generator = Random(f"ordered-{seed}")
    for number in range(ORDERED):
        size = int(generator.uniform(min(SIZES), max(SIZES)))
        best = solver.solve(solver.values(table.damage), size)
        allocation = mixed(space, best, size, generator)
        label = {"kind": "ordered", "predicted": table.predict(allocation)}
        measure = partial(started, context, allocation, reference, 0, label, test=False)
        log.keep(f"ordered {number}", measure)
    return log.rows


def train_reference(context: TrialContext, space: Space, seed: int, path: Path) -> Row:
    """Train B-FP, keep it as the seed's reference, and return its row."""
    run = TrialRun(context, fixed_allocation("B-FP", context.inventory, space.formats), seed)
    run.advance(context.recipe.max_steps)
    run.reference().save(path)
    return {"kind": "B-FP", "step": context.recipe.max_steps, **tested(run)}


def started(
    context: TrialContext,
    allocation: Allocation,
    reference: Reference,
    step: int,
    label: Row,
    test: bool = True,
) -> Row:
    """Return the row of an allocation after its start and so many steps."""
    inventory = context.inventory
    run = TrialRun(context, allocation, reference.seed, reference=reference)
    report = run.advance(0)
    if step:
        report = run.advance(step)
    assert report.divergence is not None
    return label | {
        "mb": memory_bytes(allocation, inventory) / 1e6,
        "bits": average_bits(allocation, inventory),
        "rank": average_rank(allocation, inventory),
        "step": step,
        "kept_step": report.kept_step or 0,
        "loss": report.loss,
        "divergence": report.divergence,
        **(tested(run) if test else {}),
    }


def mixed(space: Space, best: Allocation, size: int, generator: Random) -> Allocation:
    """Return an allocation whose units are as in the best one of a size, or random."""
    drawn, share = random_of_bytes(space, size, generator), generator.random()
    choices = dict(best.choices)
    for unit in space.units:
        if generator.random() < share:
            choices.update({name: drawn.choices[name] for name in unit})
    return Allocation(choices)


def uniform_of(space: Space, size: int) -> Allocation:
    """Return the largest allocation that fits with the same bits and rank in all target modules."""
    found = []
    for bits, rank, embedding_bits in product((2, 3, 4), (2, 4, 8, 16, 32), (2, 3, 4)):
        choices = dict(space.nearest_uniform(bits, rank).choices)
        for module in space.inventory.embeddings:
            choices[module.name] = space.choice(module.name, embedding_bits, 0, GROUP_SIZE)
        found.append(Allocation(choices))
    fitting = [one for one in found if memory_bytes(one, space.inventory) <= size]
    return max(fitting, key=lambda one: memory_bytes(one, space.inventory))


def tested(run: TrialRun) -> dict[str, float]:
    """Return test loss and accuracy."""
    test = run.test()
    return {"test_loss": test.loss, "accuracy": test.value}


@cache
def load() -> tuple[TrialContext, Space]:
    """Return what all trials of a process share, and the space."""
    recipe = Recipe(execution="dequantized", tune_steps=TUNE_STEPS, device="cpu")
    context = load_context("minilm", "rotten_tomatoes", recipe)
    return context, make_space("joint", context.inventory, Formats(backend="gptq"))


def report(rows: list[Row]) -> None:
    """Print both tables."""
    references = {row["seed"]: row for row in rows if row["kind"] == "B-FP"}
    each = (f"{r['test_loss']:.4f} ({per_cent(r):.1f} %)" for r in references.values())
    print("B-FP, test loss and accuracy:", *each)
    print("\n| MB | allocation | bits | rank | steps | test loss | accuracy, % | minus B-FP's |")
    print("|---|---|---|---|---|---|---|---|")
    groups: dict[tuple[float, int, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["kind"] in KINDS:
            groups[float(row["size"]), int(row["step"]), str(row["kind"])].append(row)
    for (_, step, kind), found in sorted(groups.items()):
        mb, bits, rank = (np.mean([float(r[key]) for r in found]) for key in ("mb", "bits", "rank"))
        ours = [per_cent(r) for r in found]
        apart = gaps(ours, [per_cent(references[r["seed"]]) for r in found])
        loss = interval([float(r["test_loss"]) for r in found])
        cells = (f"{mb:.2f}", kind, f"{bits:.2f}", f"{rank:.1f}", str(step), loss)
        print(f"| {' | '.join(cells)} | {np.mean(ours):.1f} | {interval(apart)} |")
    print("\n| seed | Kendall's tau of the table with the divergence | with the validation loss |")
    print("|---|---|---|")
    for seed in references:
        ordered = [row for row in rows if row["seed"] == seed and row["kind"] == "ordered"]
        columns = ([float(row[key]) for row in ordered] for key in ("divergence", "loss"))
        predicted = [float(row["predicted"]) for row in ordered]
        taus = [kendalltau(predicted, column).statistic for column in columns]
        print(f"| {seed} | {taus[0]:.2f} | {taus[1]:.2f} |")


def per_cent(row: Row) -> float:
    """Return the accuracy on the test split."""
    return 100 * float(row["accuracy"])


if __name__ == "__main__":
    main()
