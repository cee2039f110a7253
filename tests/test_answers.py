"""Answers and classes come back from their short texts."""

import numpy as np
import pytest

from tune.study.answers import pack_answers, pack_classes, unpack_answers, unpack_classes


@pytest.mark.parametrize("scores", [(0.0, 0.0, 1.0), (1.0,), (0.0,) * 9, (1.0, 0.0) * 850])
def test_answers_pack_four_a_digit(scores: tuple[float, ...]) -> None:
    packed = pack_answers(scores)

    assert unpack_answers(packed) == scores
    assert len(packed) <= len(scores) / 4 + 1


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        ((), ""),
        ((0,), "2:2"),
        ((0, 0, 1), "2:9"),
        ((1, 0, 2), "3:26"),
        ((39,), "40:4f"),
    ],
)
def test_classes_pack_as_computed_by_hand(classes: tuple[int, ...], text: str) -> None:
    """(1, 0, 2) is 1102 in base 3: 27 + 9 + 2 = 38."""
    assert pack_classes(classes) == text
    assert unpack_classes(text) == classes


@pytest.mark.parametrize("count", [2, 3, 40])
def test_classes_come_back_and_take_few_digits(count: int) -> None:
    classes = tuple(np.random.default_rng(0).integers(0, count, 1706).tolist())
    packed = pack_classes(classes)

    assert unpack_classes(packed) == classes
    assert len(packed) <= 1706 * np.log2(count) / 4 + 5


@pytest.mark.parametrize("count", [2, 3, 40])
def test_a_class_that_is_always_predicted_comes_back(count: int) -> None:
    for label in (0, count - 1):
        assert unpack_classes(pack_classes((label,) * 50)) == (label,) * 50
