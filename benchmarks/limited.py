"""The best allocation under a limit on bytes that each search offers, on replays.

    python -m benchmarks.limited

Whole studies of 50 trials on the recorded curves, as in `halving`, with `--max-memory`. Of what a
study offers at its end, the one that it believes to have the lowest loss counts, by its loss
without noise. Beside them: the best of all uniform allocations that fit, by the same losses, which
no study could know.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from alrq_core.memory.cores import usable_cores
from benchmarks.halving import whole_study
from benchmarks.quality_report import interval
from benchmarks.search_quality import FOLDER, setting
from search_spaces.allocation import Allocation
from search_spaces.controls import uniform_allocations
from search_spaces.costs import memory_bytes

LIMITS_MB = (11, 12, 14)
ARMS = ("alrq", "tpe", "tpe with anchors", "random")


def main() -> None:
    """Replay the studies and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    seeds = range(parser.parse_args().seeds)
    print(f"| limit | {' | '.join(ARMS)} | best uniform |\n|{'-|' * (len(ARMS) + 2)}")
    with ProcessPoolExecutor(usable_cores()) as pool:
        for megabytes in LIMITS_MB:
            limit = megabytes * 10**6
            cells = [
                interval(
                    list(pool.map(best_loss, [arm] * len(seeds), [limit] * len(seeds), seeds)),
                    np.mean,
                )
                for arm in ARMS
            ]
            uniform = best_uniform(limit)
            print(f"| {megabytes} MB | {' | '.join(cells)} | {uniform:.3f} |", flush=True)


def best_loss(arm: str, limit: int, seed: int) -> float:
    """Return the loss of the best that one study offers."""
    # Of a front by bytes, the last has the lowest loss.
    return true_loss(whole_study(arm, 1, seed, limit).fronts[-1][-1])


def true_loss(allocation: Allocation) -> float:
    """Return the loss at full fidelity without noise."""
    return float(setting(FOLDER)[1].true_loss(allocation))


def best_uniform(limit: int) -> float:
    """Return the least loss of the uniform allocations of at most these bytes."""
    space = setting(FOLDER)[0]
    every = uniform_allocations(space)
    return min(true_loss(a) for a in every if memory_bytes(a, space.inventory) <= limit)


if __name__ == "__main__":
    main()
