"""Bootstrap statistics, against hand-computed values and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from tune.report.intervals import interval, resampled_f1, resampled_means, weighted_f1


def test_f1_of_known_answers() -> None:
    """Class 0 has F1 2/3 and class 1 4/5; without the third sequence both are 1."""
    predictions, labels = np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1])
    weights = np.array([[1, 1, 1, 1], [1, 1, 0, 2]])

    assert weighted_f1(predictions, labels, weights) == pytest.approx([11 / 15, 1.0])


def test_a_class_without_weight_does_not_count() -> None:
    predictions, labels = np.array([0, 1, 2]), np.array([0, 1, 0])

    assert weighted_f1(predictions, labels, np.array([[2, 1, 0]])) == pytest.approx([1.0])


@pytest.mark.parametrize("classes", [2, 5])
def test_f1_is_that_of_scikit_learn_on_repeated_sequences(classes: int) -> None:
    generator = np.random.default_rng(3)
    predictions, labels = generator.integers(0, classes, (2, 30))
    weights = generator.multinomial(30, np.full(30, 1 / 30), 20)
    expected = [
        f1_score(labels.repeat(row), predictions.repeat(row), average="macro", zero_division=0)
        for row in weights
    ]

    assert weighted_f1(predictions, labels, weights) == pytest.approx(expected)


def test_the_interval_holds_the_middle() -> None:
    assert interval(np.linspace(0, 1, 1001)) == pytest.approx((0.025, 0.975))


def test_perfect_predictions_have_f1_one_in_every_resample() -> None:
    labels = np.array([0] * 18 + [1] * 2)

    assert interval(resampled_f1(np.stack([labels] * 3), labels)) == (1.0, 1.0)


def test_f1_and_accuracy_share_their_draws() -> None:
    """In a balanced split with a symmetric error, both are close to each other draw by draw."""
    labels = np.arange(400) % 2
    right = np.stack([np.arange(400) // 2 % 10 > wrong for wrong in (0, 1, 2)])
    predictions = np.where(right, labels, 1 - labels)
    means, f1 = resampled_means(right.astype(float)), resampled_f1(predictions, labels)

    assert np.corrcoef(means, f1)[0, 1] > 0.99
    assert np.abs(means - f1).max() < 0.02


def test_luck_of_a_seed_widens_the_interval_of_f1() -> None:
    labels = np.arange(300) % 2

    def width(wrong: tuple[int, int, int]) -> float:
        rows = [np.where(np.arange(300) < count, 1 - labels, labels) for count in wrong]
        low, high = interval(resampled_f1(np.stack(rows), labels))
        return high - low

    assert width((10, 40, 70)) > 1.3 * width((40, 40, 40))
