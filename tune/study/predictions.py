"""What each run answered on the test split, sequence by sequence: one Parquet file a run."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet

from alrq_core.files import replaced
from alrq_core.records import TestScore

PREDICTIONS = "predictions"


def predictions_path(folder: Path, trial: str) -> Path:
    """Return the file of one run in a study's folder."""
    return folder / PREDICTIONS / f"{trial}.parquet"


def write_predictions(folder: Path, trial: str, score: TestScore) -> None:
    """Write a row for each test sequence, and wait until they are on disk.

    The columns are `sequence`, its number in the split, its `loss`, of classes `prediction`, and
    but for perplexity whether it is `right`.
    """
    columns: dict[str, Sequence[float]] = {"sequence": range(len(score.losses))}
    columns["loss"] = score.losses
    if score.metric == "accuracy":
        columns["prediction"] = score.predictions
    if score.metric != "perplexity":
        columns["right"] = [one == 1 for one in score.scores]
    table = pyarrow.table({name: pyarrow.array(values) for name, values in columns.items()})
    with replaced(predictions_path(folder, trial)) as partial, partial.open("wb") as file:
        pyarrow.parquet.write_table(table, file)
        file.flush()
        os.fsync(file.fileno())


def with_predictions(folder: Path, trial: str, score: TestScore) -> TestScore:
    """Return a run's metrics together with what `write_predictions` wrote.

    Raises:
        ValueError: The file is missing or damaged.
    """
    path = predictions_path(folder, trial)
    try:
        with path.open("rb") as file:
            columns = pyarrow.parquet.ParquetFile(file).read().to_pydict()
        losses = tuple(columns["loss"])
        if score.metric == "perplexity":
            return replace(score, scores=losses, losses=losses)
        scores = tuple(float(right) for right in columns["right"])
        predictions = tuple(columns["prediction"]) if score.metric == "accuracy" else ()
        return replace(score, scores=scores, losses=losses, predictions=predictions)
    except (OSError, pyarrow.ArrowException, KeyError, TypeError) as error:
        raise ValueError(
            f"`{path}` must hold what {trial} answered on the test split, got no readable file of "
            f"this kind ({error}). Restore it from a copy of the study, or start a new study."
        ) from error
