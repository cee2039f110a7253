"""Whether what a search offers beats uniform and random allocations of its bytes, on replays.

    python -m benchmarks.finalists

Whole studies of the default search on the recorded curves, as in `halving`. Each allocation of the
front that a study offers at its end is compared with what it would have cost nothing to find: the
smallest uniform allocation of no fewer bytes, and random ones of as many. Losses are those of the
curves' model without noise, so that a lucky seed wins nothing.
"""

from random import Random

import numpy as np

from benchmarks.halving import HALVED, print_replayed, whole_study
from benchmarks.search_quality import FOLDER, setting
from search_spaces.controls import random_of_bytes, uniform_of_bytes
from search_spaces.costs import memory_bytes

# Random allocations for each of the front.
DRAWS = 20


def main() -> None:
    """Replay the studies and print the table."""
    print_replayed(
        __doc__,
        "allocations offered | loss minus that of uniform ones | lower than those, % | loss minus "
        "that of random ones | lower than those, %",
        compare,
        (1, 4, 0, 4, 0),
    )


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
