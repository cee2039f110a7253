"""Reads tables of texts and labels from CSV, TSV, JSONL and Parquet, and checks every cell."""

import csv
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

MIN_ROWS_PER_CLASS = 10
READERS: Mapping[str, Callable[..., Dataset]] = {
    ".csv": Dataset.from_csv,
    ".tsv": Dataset.from_csv,
    ".jsonl": Dataset.from_json,
    ".parquet": Dataset.from_parquet,
}

datasets.disable_progress_bars()


def read_table(path: Path) -> Dataset:
    """Return a file's rows, held in memory so that an edited file is never read from a cache.

    Raises:
        ValueError: The file is empty or malformed.
    """
    options: dict[str, Any] = {}
    if path.stat().st_size == 0:
        raise ValueError(f"`--data` must not be empty, got {path.name!r}. Check the file.")
    if path.suffix.lower() == ".tsv":
        options = {"sep": "\t", "quoting": csv.QUOTE_NONE, **options}
    if path.suffix.lower() in {".csv", ".tsv"}:
        options = {"keep_default_na": False, **options}
    try:
        with tempfile.TemporaryDirectory() as cache:
            rows = READERS[path.suffix.lower()](
                str(path), cache_dir=cache, keep_in_memory=True, **options
            )
    except Exception as error:
        # Whatever pandas, pyarrow or json raise for a malformed file.
        cause = error.__cause__ or error
        if "corresponds to no data" in str(cause):
            raise ValueError(
                f"`--data` must have rows, got none in {path.name!r}. Check the file."
            ) from error
        raise ValueError(
            f"`--data` must be a readable {path.suffix} file, got {path.name!r} "
            f"({type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}). "
            "Check its form."
        ) from error
    if len(rows) == 0:
        raise ValueError(f"`--data` must have rows, got none in {path.name!r}. Check the file.")
    return rows


def checked_rows(
    texts: Any, labels: Any, source: str, text_column: str
) -> tuple[list[str], list[int]]:
    """Return texts and labels after checking every cell.

    Raises:
        ValueError: A text is missing or no text, a label is missing, or a class is too rare.
    """
    for row, (text, label) in enumerate(zip(texts, labels, strict=True), start=1):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"`--text-column` {text_column} must hold text in every row, got {text!r} in row "
                f"{row} of {source}. Remove or mend the row."
            )
        if label is None:
            raise ValueError(
                f"`--label-column` must hold a label in every row, got none in row {row} of "
                f"{source}. Remove or mend the row."
            )
    counts = Counter(labels)
    if len(counts) < 2:
        raise ValueError(
            f"`--label-column` must have at least two classes, got {len(counts)} in {source}. "
            "Use data with more than one label."
        )
    rarest, count = min(counts.items(), key=lambda item: item[1])
    if count < MIN_ROWS_PER_CLASS:
        raise ValueError(
            f"`--label-column` must have at least {MIN_ROWS_PER_CLASS} rows a class, got {count} "
            f"for class {rarest} of {len(counts)} in {source}. Merge or drop rare classes."
        )
    return list(texts), list(labels)
