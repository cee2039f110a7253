"""What tells best how an allocation does with another seed: its loss, or what the model expects.

    python -m benchmarks.second_seed

Among the recorded curves some allocations were trained with two seeds. The searcher's model gets
the losses of the first seed, together with those of other allocations drawn from the recording, as
many as a study of 50 trials has. Then both are compared with the losses of the second seed: by rank
correlation, and by the standard deviation of the difference, over all and over the better half by
the first seed. Means over draws of the others, with the standard deviation of these means' spread.
"""

import argparse
from pathlib import Path

import numpy as np
from optuna.trial import TrialState, create_trial
from scipy.stats import spearmanr

from alrq_core.models.loading import inspect_model
from benchmarks.search_quality import FOLDER
from benchmarks.surrogate import load_curves, recorded_table, seed_pairs
from search_spaces.costs import memory_bytes
from search_spaces.spaces import make_space
from tune.search.parameters import distributions, to_params
from tune.search.thompson import ThompsonSampler

TRIALS, DRAWS = 50, 40


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--curves", type=Path, default=FOLDER)
    flags = parser.parse_args()
    inventory = inspect_model("minilm", "classification", 2)
    curves, table = load_curves(flags.curves, inventory), recorded_table(flags.curves)
    pairs = seed_pairs(curves)
    others = np.setdiff1d(np.arange(len(curves.allocations)), pairs)
    space, losses = make_space("joint", inventory), curves.losses[:, -1]
    first, second = losses[pairs[:, 0]], losses[pairs[:, 1]]
    trials = [
        create_trial(
            state=TrialState.COMPLETE,
            params=to_params(allocation, space),
            distributions=distributions(space),
            values=[float(loss), float(memory_bytes(allocation, inventory))],
        )
        for allocation, loss in zip(curves.allocations, losses, strict=True)
    ]
    for number, trial in enumerate(trials):
        trial.number = number
    sampler = ThompsonSampler(space, table, curves.steps, seed=0)
    generator = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        drawn = generator.choice(others, TRIALS - len(pairs), replace=False)
        expected = sampler.expected_losses([trials[n] for n in (*drawn, *pairs[:, 0])])
        found.append(_compared(np.array([expected[n] for n in pairs[:, 0]]), second, first))
    observed = _compared(first, second, first)
    print(f"{len(pairs)} allocations with two seeds, {TRIALS} observations, {DRAWS} draws\n")
    columns = ("known", "Spearman", "error", "Spearman, better half", "error, better half")
    print(f"| {' | '.join(columns)} |\n|-|-|-|-|-|")
    print(f"| its loss | {' | '.join(f'{v:.3f}' for v in observed)} |")
    means, spread = np.mean(found, axis=0), np.std(found, axis=0)
    cells = [f"{mean:.3f} ± {one:.3f}" for mean, one in zip(means, spread, strict=True)]
    print(f"| what the model expects | {' | '.join(cells)} |")


def _compared(known: np.ndarray, second: np.ndarray, first: np.ndarray) -> list[float]:
    """Return rank correlation and error over all, and over the better half."""
    found = []
    for inside in (np.ones(len(first), dtype=bool), first <= np.median(first)):
        found.append(float(spearmanr(known[inside], second[inside]).statistic))
        # Without the mean: one seed is better for all.
        found.append(float(np.std(second[inside] - known[inside])))
    return found


if __name__ == "__main__":
    main()
