"""What computing with a dequantised copy of the weights saves in a training step.

    python benchmarks/execution.py

Steps of a packed and of a dequantised trial alternate in one process and on one thread, on the
same batches. Prints a Markdown table of the ratio of their times with a 95 % interval (bootstrap
of the pairs' median), and whether the losses are the same to the last digit.
"""

import argparse
import time

import numpy as np
import torch

from alrq_core.context import TrialContext, load_context
from alrq_core.recipe import EXECUTIONS, Recipe
from alrq_core.trial import TrialRun
from search_spaces.spaces import ALL_BITS, make_space

RESAMPLES = 2000


def main() -> None:
    """Measure every number of bits and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    recipes = {name: Recipe(max_steps=pairs + 2, execution=name) for name in EXECUTIONS}
    first = load_context("minilm", "rotten_tomatoes", recipes["packed"])
    print("MiniLM, Rotten Tomatoes, steps of 32 sentences, rank 8, one thread")
    print("| bits | packed, ms | dequantized / packed | same losses |")
    print("|---|---|---|---|")
    for bits in ALL_BITS:
        allocation = make_space("joint", first.inventory).nearest_uniform(bits, 8)
        runs = [
            TrialRun(
                TrialContext(
                    base=first.base, inventory=first.inventory, task=first.task, recipe=recipe
                ),
                allocation,
                0,
            )
            for recipe in recipes.values()
        ]
        seconds, losses = measure(runs, pairs)
        ratios = seconds[:, 1] / seconds[:, 0]
        draws = np.random.default_rng(0).choice(ratios, (RESAMPLES, pairs))
        low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
        same = "yes" if (losses[:, 0] == losses[:, 1]).all() else "no"
        print(
            f"| {bits} | {1000 * np.median(seconds[:, 0]):.0f} | {np.median(ratios):.3f} "
            f"[{low:.3f}, {high:.3f}] | {same} |",
            flush=True,
        )


def measure(runs: list[TrialRun], pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return seconds and losses of alternating steps, pairs x runs; two steps warm up."""
    seconds, losses = np.empty((pairs, len(runs))), np.empty((pairs, len(runs)))
    for run in runs:
        run.model.train()
        for _ in range(2):
            run.training.train_step()
    for pair in range(pairs):
        order = range(len(runs)) if pair % 2 else reversed(range(len(runs)))
        for number in order:
            started = time.perf_counter()
            losses[pair, number] = runs[number].training.train_step()
            seconds[pair, number] = time.perf_counter() - started
    return seconds, losses


if __name__ == "__main__":
    main()
