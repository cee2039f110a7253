"""What codes are worth and what allocations are worth, at the same bytes.

    python -m benchmarks.codes_and_allocations --results results/codes-and-allocations

MiniLM-L6 on Rotten Tomatoes, bfloat16, default starts. The codes of `gptq` and of HQQ, each under
four allocations at two sizes of all target modules with their adapters: uniform ones in 2 bits, at
the rank that fills the size (HQQ's scales and zero points take what is four ranks of `gptq`);
random ones, another for each seed; the best by the visibility table; and the best that a search of
so many trials offers for that size, which is one search a kind of codes. Embeddings have 16 bits,
since HQQ has no others for them. Scored on the test split, with seeds that no search has seen.

Every loss is kept: the command may be stopped and given again.
"""

import argparse
import csv
import json
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np

from alrq_core.context import TrialContext
from alrq_core.memory.cores import usable_cores
from alrq_core.sensitivity.measure import visibility_table
from alrq_core.trial import TrialRun
from benchmarks import record_curves
from benchmarks.codes import allocation_of, gaps, half_interval, interval
from benchmarks.real_search import FRESH_SEED, Trained
from benchmarks.replay import Costs, replay
from benchmarks.search_quality import make_arm
from search_spaces.allocation import Allocation
from search_spaces.controls import random_of_bytes
from search_spaces.costs import average_bits, average_rank, memory_bytes, target_bytes
from search_spaces.formats import GROUP_SIZE, Format, Formats
from search_spaces.spaces import Space, make_space
from tune.search.budget import BudgetSolver, space_choices

CODES = ("hqq", "gptq")
KINDS = ("uniform", "random", "table's best", "searched")
# Of all target modules: `gptq` in 2 bits at ranks 8 and 16, HQQ at 4 and 12.
SIZES = (3_649_536, 4_313_088)
SEARCH_SEED = 0


@dataclass(frozen=True)
class Job:
    """One training: which codes at which size, chosen how, with which seed, for how many steps."""

    codes: str
    size: int
    kind: str
    allocation: Allocation
    seed: int
    steps: int


def main() -> None:
    """Search, train what was found and what wasn't searched for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    log = given.results / "scores.jsonl"
    with ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn")) as pool:
        wanted = [job for part in pool.map(partial(jobs, given), CODES) for job in part]
        known = read(log)
        missing = [job for job in wanted if key(job) not in known]
        with log.open("a", encoding="utf-8") as file:
            for job, score in zip(missing, pool.map(scored, missing), strict=True):
                known[key(job)] = score
                file.write(json.dumps([*key(job), *score]) + "\n")
                file.flush()
    report(wanted, known, given.results / "table.csv")


def jobs(given: argparse.Namespace, codes: str) -> list[Job]:
    """Return what is trained with one kind of codes, after searching."""
    context = load(given.max_steps)
    space = space_of(codes, context)
    inventory, smallest = space.inventory, space.smallest()
    other = memory_bytes(smallest, inventory) - target_bytes(smallest, inventory)
    folder = given.results / codes
    losses = Trained(context, folder)
    table = visibility_table(context, space, folder, SEARCH_SEED)
    found = replay(
        make_arm("alrq", space, table),
        space,
        losses,
        Costs(half=0.0, full=0.0, table=0.0),
        limit=float("inf"),
        workers=1,
        seed=SEARCH_SEED,
        budget=given.trials,
        closes=True,
        max_memory_bytes=max(SIZES) + other,
    ).fronts[-1]
    solver = BudgetSolver(inventory, space_choices(space))
    wanted = []
    for size in SIZES:
        best = solver.solve(solver.values(table.value), size + other)
        # Of a front by bytes, the last that fits has the lowest loss.
        *_, last = (a for a in found if target_bytes(a, inventory) <= size)
        for seed in range(given.seeds):
            drawn = random_of_bytes(space, size + other, Random(f"{codes}-{size}-{seed}"))
            every = (uniform(context, codes, size), drawn, best, last)
            wanted += [
                Job(codes, size, kind, allocation, FRESH_SEED + seed, given.max_steps)
                for kind, allocation in zip(KINDS, every, strict=True)
            ]
    return wanted


def scored(job: Job) -> tuple[float, float]:
    """Return loss and accuracy on the test split."""
    run = TrialRun(load(job.steps), job.allocation, job.seed)
    run.advance(job.steps)
    test = run.test()
    return test.loss, test.value


def space_of(codes: str, context: TrialContext) -> Space:
    """Return the joint space over one kind of codes, the embedding in 16 bits."""
    space = make_space("joint", context.inventory, Formats(backend=codes))
    fixed = {module.name: (16,) for module in context.inventory.embeddings}
    return replace(space, bits={**space.bits, **fixed})


def uniform(context: TrialContext, codes: str, size: int) -> Allocation:
    """Return 2 bits everywhere, at the rank that fills the size."""
    at = partial(allocation_of, context, Format(2, codes, GROUP_SIZE))
    sizes = [target_bytes(at(rank), context.inventory) for rank in (0, 1)]
    return at((size - sizes[0]) // (sizes[1] - sizes[0]))


@cache
def load(steps: int) -> TrialContext:
    """Return what all trials of a process share."""
    return record_curves.load(steps)


def key(job: Job) -> tuple[str, int, int]:
    """Return what tells one training from another."""
    return job.allocation.encode(), job.seed, job.steps


def read(log: Path) -> dict[tuple[str, int, int], tuple[float, float]]:
    """Return what was scored before."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return {
        (a, seed, steps): (loss, value) for a, seed, steps, loss, value in map(json.loads, lines)
    }


def report(
    wanted: list[Job], known: dict[tuple[str, int, int], tuple[float, float]], path: Path
) -> None:
    """Print a row for each kind of allocation, and what the better codes gain under each.

    The file gets losses with their intervals.
    """
    inventory = load(wanted[0].steps).inventory
    rows: dict[tuple[int, str, str], list[Job]] = defaultdict(list)
    for job in wanted:
        rows[job.size, job.codes, job.kind].append(job)
    losses = {row: [known[key(job)][0] for job in found] for row, found in rows.items()}
    print("| size | codes | allocation | bits | rank | MB | loss | accuracy, % | against uniform |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (size, codes, kind), found in rows.items():
        bits, rank, taken = (
            np.mean([measure(job.allocation, inventory) for job in found])
            for measure in (average_bits, average_rank, target_bytes)
        )
        loss, uniform_loss = losses[size, codes, kind], losses[size, codes, KINDS[0]]
        accuracy = 100 * np.mean([known[key(job)][1] for job in found])
        against = interval(gaps(loss, uniform_loss)) if kind != KINDS[0] else ""
        cells = (f"{bits:.2f}", f"{rank:.1f}", f"{taken / 1e6:.2f}", interval(loss))
        shown = " | ".join((f"{size / 1e6:.2f} MB", codes, kind, *cells))
        print(f"| {shown} | {accuracy:.1f} | {against} |")
    print("\n| size | allocation | loss with gptq minus that with HQQ |\n|---|---|---|")
    for size, kind in product(SIZES, KINDS):
        gained = gaps(losses[size, "gptq", kind], losses[size, "hqq", kind])
        print(f"| {size / 1e6:.2f} MB | {kind} | {interval(gained)} |")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("target_mb", "codes", "allocation", "loss", "half_interval"))
        for (size, codes, kind), loss in losses.items():
            figures = (f"{np.mean(loss):.4f}", f"{half_interval(loss):.4f}")
            writer.writerow((f"{size / 1e6:.2f}", codes, kind, *figures))


if __name__ == "__main__":
    main()
