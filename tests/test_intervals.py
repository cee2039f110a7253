"""Intervals of means, against hand-computed values, scikit-learn and simulation."""

import numpy as np
import pytest
from scipy.stats import norm, ttest_1samp
from scipy.stats import t as student
from sklearn.metrics import f1_score

from tune.report.intervals import f1_table, mean_interval


def half(table: np.ndarray) -> float:
    low, high = mean_interval(table)
    assert (low + high) / 2 == pytest.approx(table.mean())
    return (high - low) / 2


def test_seeds_that_differ_alone_have_student_s_interval() -> None:
    seeds = np.array([0.1, 0.4, 0.7])
    low, high = mean_interval(np.repeat(seeds[:, None], 50, axis=1))

    assert (low, high) == pytest.approx(ttest_1samp(seeds, 0).confidence_interval())


def test_sequences_that_differ_alone_have_the_normal_interval() -> None:
    row = np.arange(100) % 2
    error = row.std(ddof=1) / 10

    assert half(np.tile(row, (3, 1)).astype(float)) == pytest.approx(norm.ppf(0.975) * error)


def test_both_together_by_hand() -> None:
    """Mean squares: seeds 1.0, sequences 4.0, rest 1.0."""
    table = np.array([[0.0, 2.0], [0.0, 1.0], [1.0, 2.0]]) * np.sqrt([[1.0, 1.0]])
    of_seeds = 2 * np.var([1.0, 0.5, 1.5], ddof=1)
    of_sequences = 3 * np.var([1 / 3, 5 / 3], ddof=1)
    rest = ((table - [[1.0], [0.5], [1.5]] - [1 / 3, 5 / 3] + 1.0) ** 2).sum() / 2
    square = student.ppf(0.975, 2) ** 2 * of_seeds
    square += norm.ppf(0.975) ** 2 * (of_sequences - rest)

    assert half(table) == pytest.approx(np.sqrt(square / 6))


def test_one_seed_has_the_interval_of_its_sequences() -> None:
    row = np.random.default_rng(0).normal(size=30)
    expected = ttest_1samp(row, 0).confidence_interval()

    assert mean_interval(row[None]) == pytest.approx(expected)


def test_what_never_varies_has_no_width() -> None:
    assert mean_interval(np.ones((3, 20))) == (1.0, 1.0)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_holds_the_truth_at_least_as_often_as_it_says(
    ratio: float, seeds: int
) -> None:
    """Whatever the luck of a seed is, as a multiple of one seed's error over its sequences."""
    generator, count, trials = np.random.default_rng(1), 200, 1000
    held = 0
    for _ in range(trials):
        luck = ratio * np.sqrt(2 / count) * generator.normal(size=(seeds, 1))
        table = luck + generator.normal(size=(1, count)) + generator.normal(size=(seeds, count))
        low, high = mean_interval(table)
        held += low <= 0 <= high

    assert held / trials >= 0.94


@pytest.mark.parametrize("classes", [2, 5])
def test_f1_is_that_of_scikit_learn(classes: int) -> None:
    generator = np.random.default_rng(3)
    predictions, labels = generator.integers(0, classes, (2, 4, 30))
    expected = [f1_score(labels[0], row, average="macro", zero_division=0) for row in predictions]

    assert f1_table(predictions, labels[0]).mean(axis=1) == pytest.approx(expected)


def test_f1_moves_with_a_sequence_as_its_entry_says() -> None:
    """One more copy of a sequence among 2,000 changes F1 by its entry's deviation / 2,000."""
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 3, 2000)
    predictions = np.where(generator.random(2000) < 0.7, labels, generator.integers(0, 3, 2000))
    row = f1_table(predictions[None], labels)[0]
    for place in range(5):
        more = np.append(np.arange(2000), place)
        changed = f1_score(labels[more], predictions[more], average="macro") - row.mean()
        assert changed * 2001 == pytest.approx(row[place] - row.mean(), abs=5e-3)


def test_a_class_that_nobody_has_does_not_count() -> None:
    assert f1_table(np.array([[0, 2]]), np.array([0, 2])) == pytest.approx(1.0)
