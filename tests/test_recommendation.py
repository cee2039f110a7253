"""What is recommended, and what keeps a study from recommending anything."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alrq_core.data.encode import Tokens
from tests.simulated import LABELS, drive, make_inventory, make_study
from tests.tiny import make_task
from tune.report.confirmation import Confirmed, confirmed
from tune.report.recommendation import (
    Verdict,
    best_that_fits,
    constant_answer,
    judge,
    recommend,
    sequences_needed,
)


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> Confirmed:
    """Some allocation that was confirmed with three seeds: 80 % right."""
    study = make_study(tmp_path_factory.mktemp("study"), space="B-FP")
    drive(study)
    found = confirmed(study.state, make_inventory(), LABELS)[0]
    return replace(found, value=0.8, interval=(0.78, 0.82))


def recommendable(row: Confirmed, name: str, size: int, low: float | None) -> Confirmed:
    interval = None if low is None else (low, low + 2)
    difference = None if low is None else low + 1
    return replace(
        row, trial=name, memory_bytes=size, difference=difference, difference_interval=interval
    )


def verdict(rows: Sequence[Confirmed], **changes: Any) -> Verdict:
    given = {
        "sequences": 1000,
        "constant": 0.5,
        "margin": 2.0,
        "max_memory_bytes": None,
        "finished": True,
    }
    return judge(rows, **(given | changes))


@pytest.fixture
def good(row: Confirmed) -> list[Confirmed]:
    """An allocation as good as B-FP, beside it."""
    return [recommendable(row, "t001", 10, -1.0), recommendable(row, "B-FP", 50, 0.0)]


def test_what_is_shown_to_be_as_good_is_recommended(good: list[Confirmed]) -> None:
    found = verdict(good)

    assert found.row is good[0]
    assert found.text.startswith("Recommended: t001 *, the smallest allocation whose interval")


@pytest.mark.parametrize(
    ("sequences", "margin", "enough"),
    [(4, 2.0, False), (182, 2.0, False), (183, 2.0, True), (183, 1.0, False), (400, 1.0, True)],
)
def test_equal_answers_to_too_few_sequences_show_nothing(
    good: list[Confirmed], sequences: int, margin: float, enough: bool
) -> None:
    """With 4 sentences the interval was [+0.0, +0.0]."""
    same = [replace(row, difference=0.0, difference_interval=(0.0, 0.0)) for row in good]
    found = verdict(same, sequences=sequences, margin=margin)

    assert (found.row is not None) == enough
    if not enough:
        needed = sequences_needed(margin, "accuracy")
        assert f"{sequences} test sequences can't show a loss of {margin:g} points" in found.text
        assert f"takes at least {needed}. Score more (--data, --eval-sequences)" in found.text


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0, 10.0, 99.0])
def test_a_loss_of_the_margin_goes_unseen_in_2_5_per_cent_at_most(margin: float) -> None:
    needed = sequences_needed(margin, "accuracy")

    assert (1 - margin / 100) ** needed <= 0.025
    assert needed == 1 or (1 - margin / 100) ** (needed - 1) > 0.025
    assert sequences_needed(100.0, "accuracy") == sequences_needed(250.0, "accuracy") == 1


def test_few_windows_show_nothing_either(good: list[Confirmed]) -> None:
    windows = [replace(row, metric="perplexity", value=9.5, interval=(9.0, 10.0)) for row in good]

    assert verdict(windows, sequences=20, constant=100.0).row is windows[0]
    found = verdict(windows, sequences=19, constant=100.0)
    assert found.row is None
    assert "19 test sequences can't show a loss of 2 %, which takes at least 20." in found.text


def test_a_study_that_was_interrupted_recommends_nothing(good: list[Confirmed]) -> None:
    found = verdict(good, finished=False)

    assert found.row is None
    assert found.text == "No recommendation: the study has not ended. Go on with --resume."


def test_missing_seeds_of_the_reference_leave_nothing_to_compare(good: list[Confirmed]) -> None:
    found = verdict([good[0], replace(good[1], seeds=(1,))])

    assert found.row is None
    assert "B-FP completed 1 of 3 seeds. Go on with --resume" in found.text


def test_an_allocation_with_missing_seeds_is_passed_over(good: list[Confirmed]) -> None:
    small, reference = replace(good[0], seeds=(1, 3)), good[1]
    larger = replace(good[0], trial="B-Q4", memory_bytes=30)
    alone, beside = verdict([small, reference]), verdict([small, larger, reference])

    assert alone.row is None
    assert alone.text.startswith("No recommendation: ")
    assert beside.row is larger
    for found, but in ((alone, " But"), (beside, " Smaller, but")):
        assert found.text.endswith(
            f"{but} t001 completed 2 of 3 seeds. Go on with --resume, which tries the others again."
        )


@pytest.mark.parametrize(
    ("changes", "constant", "learnt"),
    [
        ({"interval": (0.49, 0.55)}, 0.5, False),
        ({"interval": (0.51, 0.55)}, 0.5, True),
        ({"interval": (0.90, 0.93)}, 0.9, False),
        ({"metric": "perplexity", "interval": (40.0, 60.0)}, 50.0, False),
        ({"metric": "perplexity", "interval": (40.0, 49.0)}, 50.0, True),
    ],
)
def test_a_reference_that_learnt_nothing_is_no_measure(
    good: list[Confirmed], changes: dict[str, Any], constant: float, learnt: bool
) -> None:
    found = verdict([replace(row, **changes) for row in good], constant=constant)

    assert (found.row is not None) == learnt
    if not learnt:
        assert "B-FP has learnt nothing that the test split shows" in found.text
        assert f"one answer for all gives {constant:.3g}. Train longer (--max-steps" in found.text


def test_one_answer_for_all_scores_its_share(tmp_path: Path) -> None:
    classes = make_task("classification")
    labels = np.array([0, 1, 1, 2, 1])
    test = Tokens(np.zeros(5, dtype=np.int32), np.arange(6), labels)
    assert constant_answer(replace(classes, test=test)) == pytest.approx(0.6)

    ids = np.array([9, 1, 2, 9, 1, 2, 9, 3, 4], dtype=np.int32)
    windows = Tokens(ids, np.array([0, 3, 6, 9]), np.empty(0, dtype=np.int64))
    shares = np.array([1, 1, 2, 2]) / 6
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert constant_answer(replace(classes, test=windows)) == pytest.approx(expected)

    # Of three conversations, two are answered with the same two tokens.
    task = replace(make_task("language-modelling"), test=windows, exact_match=True)
    assert constant_answer(task) == pytest.approx(2 / 3)


def test_nothing_is_recommended_without_a_comparison(row: Confirmed) -> None:
    alone = replace(row, trial="t001", difference=None, difference_interval=None)

    assert recommend([alone], 2.0, None) is None
    assert verdict([alone]).text == "No recommendation: nothing was confirmed beside B-FP."
    assert verdict([]).row is None


def test_the_smallest_within_the_margin_is_recommended(row: Confirmed) -> None:
    candidates = [
        recommendable(row, "small", 10, -2.5),
        recommendable(row, "middle", 20, -1.9),
        recommendable(row, "large", 30, 0.5),
        recommendable(row, "B-FP", 5, 0.0),
    ]

    assert recommend(candidates, 2.0, None) == candidates[1]
    assert recommend(candidates, 3.0, None) == candidates[0]
    assert recommend(candidates, 1.0, None) == candidates[2]
    assert recommend(candidates[:1], 2.0, None) is None
    assert recommend([], 2.0, None) is None


def test_what_is_smaller_than_the_first_that_fails_is_not_tested(row: Confirmed) -> None:
    found = [
        replace(recommendable(row, name, size, low), role="search")
        for name, size, low in (("t001", 10, -0.5), ("t002", 20, -2.5), ("t003", 30, -1.0))
    ]
    fixed = [replace(one, role="baseline") for one in found]
    reference = recommendable(row, "B-FP", 50, 0.0)
    ended = "From the largest down, t002 fails first; smaller ones are not tested."

    assert recommend(found, 2.0, None) is found[2]
    assert verdict([*found, reference]).text.endswith(ended)
    assert recommend(found[:2], 2.0, None) is None
    assert verdict([*found[:2], reference]).text.startswith("No recommendation: ")
    assert recommend(found[:2], 2.0, 15) is found[0]
    assert recommend(fixed, 2.0, None) is fixed[0]


def test_a_control_is_no_candidate(row: Confirmed) -> None:
    control = replace(recommendable(row, "random-t001", 9, -0.5), role="control")
    failing = replace(recommendable(row, "uniform-t001", 12, -3.5), role="control")
    found = replace(recommendable(row, "t001", 10, -0.5), role="search")

    assert recommend([control, found, failing], 2.0, None) is found


def test_nothing_above_the_limit_is_recommended(row: Confirmed) -> None:
    small, middle, large = (
        recommendable(row, name, size, low)
        for name, size, low in (("small", 10, -3.5), ("middle", 20, -1.9), ("large", 30, 0.5))
    )
    middle = replace(middle, difference=-0.9)
    small, large = replace(small, difference=-2.5), replace(large, difference=1.5)

    assert recommend([small, middle, large], 2.0, 20) == middle
    assert recommend([small, middle, large], 1.0, 20) is None
    assert best_that_fits([small, middle, large], 20) == middle
    assert best_that_fits([small, middle, large], 19) == small
    assert best_that_fits([small, middle, large], 9) is None
    assert best_that_fits([replace(small, difference=None)], 20) is None


def test_the_interval_must_stay_above_the_margin_not_on_it(row: Confirmed) -> None:
    assert recommend([recommendable(row, "t", 1, -2.0)], 2.0, None) is None
