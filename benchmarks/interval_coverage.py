"""How often intervals of a mean over seeds and sequences hold the truth.

    python -m benchmarks.interval_coverage

Tables of seeds x 1,066 sequences of the truth 0: luck of each seed, of each sequence, and of both
together, all normal. `luck` is the standard deviation of a seed's luck as a multiple of the error
that one seed's mean has over its sequences. With `answers`, entries are -1, 0 or 1, as where two
models answer a sentence: one in ten differs. Compared are what reports use, Satterthwaite's t for
the same mean squares, and a bootstrap over both. Prints a Markdown table: per cent of tables whose
95 % interval holds 0, and the mean width as a multiple of the shortest.
"""

import argparse
from collections.abc import Callable
from itertools import product

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from tune.report.intervals import mean_interval

SEQUENCES, RESAMPLES = 1066, 400
LUCK = (0.0, 0.5, 1.0, 2.0, 5.0)
DIFFERENT = 0.1
Interval = Callable[[np.ndarray], tuple[float, float]]


def main() -> None:
    """Draw tables and print how often each interval holds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", type=int, default=2000)
    tables = parser.parse_args().tables
    ways: dict[str, Interval] = {
        "reports": mean_interval,
        "Satterthwaite": satterthwaite,
        "bootstrap": bootstrap,
    }
    print(f"| seeds | luck | entries | {' | '.join(ways)} |")
    print("|---|---|---|" + "---|" * len(ways))
    for seeds, entries, luck in product((3, 5), ("normal", "answers"), LUCK):
        generator = np.random.default_rng(round(10 * luck) + seeds)
        drawn = [draw(generator, seeds, luck, entries == "answers") for _ in range(tables)]
        held, widths = [], []
        for way in ways.values():
            found = np.array([way(table) for table in drawn])
            held.append(100 * np.mean((found[:, 0] <= 0) & (found[:, 1] >= 0)))
            widths.append(np.mean(found[:, 1] - found[:, 0]))
        cells = [f"{a:.1f}, {b / min(widths):.2f}" for a, b in zip(held, widths, strict=True)]
        print(f"| {seeds} | {luck:g} | {entries} | {' | '.join(cells)} |", flush=True)


def draw(generator: np.random.Generator, seeds: int, luck: float, answers: bool) -> np.ndarray:
    """Return one table of seeds x sequences."""
    own = generator.normal(size=(seeds, SEQUENCES))
    table = own + generator.normal(size=SEQUENCES)
    table += luck * np.sqrt(2 / SEQUENCES) * generator.normal(size=(seeds, 1))
    if not answers:
        return table
    bound = np.sqrt(2) * norm.ppf(1 - DIFFERENT / 2)
    return (table > bound).astype(float) - (table < -bound)


def satterthwaite(table: np.ndarray) -> tuple[float, float]:
    """Return Student's interval with Satterthwaite's (1946) degrees of freedom."""
    seeds, count = table.shape
    mean, rows, columns = table.mean(), table.mean(axis=1), table.mean(axis=0)
    squares = np.array([count * rows.var(ddof=1), seeds * columns.var(ddof=1), 0.0])
    freedom = np.array([seeds - 1, count - 1, (seeds - 1) * (count - 1)])
    squares[2] = -((table - rows[:, None] - columns + mean) ** 2).sum() / freedom[2]
    variance = max(squares.sum(), squares[0], squares[1])
    half = student.ppf(0.975, variance**2 / (squares**2 / freedom).sum())
    half *= np.sqrt(variance / table.size)
    return mean - half, mean + half


def bootstrap(table: np.ndarray) -> tuple[float, float]:
    """Return the middle of means over seeds and sequences drawn with replacement (Owen 2007)."""
    seeds, count = table.shape
    generator = np.random.default_rng(0)
    rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    columns = generator.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
    low, high = np.quantile(((rows @ table) * columns).sum(axis=1), (0.025, 0.975))
    return float(low), float(high)


if __name__ == "__main__":
    main()
