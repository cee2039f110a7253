"""Paired intervals and the recommendation, against known answers and a simulation."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from alrq_core.records import TestScore
from search_spaces.allocation import Allocation, Choice
from search_spaces.costs import memory_bytes
from search_spaces.spaces import fixed_allocation
from tests.simulated import make_inventory, make_report
from tune.report.confirmation import Confirmed, confirmed
from tune.study.events import Failed
from tune.study.state import StudyState, TrialState

INVENTORY = make_inventory()
UNKNOWN = np.empty(0, dtype=np.int64)
SMALL = Allocation(dict.fromkeys(INVENTORY.names, Choice(3, 4)))


def trial(name: str, role: str, origin: str, seed: int, allocation: Allocation) -> TrialState:
    return TrialState(
        id=name,
        role=role,  # type: ignore[arg-type]
        origin=origin,
        seed=seed,
        allocation=allocation,
        memory_bytes=memory_bytes(allocation, INVENTORY),
        reports=[make_report(8, 0.5)],
        status="completed",
    )


def accuracy(scores: np.ndarray) -> TestScore:
    values = tuple(float(value) for value in scores)
    return TestScore(
        metric="accuracy",
        value=float(np.mean(values)),
        loss=0.5,
        f1=0.5,
        scores=values,
        losses=(0.5,) * len(values),
    )


def classes(predictions: np.ndarray, labels: np.ndarray) -> TestScore:
    f1 = float(f1_score(labels, predictions, average="macro"))
    known = tuple(predictions.tolist())
    return replace(accuracy(predictions == labels), f1=f1, predictions=known)


def perplexity(losses: np.ndarray) -> TestScore:
    mean = float(losses.mean())
    return TestScore(
        metric="perplexity",
        value=float(np.exp(mean)),
        loss=mean,
        f1=None,
        scores=tuple(losses),
        losses=tuple(losses),
        context_tokens=128,
        stride_tokens=128,
    )


def make_state(scores: dict[str, list[TestScore]]) -> StudyState:
    """Confirm each origin with one run a score; seeds 1, 2, ..."""
    state = StudyState(INVENTORY.names)
    for origin, tests in scores.items():
        allocation = fixed_allocation(origin, INVENTORY) if origin.startswith("B-") else SMALL
        role = "baseline" if origin.startswith("B-") else "search"
        state.add(trial(origin, role, "fixed", 0, allocation))
        for seed, test in enumerate(tests, start=1):
            run = trial(f"{origin}-s{seed}", "confirm", origin, seed, allocation)
            run.test = test
            state.add(run)
    return state


def rows(scores: dict[str, list[TestScore]], labels: np.ndarray = UNKNOWN) -> dict[str, Confirmed]:
    return {row.trial: row for row in confirmed(make_state(scores), INVENTORY, labels)}


def test_rows_are_sorted_by_size_and_hold_what_was_measured() -> None:
    answers = [accuracy(np.arange(100) < right) for right in (80, 82, 84)]
    found = confirmed(
        make_state({"B-FP": answers, "t001": answers, "B-Q4": answers}), INVENTORY, UNKNOWN
    )

    assert [row.trial for row in found] == ["t001", "B-Q4", "B-FP"]
    assert found[0].value == pytest.approx(0.82)
    assert found[0].values == (0.8, 0.82, 0.84)
    assert found[0].seeds == (1, 2, 3)
    assert found[0].average_rank == 4


def test_equal_answers_differ_by_nothing() -> None:
    answers = [accuracy(np.arange(50) % 3 > 0)] * 3
    row = rows({"B-FP": answers, "t001": answers})["t001"]

    assert row.difference == 0
    assert row.difference_interval == (0, 0)


def test_pairing_makes_a_constant_difference_certain_but_for_chance_of_sentences() -> None:
    theirs = np.ones(400)
    ours = theirs.copy()
    ours[:40] = 0
    row = rows({"B-FP": [accuracy(theirs)] * 3, "t001": [accuracy(ours)] * 3})["t001"]
    standard_error = 100 * np.sqrt(0.1 * 0.9 / 400)

    assert row.difference == pytest.approx(-10)
    assert row.difference_interval is not None
    low, high = row.difference_interval
    assert low == pytest.approx(-10 - 1.96 * standard_error, abs=0.4)
    assert high == pytest.approx(-10 + 1.96 * standard_error, abs=0.4)


def test_luck_of_a_seed_widens_the_interval() -> None:
    base = [accuracy(np.arange(300) % 4 > 0)] * 3
    steady = [accuracy((np.arange(300) % 4 > 0) & (np.arange(300) > 15))] * 3
    swinging = [
        accuracy((np.arange(300) % 4 > 0) & (np.arange(300) > bound)) for bound in (0, 15, 31)
    ]

    def width(runs: list[TestScore]) -> float:
        interval = rows({"B-FP": base, "t001": runs})["t001"].difference_interval
        assert interval is not None
        return interval[1] - interval[0]

    assert width(swinging) > 1.3 * width(steady)


def test_perplexity_is_compared_in_per_cent_of_its_own() -> None:
    losses = np.linspace(2.0, 4.0, 200)
    worse = losses + np.log(1.05)
    found = rows({"B-FP": [perplexity(losses)] * 3, "t001": [perplexity(worse)] * 3})
    row = found["t001"]

    assert row.metric == "perplexity"
    assert row.f1 is None
    assert row.f1_interval is None
    assert (row.context_tokens, row.stride_tokens) == (128, 128)
    assert row.value == pytest.approx(np.exp(worse.mean()))
    assert row.interval[0] < row.value < row.interval[1]
    assert row.difference == pytest.approx(-5)
    assert row.difference_interval == pytest.approx((-5, -5), abs=1e-6)


def test_f1_is_the_mean_of_the_runs_and_lies_inside_its_interval() -> None:
    labels = np.arange(120) % 3
    runs = [np.where(np.arange(120) < wrong, 0, labels) for wrong in (20, 30, 40)]
    row = rows({"t001": [classes(run, labels) for run in runs]}, labels)["t001"]
    standard_error = np.sqrt(0.2 * 0.8 / 120)

    assert row.f1 == pytest.approx(
        np.mean([f1_score(labels, run, average="macro") for run in runs])
    )
    assert row.f1_interval is not None
    low, high = row.f1_interval
    assert low < row.f1 < high
    # The runs differ more than sequences do, and there are three of them.
    assert 6 * standard_error < high - low < 8 * standard_error
    assert row.context_tokens is None
    assert row.stride_tokens is None


def test_perfect_predictions_have_an_f1_of_one() -> None:
    labels = np.arange(60) % 2
    row = rows({"t001": [classes(labels, labels)] * 3}, labels)["t001"]

    assert (row.f1, row.f1_interval) == (1.0, (1.0, 1.0))


def test_runs_without_logged_predictions_have_no_interval_of_f1() -> None:
    labels = np.arange(60) % 2
    known = classes(labels, labels)
    row = rows({"t001": [known, known, replace(known, predictions=())]}, labels)["t001"]

    assert row.f1 == 1.0
    assert row.f1_interval is None


def test_only_seeds_that_both_completed_are_paired() -> None:
    good, bad = accuracy(np.ones(50)), accuracy(np.zeros(50))
    state = make_state({"B-FP": [good, bad], "t001": [good, good, good]})
    state.apply(Failed(trial="B-FP-s2", reason="any"))
    row = next(row for row in confirmed(state, INVENTORY, UNKNOWN) if row.trial == "t001")

    assert row.difference == 0


def test_nothing_is_compared_without_a_confirmed_b_fp() -> None:
    row = rows({"t001": [accuracy(np.ones(50))] * 3})["t001"]

    assert row.difference is None
    assert row.difference_interval is None


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Two equal models, three runs each, answers drawn anew 60 times."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        easy = generator.random(300)
        runs = [[accuracy(generator.random(300) < easy) for _ in range(3)] for _ in range(2)]
        interval = rows({"B-FP": runs[0], "t001": runs[1]})["t001"].difference_interval
        assert interval is not None
        covered += interval[0] <= 0 <= interval[1]

    assert covered >= 56
