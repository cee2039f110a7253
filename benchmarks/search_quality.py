"""Compares searchers and schedulers by studies that are replayed on recorded learning curves.

    python -m benchmarks.search_quality --results replays --seeds 20

Curves come from `record_curves.py`. A Gaussian process is fitted to them that knows nothing of the
visibility table; its cross-validated errors are printed first. Every study then runs with the code
of a real one, but for training. What was replayed is never done again, so the command may be
stopped and given again. Costs are in optimiser steps, scoring and the table included.
"""

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np

from alrq_core.memory.cores import usable_cores
from alrq_core.models.loading import inspect_model
from alrq_core.sensitivity.table import VisibilityTable, flat_table
from benchmarks.quality_report import TRIALS, write_report
from benchmarks.replay import Arm, Costs, area, replay
from benchmarks.surrogate import Curves, Landscape, load_curves, recorded_table
from search_spaces.spaces import Space, make_space

FOLDER = Path(__file__).parent / "curves"
WORKERS = (1, 8)
# Seconds that scoring a sequence of the validation split takes, in those of a step of 32: 427
# sequences took as long as 4 steps.
SCORED_HALF, SCORED_FULL = 4.0, 8.0
# Searcher, scheduler, anchors, whether trials are scored only once, whether the table is measured.
ARMS: dict[str, tuple[str, str, int, bool, bool]] = {
    "alrq": ("alrq", "front-asha", 0, False, True),
    "alrq, no scheduler": ("alrq", "none", 0, False, True),
    "alrq, no table": ("alrq", "front-asha", 0, False, False),
    "alrq, no table, no scheduler": ("alrq", "none", 0, False, False),
    "alrq with anchors, no scheduler": ("alrq", "none", 8, False, True),
    "alrq with asha": ("alrq", "asha", 0, False, True),
    "alrq with median": ("alrq", "median", 0, False, True),
    "tpe": ("tpe", "none", 0, True, False),
    "tpe with front-asha": ("tpe", "front-asha", 0, False, False),
    "tpe with anchors and front-asha": ("tpe", "front-asha", 8, False, False),
    "tpe with anchors": ("tpe", "none", 8, True, False),
    "nsga2": ("nsga2", "none", 0, True, False),
    "gp": ("gp", "none", 0, True, False),
    "random": ("random", "none", 0, True, False),
}


def main() -> None:
    """Replay what is missing, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--curves", type=Path, default=FOLDER)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--workers", nargs="*", type=int, default=list(WORKERS))
    flags = parser.parse_args()
    flags.results.mkdir(parents=True, exist_ok=True)
    log = flags.results / "replays.jsonl"
    done = {(line["arm"], line["workers"], line["seed"]) for line in lines(log)}
    wanted = [
        (flags.curves, arm, workers, seed)
        for seed in range(flags.seeds)
        for workers in flags.workers
        for arm in flags.arms
        if (arm, workers, seed) not in done
    ]
    with ProcessPoolExecutor(usable_cores()) as pool, log.open("a", encoding="utf-8") as file:
        for line in pool.map(_replayed, *zip(*wanted, strict=True)) if wanted else ():
            file.write(json.dumps(line) + "\n")
            file.flush()
    _, landscape, _, _ = setting(flags.curves)
    quality_of_fit = [asdict(rung) for rung in landscape.quality]
    write_report(flags.results, list(lines(log)), quality_of_fit, trial_cost(landscape.steps))


def lines(path: Path) -> Iterator[dict[str, object]]:
    """Yield what was replayed."""
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(text)


@cache
def setting(folder: Path) -> tuple[Space, Landscape, VisibilityTable, Costs]:
    """Return what all replays share, once a process."""
    inventory = inspect_model("minilm", "classification", 2)
    curves = load_curves(folder, inventory)
    table, space = recorded_table(folder), make_space("joint", inventory)
    return space, Landscape(curves, inventory), table, make_costs(table, curves)


def make_costs(table: VisibilityTable, curves: Curves) -> Costs:
    """Return what scoring and the table cost: for the latter, how many steps took as long."""
    trial = curves.steps[-1] + 2 * SCORED_HALF + SCORED_FULL
    measured = float(table.seconds / np.median(curves.seconds) * trial)
    return Costs(half=SCORED_HALF, full=SCORED_FULL, table=measured)


def make_arm(name: str, space: Space, table: VisibilityTable) -> Arm:
    """Return one of `ARMS`, with its table or a flat one."""
    searcher, scheduler, anchors, plain, measured = ARMS[name]
    return Arm(
        name=name,
        searcher=searcher,
        scheduler=scheduler,
        anchors=anchors,
        plain=plain,
        table=table if measured else flat_table(space),
    )


def trial_cost(steps: tuple[int, ...]) -> float:
    """Return what a trial costs that is scored at its end only."""
    return steps[-1] + SCORED_FULL


def _replayed(folder: Path, name: str, workers: int, seed: int) -> dict[str, object]:
    space, landscape, table, costs = setting(folder)
    found = replay(
        make_arm(name, space, table),
        space,
        landscape,
        costs,
        limit=TRIALS * trial_cost(landscape.steps),
        workers=workers,
        seed=seed,
        budget=TRIALS,
    )
    areas = [area(front, landscape.true_loss, space) for front in found.fronts]
    return {
        "arm": name,
        "workers": workers,
        "seed": seed,
        "costs": [round(cost, 1) for cost in found.costs],
        "volumes": [round(value, 5) for value in areas],
    }


if __name__ == "__main__":
    main()
