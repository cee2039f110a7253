"""Reads people's own text: documents, a row each, or text files, which are cut by their lines."""

from collections.abc import Sequence
from pathlib import Path

from alrq_core.data.labels import checked_texts
from alrq_core.data.own_files import Splits, random_splits, split_files, split_note
from alrq_core.data.splits import TEST_FRACTION, VALIDATION_FRACTION, TextSplit, without_shared
from alrq_core.data.tables import READERS, check_column, read_table, text_lines

TEXT = ".txt"
# Of the lines of a text, in their order.
SHARES = {
    "train": 1 - VALIDATION_FRACTION - TEST_FRACTION,
    "validation": VALIDATION_FRACTION,
    "test": TEST_FRACTION,
}


def running_text(data: Path, column: str | None) -> Splits:
    """Return train, validation and test documents, and where they come from.

    Args:
        data: A text file, or a table with a document a row; or a folder of either.
        column: Of the documents in a table; None for `text`.

    Raises:
        ValueError: There is too little, or a file is of another form.
    """

    def read(path: Path) -> list[str]:
        name = column or "text"
        table = read_table(path, (name,))
        check_column(table, "--text-column", name)
        return checked_texts(table, name)

    files = split_files(data, (*READERS, TEXT))
    kinds = {path.suffix.lower() == TEXT for paths in files.values() for path in paths}
    if kinds == {False}:
        return random_splits(files, read)
    if kinds == {True} and column is None:
        return _by_lines({split: _paragraphs(paths) for split, paths in files.items()})
    raise ValueError(
        f"`--data` must hold {TEXT} files, or tables with a text column, got both. "
        + ("Give one kind." if column is None else "Leave out --text-column, or the text files.")
    )


def _paragraphs(paths: Sequence[Path]) -> TextSplit:
    """Return the lines of text files, a document each."""
    lines = [(line, number) for number, path in enumerate(paths) for line in text_lines(path)]
    return TextSplit(
        texts=tuple(line for line, _ in lines), documents=tuple(number for _, number in lines)
    )


def _by_lines(found: dict[str, TextSplit]) -> Splits:
    """Return the splits of text files, what has none cut from the end of those to train on."""
    pool = found["all"] if "all" in found else found["train"]
    pieces = [split for split in SHARES if split == "train" or split not in found]
    whole, end = sum(SHARES[piece] for piece in pieces), 0.0
    parts = dict(found)
    for piece in pieces:
        start, end = end, end + SHARES[piece] / whole
        rows = range(round(len(pool.texts) * start), round(len(pool.texts) * end))
        parts[piece] = pool.rows(rows)
    in_order = "the first 70, the next 10 and the last 20 % of its lines"
    note = split_note(found, in_order, "the end of train")
    train, validation, left_out = without_shared(parts["train"], parts["validation"], parts["test"])
    return train.joined(), validation.joined(), parts["test"].joined(), note + left_out
