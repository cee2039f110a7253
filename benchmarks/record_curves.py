"""Records learning curves of many allocations, for replaying searches without training.

    python -m benchmarks.record_curves --folder curves --count 320

MiniLM-L6 on Rotten Tomatoes with a short recipe. Allocations come from mixed sources: uniform ones,
random draws, what the visibility table (its values blurred) predicts to be best at random sizes,
and any of those with a few modules changed. Some are trained with a second seed, for the noise.
One process a core, each with a log of its own; what was recorded is never done again, so the
command may be stopped and given again at any time. At the end all logs become `curves.parquet`.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch

from alrq_core.context import TrialContext, load_context
from alrq_core.memory.cores import usable_cores
from alrq_core.records import Recipe
from alrq_core.sensitivity.measure import visibility_table
from alrq_core.trial import TrialRun
from benchmarks.surrogate import CURVES, recorded_lines
from search_spaces.allocation import Allocation
from search_spaces.costs import memory_bytes
from search_spaces.spaces import Space, make_space
from tune.search.budget import BudgetSolver, space_choices
from tune.study.schedulers import rung_steps

MAX_STEPS = 100
# Where a curve was recorded must not matter; half as fast where the processor lacks its products.
DTYPE = "bfloat16"
SEED, SECOND_SEED = 0, 1
# Of the allocations that are no uniform ones.
SOURCES = {"random": 0.25, "frontier": 0.45, "mutation": 0.3}
REPEATED_EVERY = 12
# Factor on each predicted value, as the standard deviation of its logarithm.
BLURS = (0.0, 0.3, 1.0)
MUTATED = (1, 2, 4, 8)


@dataclass(frozen=True)
class Point:
    """An allocation to train, and where it comes from."""

    number: int
    source: str
    allocation: Allocation
    seed: int


def main() -> None:
    """Record what is missing, or merge what the workers recorded."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    flags.folder.mkdir(parents=True, exist_ok=True)
    if flags.worker is not None:
        record(flags.folder, flags.count, flags.worker)
        return
    if not list(flags.folder.glob("visibility-*.json")):
        # Once, before all others read it.
        context = load()
        visibility_table(context, make_space("joint", context.inventory), flags.folder)
    command = [
        sys.executable,
        "-m",
        "benchmarks.record_curves",
        "--folder",
        str(flags.folder),
        "--count",
        str(flags.count),
    ]
    workers = [
        subprocess.Popen([*command, "--worker", str(number)]) for number in range(usable_cores())
    ]
    codes = [worker.wait() for worker in workers]
    if any(codes):
        sys.exit(f"workers ended with {codes}")
    merge(flags.folder)


def load(max_steps: int = MAX_STEPS) -> TrialContext:
    """Return what all trials share."""
    torch.set_num_threads(1)
    recipe = Recipe(max_steps=max_steps, execution="dequantized", cpu_dtype=DTYPE, device="cpu")
    return load_context("minilm", "rotten_tomatoes", recipe)


def record(folder: Path, count: int, worker: int) -> None:
    """Train every allocation of a worker's share that has no line yet."""
    context = load()
    space = make_space("joint", context.inventory)
    done = {line["number"] for line in recorded_lines(folder)}
    with (folder / f"worker-{worker}.jsonl").open("a", encoding="utf-8") as file:
        # Ends a line that was cut short.
        file.write("\n")
        for point in points(context, space, folder, count):
            if point.number % usable_cores() == worker and point.number not in done:
                file.write(json.dumps(train(context, point)) + "\n")
                file.flush()


def train(context: TrialContext, point: Point) -> dict[str, object]:
    """Return the curve of one allocation."""
    started = time.time()
    run = TrialRun(context, point.allocation, point.seed)
    reports = [run.advance(step) for step in rung_steps(MAX_STEPS)]
    return {
        "number": point.number,
        "source": point.source,
        "allocation": point.allocation.encode(),
        "seed": point.seed,
        "memory_bytes": run.receipt.memory_bytes,
        "steps": [report.step for report in reports],
        "losses": [report.loss for report in reports],
        "standard_errors": [report.loss_standard_error for report in reports],
        "accuracies": [report.accuracy for report in reports],
        "seconds": round(time.time() - started, 1),
    }


def points(context: TrialContext, space: Space, folder: Path, count: int) -> Iterator[Point]:
    """Yield all points in an order that does not depend on what was recorded.

    Sources are mixed, so that a recording that was cut short has some of each.
    """
    allocations = list(mixed(context, space, folder, count))
    number = 0
    for place, (source, allocation) in enumerate(allocations):
        seeds = (SEED, SECOND_SEED) if place % REPEATED_EVERY == 0 else (SEED,)
        for seed in seeds:
            yield Point(number, source, allocation, seed)
            number += 1


def mixed(
    context: TrialContext, space: Space, folder: Path, count: int
) -> Iterator[tuple[str, Allocation]]:
    """Yield different allocations, each with its source."""
    generator = random.Random(SEED)
    table = visibility_table(context, space, folder)
    solver = BudgetSolver(space.inventory, space_choices(space))
    values = solver.values(table.value)
    sizes = [memory_bytes(end, space.inventory) for end in (space.smallest(), space.largest())]
    uniform = [
        space.nearest_uniform(bits, rank) for bits in (2, 3, 4, 8, 16) for rank in (0, 2, 8, 32)
    ]
    generator.shuffle(uniform)
    seen: dict[Allocation, None] = {}
    while len(seen) < count:
        source = generator.choices(list(SOURCES), list(SOURCES.values()))[0]
        if uniform and generator.random() < 0.1:
            source, allocation = "uniform", uniform.pop()
        elif source == "random":
            allocation = space.draw_all(generator)
        elif source == "frontier" or not seen:
            source = "frontier"
            limit = np.exp(generator.uniform(np.log(sizes[0]), np.log(sizes[1])))
            blur = generator.choice(BLURS)
            factors = [generator.lognormvariate(0, blur) for _ in values]
            allocation = solver.solve(values * np.array(factors), max(int(limit), sizes[0]))
        else:
            choices = dict(generator.choice(list(seen)).choices)
            for name in generator.sample(list(choices), generator.choice(MUTATED)):
                choices[name] = space.draw(name, generator)
            allocation = Allocation(choices)
        if allocation not in seen:
            seen[allocation] = None
            yield source, allocation


def merge(folder: Path) -> None:
    """Write all curves into one file."""
    found = recorded_lines(folder)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), folder / CURVES)
    print(f"{len(found)} curves in {folder / 'curves.parquet'}")


if __name__ == "__main__":
    main()
