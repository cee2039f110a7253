"""Bootstrap intervals over both seeds and sequences."""

from collections.abc import Iterator

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
PART = 500


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the bounds between which the middle `LEVEL` of the values lie."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def resampled_means(scores: np.ndarray) -> np.ndarray:
    """Return `RESAMPLES` bootstrap means of a seeds x sequences table."""
    parts = [
        ((seed_weights @ scores) * weights).sum(axis=1) / scores.shape[1]
        for seed_weights, weights in _draws(*scores.shape)
    ]
    return np.concatenate(parts)


def resampled_f1(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return bootstrap means over seeds of the macro F1, with the draws of `resampled_means`.

    Args:
        predictions: Predicted classes, seeds x sequences.
        labels: True class of each sequence.
    """
    parts = []
    for seed_weights, weights in _draws(*predictions.shape):
        f1 = np.stack([weighted_f1(row, labels, weights) for row in predictions], axis=1)
        parts.append((seed_weights * f1).sum(axis=1))
    return np.concatenate(parts)


def weighted_f1(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the macro F1 of one run under each row of weights.

    A class counts if it has weight among the labels or the predictions, so that a row of whole
    numbers gives scikit-learn's macro F1 over as many repetitions of each sequence.

    Args:
        predictions: Predicted class of each sequence.
        labels: True class of each sequence.
        weights: Resamples x sequences.
    """
    classes = np.union1d(labels, predictions)[:, None]
    predicted, true = predictions == classes, labels == classes
    hits = weights @ (predicted & true).T.astype(float)
    seen = weights @ (predicted.T.astype(float) + true.T)
    f1 = np.divide(2 * hits, seen, out=np.zeros_like(seen), where=seen > 0)
    means: np.ndarray = f1.sum(axis=1) / (seen > 0).sum(axis=1)
    return means


def _draws(seeds: int, sequences: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield weights of the seeds, which sum to 1, and counts of the sequences, part by part.

    Both are drawn with replacement: drawing the seeds too keeps the luck of a training run inside
    the interval (Owen 2007, "The pigeonhole bootstrap", section 3). The draws are the same for
    every table of one shape, so that intervals can be compared.
    """
    generator = np.random.default_rng(0)
    seed_weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    for start in range(0, RESAMPLES, PART):
        part = seed_weights[start : start + PART]
        yield (
            part,
            generator.multinomial(sequences, np.full(sequences, 1 / sequences), len(part)),
        )
