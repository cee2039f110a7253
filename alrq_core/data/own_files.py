"""Tells which of one's own files hold which split, and cuts what has no files of its own."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from alrq_core.data.splits import (
    SPLIT_SEED,
    TEST_FRACTION,
    VALIDATION_FRACTION,
    TextSplit,
    cut_off,
    without_shared,
)
from alrq_core.data.tables import check_suffix

# Splits and what their files may be called, before a hyphen, an underscore or a dot.
STEMS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
MIN_ROWS = 20
Splits = tuple[TextSplit, TextSplit, TextSplit, str]


def split_files(data: Path, suffixes: Iterable[str]) -> dict[str, list[Path]]:
    """Return the files of each split, or of `all` where no name tells one.

    Raises:
        ValueError: There are none, or names tell later splits and none to train on.
    """
    known = tuple(suffixes)
    if data.is_file():
        check_suffix(data, known)
        return {"all": [data]}
    found = sorted(path for path in data.rglob("*") if path.suffix.lower() in known)
    if not found:
        raise ValueError(
            f"`--data` must be a file or a folder of {', '.join(known)}, got {str(data)!r}. "
            "Check the path."
        )
    splits = {
        split: [path for path in found if re.split("[-_.]", path.name.lower())[0] in stems]
        for split, stems in STEMS.items()
    }
    splits = {split: paths for split, paths in splits.items() if paths}
    if splits and "train" not in splits:
        raise ValueError(
            f"`--data` must have a file train{found[0].suffix} beside that of "
            f"{' and '.join(splits)}, got {', '.join(path.name for path in found)}. Add it, or "
            "give one file to be split."
        )
    return splits or {"all": found}


def random_splits(
    files: Mapping[str, Sequence[Path]],
    read: Callable[[Path], list[str]],
    words: Callable[[str], Sequence[str]] = str.split,
) -> Splits:
    """Return the rows of each split, cut at random where it has no files, and what was done.

    Args:
        files: See `split_files`.
        read: Returns the texts of a file.
        words: By which a text is found again in another split.

    Raises:
        ValueError: There are too few, or the same ones everywhere.
    """
    rows = {
        split: _labelled([text for path in paths for text in read(path)])
        for split, paths in files.items()
    }
    train = rows["all"] if "all" in rows else rows["train"]
    if len(train.texts) < MIN_ROWS and len(rows) < len(STEMS):
        raise ValueError(
            f"`--data` must have at least {MIN_ROWS} rows to be split, got {len(train.texts)}. "
            "Use more, or files for train, validation and test."
        )
    for later in ("validation", "test"):
        if later in rows and not rows[later].without(train, words=words).texts:
            raise ValueError(
                f"`--data` must have rows to score that are not trained on, got a {later} file "
                f"whose {len(rows[later].texts)} rows are all in train, from row 1 of "
                f"{files[later][0].name} on. Use others, or leave that file out."
            )
    seed = f"with seed {SPLIT_SEED}"
    note = split_note(rows, f"random 70/10/20 {seed}", f"train at random {seed}")
    if "test" not in rows:
        train, rows["test"] = cut_off(train, TEST_FRACTION)
    if "validation" not in rows:
        train, rows["validation"] = cut_off(train, VALIDATION_FRACTION / (1 - TEST_FRACTION))
    train, validation, left_out = without_shared(
        train, rows["validation"], rows["test"], words=words
    )
    parts = [TextSplit(texts=part.texts) for part in (train, validation, rows["test"])]
    return parts[0], parts[1], parts[2], note + left_out


def split_note(known: Iterable[str], whole: str, cut: str) -> str:
    """Return where splits come from.

    Args:
        known: Splits that have files, or `all`.
        whole: How everything was cut where there are files of no split.
        cut: Of what, and how, a split was cut that has no files.
    """
    known = [*known]
    if known == ["all"]:
        return whole
    lacking = [split for split in STEMS if split not in known]
    note = f"{' and '.join(known)} files"
    return note + (f"; {' and '.join(lacking)} cut from {cut}" if lacking else "")


def _labelled(texts: list[str]) -> TextSplit:
    """Return texts of one class: what is cut by classes, and compared as a whole."""
    return TextSplit(texts=tuple(texts), labels=(0,) * len(texts))
