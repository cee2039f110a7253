"""Whether what a search offers beats uniform and random allocations of its bytes, on replays.

    python -m benchmarks.finalists

Whole studies of the default search on the recorded curves, as in `halving`. Each allocation of the
front that a study offers at its end is compared with what it would have cost nothing to find: the
smallest uniform allocation of no fewer bytes, and random ones of as many. Losses are those of the
curves' model without noise, so that a lucky seed wins nothing.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from random import Random

import numpy as np

from alrq_core.cores import usable_cores
from benchmarks.halving import HALVED, whole_study
from benchmarks.quality_report import interval
from benchmarks.search_quality import FOLDER, setting
from search_spaces.controls import random_of_bytes, uniform_of_bytes
from search_spaces.costs import memory_bytes

# Random allocations for each of the front.
DRAWS = 20


def main() -> None:
    """Replay the studies and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 8])
    flags = parser.parse_args()
    print(
        "| workers | allocations offered | loss minus that of uniform ones | lower than those, % | "
        f"loss minus that of random ones | lower than those, % |\n|{'-|' * 6}"
    )
    with ProcessPoolExecutor(usable_cores()) as pool:
        for workers in flags.workers:
            found = list(pool.map(compare, [workers] * flags.seeds, range(flags.seeds)))
            columns = zip(np.array(found).T.tolist(), (1, 4, 0, 4, 0), strict=True)
            cells = [interval(column, np.mean, digits) for column, digits in columns]
            print(f"| {workers} | {' | '.join(cells)} |", flush=True)


def compare(workers: int, seed: int) -> tuple[float, ...]:
    """Return how many allocations a study offers, and for uniform and random ones the mean
    difference of the losses and the percentage of comparisons that the offered one wins.
    """
    space, landscape, _, _ = setting(FOLDER)
    front = whole_study(HALVED, workers, seed).fronts[-1]
    generator = Random(seed)
    uniform, others = [], []
    for allocation in front:
        size, loss = memory_bytes(allocation, space.inventory), landscape.true_loss(allocation)
        uniform.append(loss - landscape.true_loss(uniform_of_bytes(space, size)))
        drawn = [random_of_bytes(space, size, generator) for _ in range(DRAWS)]
        others += [loss - landscape.true_loss(control) for control in drawn]
    rows = [np.array(uniform), np.array(others)]
    return len(front), *(
        v for row in rows for v in (float(row.mean()), 100 * float((row < 0).mean()))
    )


if __name__ == "__main__":
    main()
