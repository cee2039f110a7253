"""Intervals of means over seeds and sequences, both of which are drawn by chance."""

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

LEVEL = 0.95


def mean_interval(table: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean of what a table of seeds x sequences is drawn from.

    Each entry is a mean plus effects of its seed, of its sequence and of both together. With the
    mean squares A of seeds, B of sequences and E of the rest, (A + B - E) / (seeds * sequences)
    estimates the variance of the table's mean (Searle, Casella & McCulloch 1992, "Variance
    components", section 4.3). A has the few degrees of freedom of the seeds, so that its part gets
    the quantile of Student's t for them and the rest the normal one (Banerjee 1960, "Approximate
    confidence interval for linear functions of means of k populations when the population
    variances are not equal"): too wide rather than too narrow, whichever varies more.

    One seed tells nothing of others: its interval is over sequences alone.
    """
    seeds, sequences = table.shape
    mean, rows, columns = table.mean(), table.mean(axis=1), table.mean(axis=0)
    tail = (1 + LEVEL) / 2
    if seeds == 1:
        half = student.ppf(tail, sequences - 1) * table.std(ddof=1) / np.sqrt(sequences)
        return float(mean - half), float(mean + half)
    of_seeds = sequences * rows.var(ddof=1)
    of_sequences = seeds * columns.var(ddof=1)
    rest = ((table - rows[:, None] - columns + mean) ** 2).sum()
    rest /= (seeds - 1) * (sequences - 1)
    square = student.ppf(tail, seeds - 1) ** 2 * of_seeds
    square += norm.ppf(tail) ** 2 * max(0.0, of_sequences - rest)
    half = np.sqrt(square / table.size)
    return float(mean - half), float(mean + half)


def f1_table(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return a table of seeds x sequences whose rows have each seed's macro F1 for their mean.

    An entry is that mean plus what its sequence does to it, to first order (the delta method). A
    class counts if it is among the labels or the predictions of the seed.

    Args:
        predictions: Predicted classes, seeds x sequences.
        labels: True class of each sequence.
    """
    return np.stack([_f1_row(row, labels) for row in predictions])


def _f1_row(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    classes = np.union1d(labels, predictions)[:, None]
    predicted, true = predictions == classes, labels == classes
    hits, seen = predicted & true, predicted.astype(float) + true
    share = seen.mean(axis=1, keepdims=True)
    f1 = 2 * hits.mean(axis=1, keepdims=True) / share
    found: np.ndarray = (f1 + (2 * hits - f1 * seen) / share).mean(axis=0)
    return found
