"""What halving costs and saves: replayed studies of so many trials, from the first to the last.

    python -m benchmarks.halving

In `search_quality` studies end when their cost is spent, wherever their trials are. Here they end
as real ones do: no more is proposed, and the better half of what waits goes on. The same searcher
without halving is compared when it had spent as much, and after as many trials.
"""

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from alrq_core.memory.cores import usable_cores
from benchmarks.quality_report import TRIALS, interval
from benchmarks.replay import Replay, area, replay
from benchmarks.search_quality import FOLDER, make_arm, setting, trial_cost

HALVED, WHOLE = "alrq", "alrq, no scheduler"


def main() -> None:
    """Replay the studies and print the table."""
    print_replayed(
        __doc__,
        "cost with halving, in full trials | without | area with halving | minus that without, at "
        "equal cost | at equal trials",
        compare,
        (1, 1, 3, 4, 4),
    )


def print_replayed(
    description: str,
    columns: str,
    measure: Callable[[int, int], Sequence[float]],
    digits: Sequence[int],
) -> None:
    """Print a table of means over seeds with their intervals, a row for each number of workers.

    Args:
        description: Of the command, whose flags are read.
        columns: Their names, but for the first.
        measure: Of workers and seed: a figure for each column.
        digits: Of each column.
    """
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 8])
    flags = parser.parse_args()
    print(f"| workers | {columns} |\n|{'-|' * (len(digits) + 1)}")
    with ProcessPoolExecutor(usable_cores()) as pool:
        for workers in flags.workers:
            found = list(pool.map(measure, [workers] * flags.seeds, range(flags.seeds)))
            pairs = zip(np.array(found).T.tolist(), digits, strict=True)
            cells = [interval(column, np.mean, count) for column, count in pairs]
            print(f"| {workers} | {' | '.join(cells)} |", flush=True)


def compare(workers: int, seed: int) -> tuple[float, ...]:
    """Return both costs, the area with halving, and by how much it is larger than without."""
    space, landscape, _, _ = setting(FOLDER)
    halved, whole = (whole_study(name, workers, seed) for name in (HALVED, WHOLE))
    reached = area(halved.fronts[-1], landscape.true_loss, space)
    by_then = sum(cost <= halved.costs[-1] for cost in whole.costs)
    fronts = whole.fronts[by_then - 1], whole.fronts[-1]
    differences = [reached - area(front, landscape.true_loss, space) for front in fronts]
    full = trial_cost(landscape.steps)
    return halved.costs[-1] / full, whole.costs[-1] / full, reached, *differences


def whole_study(name: str, workers: int, seed: int, max_memory_bytes: int | None = None) -> Replay:
    """Replay one study of `TRIALS` trials to its end."""
    space, landscape, table, costs = setting(FOLDER)
    return replay(
        make_arm(name, space, table),
        space,
        landscape,
        costs,
        limit=float("inf"),
        workers=workers,
        seed=seed,
        budget=TRIALS,
        closes=True,
        max_memory_bytes=max_memory_bytes,
    )


if __name__ == "__main__":
    main()
