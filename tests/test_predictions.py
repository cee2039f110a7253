"""Predictions on the test split: kept before the log tells of them, and read back with it."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest

import tune.study.events as recorded
from alrq_core.records import TestScore
from tests.simulated import drive, make_inventory, make_study
from tune.report.mcnemar import compare_runs
from tune.study.events import LOG_NAME, EventLog
from tune.study.predictions import predictions_path, with_predictions, write_predictions
from tune.study.state import StudyState

ANSWERS = TestScore(
    metric="accuracy",
    value=2 / 3,
    loss=0.7,
    f1=0.4,
    scores=(0.0, 1.0, 1.0),
    losses=(1.5, 0.25, 0.35),
    predictions=(0, 39, 1),
)
MATCHES = replace(ANSWERS, metric="exact_match", f1=None, predictions=())
WINDOWS = TestScore(
    metric="perplexity",
    value=9.5,
    loss=2.25,
    f1=None,
    scores=(2.00001, 2.5),
    losses=(2.00001, 2.5),
    context_tokens=128,
    stride_tokens=128,
)


@pytest.mark.parametrize(
    ("score", "rows"),
    [
        (
            ANSWERS,
            [
                {"sequence": 0, "loss": 1.5, "prediction": 0, "right": False},
                {"sequence": 1, "loss": 0.25, "prediction": 39, "right": True},
                {"sequence": 2, "loss": 0.35, "prediction": 1, "right": True},
            ],
        ),
        (
            MATCHES,
            [
                {"sequence": 0, "loss": 1.5, "right": False},
                {"sequence": 1, "loss": 0.25, "right": True},
                {"sequence": 2, "loss": 0.35, "right": True},
            ],
        ),
        (WINDOWS, [{"sequence": 0, "loss": 2.00001}, {"sequence": 1, "loss": 2.5}]),
    ],
    ids=["classification", "exact match", "language modelling"],
)
def test_a_file_has_a_row_for_each_sequence_and_comes_back(
    tmp_path: Path, score: TestScore, rows: list[dict[str, float]]
) -> None:
    log = EventLog(tmp_path / LOG_NAME)
    with closing(log):
        log.append(recorded.Tested(trial="t1-s1", score=score))

    assert pyarrow.parquet.read_table(predictions_path(tmp_path, "t1-s1")).to_pylist() == rows
    assert list(EventLog(log.path).read()) == [recorded.Tested(trial="t1-s1", score=score)]
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["t1-s1.parquet"]


def test_the_log_tells_of_nothing_that_was_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorded, "write_predictions", full)
    log = EventLog(tmp_path / LOG_NAME)
    with closing(log), pytest.raises(OSError, match="No space left"):
        log.append(recorded.Tested(trial="t1-s1", score=ANSWERS))

    assert list(EventLog(log.path).read()) == []


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "another kind"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = predictions_path(tmp_path, "t1-s1")
    if damage != "missing":
        write_predictions(tmp_path, "t1-s1", WINDOWS if damage == "another kind" else ANSWERS)
    if damage in ("empty", "cut"):
        path.write_bytes(path.read_bytes()[: 100 if damage == "cut" else 0])
    with pytest.raises(ValueError, match=r"t1-s1\.parquet` must hold what t1-s1 answered.*Restore"):
        with_predictions(tmp_path, "t1-s1", ANSWERS)


def test_a_resumed_study_names_the_file_that_it_misses(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=4)
    drive(study)
    again = StudyState(make_inventory().names).replay(EventLog(tmp_path / LOG_NAME).read())
    assert compare_runs(again) == compare_runs(study.state) != []
    predictions_path(tmp_path, "B-FP-s2").unlink()
    with pytest.raises(ValueError, match=r"predictions/B-FP-s2\.parquet` must hold"):
        make_study(tmp_path, budget=4)
