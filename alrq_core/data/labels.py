"""Checks the cells of texts and labels, and names the classes: one list, made once."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from decimal import Decimal
from math import isnan
from pathlib import Path
from typing import Any

from alrq_core.data.tables import DELIMITERS, Table

MIN_ROWS_PER_CLASS = 10
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
# How programs write a label that is missing into a column of numbers.
MISSING = frozenset({"nan", "na", "n/a", "null", "none"})


def checked_texts(table: Table, column: str) -> list[str]:
    """Return the texts of a column, exactly as they stand.

    Raises:
        ValueError: One is missing, blank or no text.
    """
    for row, text in enumerate(table.cells[column]):
        if not isinstance(text, str) or not text.strip() or not is_unicode(text):
            raise ValueError(
                f"`--data` must hold text in every row, got {text!r} in "
                f"{table.place(row, column)}. Remove or mend the row."
            )
    return table.cells[column]


def checked_labels(table: Table, column: str) -> list[str]:
    """Return the name of each row's class, without blanks around it.

    Raises:
        ValueError: A label is missing or can't be a name, or a quote was left open, so that rows
            became part of a text.
    """
    labels = []
    for row, value in enumerate(table.cells[column]):
        if isinstance(value, list):
            raise ValueError(
                f"`--data` must hold one label a row, got the list {value!r} in "
                f"{table.place(row, column)}. Several labels a text can't be learnt: choose one."
            )
        label = _label(value)
        if not label or not is_unicode(label):
            got = "none" if label == "" else repr(value)
            raise ValueError(
                f"`--data` must hold a label in every row, got {got} in "
                f"{table.place(row, column)}. Remove or mend the row."
            )
        labels.append(label)
    _check_no_missing_number(table, column, labels)
    _check_no_row_in_text(table, column)
    return labels


def class_names(labels: Sequence[str], source: str) -> tuple[str, ...]:
    """Return the names of the classes in the order of their numbers.

    Numbers are sorted by value, anything else as text. Labels that are written differently are
    different classes: `7` and `007`, `1.1` and `1.10`.

    Raises:
        ValueError: There are too few classes, or too few rows of one.
    """
    counts = Counter(labels)
    if len(counts) < 2:
        raise ValueError(
            f"`--label-column` must have at least two classes, got {len(counts)} in {source}. "
            "Use data with more than one label."
        )
    rarest, count = min(counts.items(), key=lambda item: item[1])
    if count < MIN_ROWS_PER_CLASS:
        if all(map(NUMBER.fullmatch, counts)) and any("." in label for label in counts):
            raise ValueError(
                f"`--label-column` must name classes, got {len(counts)} different numbers, such as "
                f"{rarest}, in {source}. Numbers can't be learnt as such: sort them into classes."
            )
        raise ValueError(
            f"`--label-column` must have at least {MIN_ROWS_PER_CLASS} rows a class, got {count} "
            f"for class {rarest} of {len(counts)} in {source}. Merge or drop rare classes."
        )
    names = sorted(counts)
    if all(map(NUMBER.fullmatch, names)):
        names.sort(key=Decimal)
    return tuple(names)


def known_labels(table: Table, column: str, known: Collection[str]) -> list[str]:
    """Return a column's labels after checking that they are those of a task.

    Raises:
        ValueError: See `checked_labels`, or a label is another.
    """
    labels = checked_labels(table, column)
    for row, label in enumerate(labels):
        if label not in known:
            raise ValueError(
                f"`--data` must have no labels but {', '.join(known)}, got {label!r} in "
                f"{table.place(row, column)}. Mend the row, or use --task custom for other classes."
            )
    return labels


def is_unicode(text: str) -> bool:
    """Tell whether a text can be stored; JSON's escapes can spell half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _label(value: Any) -> str | None:
    """Return a label as text: "" where there is none, None where it can't be a label.

    Numbers of JSON and Parquet have a value and no spelling: 1.0 is 1.
    """
    if value is None or (isinstance(value, float) and isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if isinstance(value, bytes | list | dict) else str(value).strip()


def _check_no_missing_number(table: Table, column: str, labels: list[str]) -> None:
    words = {label for label in set(labels) if not NUMBER.fullmatch(label)}
    if len(words) == 1 and words < set(labels) and min(words).lower() in MISSING:
        row = labels.index(min(words))
        raise ValueError(
            f"`--data` must hold a label in every row, got {labels[row]!r} among "
            f"numbers in {table.place(row, column)}. Remove the row, or write the class as a word."
        )


def _check_no_row_in_text(table: Table, column: str) -> None:
    """Check that no line inside of a cell ends or begins as rows of the file do.

    A quote that is left open takes in all up to the next quote. A line inside of a real text
    hardly ever has a label behind or before a bare delimiter, just where a row has it.
    """
    place, width = table.names.index(column), len(table.names)
    labels = set(table.cells[column]) if table.broken else set()
    for row, cell in table.broken:
        for line in cell.splitlines():
            cells = line.split(DELIMITERS[Path(table.source).suffix.lower()])
            ends = {cells[at] for at in (place, place - width) if -len(cells) <= at < len(cells)}
            if len(cells) > 1 and ends & labels:
                raise ValueError(
                    f"`--data` must close each quote in its row, got {line[:60]!r} inside of a "
                    f"cell of {table.place(row)}. Close the quote that opens there; if the text "
                    "is right, write the file as JSONL."
                )
