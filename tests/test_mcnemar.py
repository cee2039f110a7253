"""McNemar's test, against values computed by hand."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from alrq_core.records import TestScore
from tests.simulated import drive, make_study
from tune.report.mcnemar import compare_runs, exact_p_value, write_mcnemar
from tune.study.state import StudyState

COLUMNS = [
    "run_a",
    "run_b",
    "trial_a",
    "trial_b",
    "seed_a",
    "seed_b",
    "only_a_right",
    "only_b_right",
    "p_value",
]


@pytest.fixture
def state(tmp_path: Path) -> StudyState:
    study = make_study(tmp_path, budget=4)
    drive(study)
    return study.state


def answers(text: str) -> TestScore:
    scores = tuple(float(digit) for digit in text)
    return TestScore(
        metric="accuracy",
        value=sum(scores) / len(scores),
        loss=0.5,
        f1=0.5,
        scores=scores,
        losses=(0.5,) * len(scores),
    )


@pytest.mark.parametrize(
    ("only_a", "only_b", "p_value"),
    [
        (1, 9, 22 / 1024),
        (9, 1, 22 / 1024),
        (0, 5, 2 / 32),
        (3, 3, 1.0),
        (0, 1, 1.0),
        (0, 0, 1.0),
    ],
)
def test_p_values_computed_by_hand(only_a: int, only_b: int, p_value: float) -> None:
    """Of 10 tosses, at most 1 or at least 9 heads: 2 (1 + 10) of 1,024 outcomes."""
    assert exact_p_value(only_a, only_b) == pytest.approx(p_value)


def test_discordant_sequences_are_counted_in_both_directions(state: StudyState) -> None:
    first, second, *others = state.confirmed_runs()
    for run in others:
        run.test = None
    first.test, second.test = answers("1100011"), answers("1010010")
    (comparison,) = compare_runs(state)

    assert (comparison.run_a, comparison.run_b) == (first.id, second.id)
    assert (comparison.trial_a, comparison.seed_a) == (first.source, first.seed)
    assert (comparison.only_a_right, comparison.only_b_right) == (2, 1)
    assert comparison.p_value == 1.0


def test_every_pair_of_runs_has_a_line(tmp_path: Path, state: StudyState) -> None:
    path = write_mcnemar(tmp_path, state)
    assert path is not None
    with path.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    runs = len(state.confirmed_runs())

    assert path.name == "mcnemar.csv"
    assert list(lines[0]) == COLUMNS
    assert len(lines) == len({(line["run_a"], line["run_b"]) for line in lines})
    assert len(lines) == runs * (runs - 1) // 2
    assert {line["seed_a"] for line in lines} == {"1", "2", "3"}
    assert not list(tmp_path.glob("*.partial"))


def test_conversations_that_are_answered_word_by_word_are_compared(state: StudyState) -> None:
    first, second, *others = state.confirmed_runs()
    for run in others:
        run.test = None
    for run, right in ((first, "110"), (second, "100")):
        run.test = replace(answers(right), metric="exact_match", f1=None, predictions=())

    assert [c.only_a_right for c in compare_runs(state)] == [1]


def test_language_modelling_writes_nothing(tmp_path: Path, state: StudyState) -> None:
    for run in state.confirmed_runs():
        assert run.test is not None
        run.test = replace(run.test, metric="perplexity", f1=None, predictions=())

    assert write_mcnemar(tmp_path, state) is None
    assert not (tmp_path / "mcnemar.csv").exists()


def test_a_study_without_confirmed_runs_writes_nothing(tmp_path: Path) -> None:
    assert write_mcnemar(tmp_path, StudyState(())) is None
