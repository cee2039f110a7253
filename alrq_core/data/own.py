"""Reads people's own files for language models: conversations to learn the answers of, and text.

A conversation becomes one text in JSON, so that splits, digests and the search for duplicates treat
it as they do others; `tokenise` makes tokens of it.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from alrq_core.data.labels import checked_texts
from alrq_core.data.splits import (
    SPLIT_SEED,
    TEST_FRACTION,
    VALIDATION_FRACTION,
    TextSplit,
    cut_off,
    without_shared,
)
from alrq_core.data.tables import READERS, Table, check_column, check_suffix, read_table, text_lines

# Splits and what their files may be called.
STEMS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
MESSAGES = ("messages", "conversations")
# Of a conversation's form, the columns that it needs.
FORMS: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in MESSAGES},
    "prompt": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
}
# ShareGPT's names for roles.
ALIASES: Mapping[str, str] = {"human": "user", "gpt": "assistant"}
MIN_ROWS = 20
Splits = tuple[TextSplit, TextSplit, TextSplit, str]


def conversations(data: Path, columns: Mapping[str, str]) -> Splits:
    """Return train, validation and test conversations, and where they come from.

    Args:
        data: A file, or a folder with train.jsonl and so on.
        columns: Names of the columns `messages`, or `prompt` and `completion`, where they are not
            called so.

    Raises:
        ValueError: A row is no conversation with answers. The message has its place.
    """

    def read(path: Path) -> list[str]:
        table = read_table(path, [*columns.values(), *sum(FORMS.values(), ()), "input"])
        return [json.dumps(row) for row in _rows(table, columns)]

    return _split(_files(data, READERS), read)


def running_text(data: Path, column: str | None) -> Splits:
    """Return train, validation and test documents, and where they come from.

    Args:
        data: A text file, or a table with a document a row; or a folder of either.
        column: Of the documents in a table; None for `text`.

    Raises:
        ValueError: There is too little, or a file is of another form.
    """

    def read(path: Path) -> list[str]:
        if path.suffix.lower() == ".txt":
            return ["".join(text_lines(path))]
        name = column or "text"
        table = read_table(path, (name,))
        check_column(table, "--text-column", name)
        return checked_texts(table, name)

    files = _files(data, (*READERS, ".txt"))
    if [*files] == ["all"] and len(files["all"]) == 1 and files["all"][0].suffix == ".txt":
        return _contiguous(files["all"][0])
    return _split(files, read)


def _files(data: Path, suffixes: Iterable[str]) -> dict[str, list[Path]]:
    """Return the files of each split, or of `all` where the names tell none."""
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
        split: [path for path in found if path.stem.partition("-")[0].lower() in stems]
        for split, stems in STEMS.items()
    }
    if not splits["train"]:
        return {"all": found}
    return {split: paths for split, paths in splits.items() if paths}


def _split(files: Mapping[str, list[Path]], read: Callable[[Path], list[str]]) -> Splits:
    """Return the splits of files, cut at random where there are none, apart from each other."""
    rows = {
        split: _labelled([text for path in paths for text in read(path)])
        for split, paths in files.items()
    }
    train, known = rows["all"] if "all" in rows else rows["train"], [*rows]
    if len(train.texts) < MIN_ROWS and len(rows) < len(STEMS):
        raise ValueError(
            f"`--data` must have at least {MIN_ROWS} rows to be split, got {len(train.texts)}. "
            "Use more, or files for train, validation and test."
        )
    if "test" not in rows:
        train, rows["test"] = cut_off(train, TEST_FRACTION)
    if "validation" not in rows:
        train, rows["validation"] = cut_off(train, VALIDATION_FRACTION / (1 - TEST_FRACTION))
    if len(known) == 1:
        note = f"random 70/10/20 with seed {SPLIT_SEED}"
    else:
        cut = [split for split in STEMS if split not in known]
        note = f"{' and '.join(known)} files"
        note += f"; {cut[0]} cut from train at random with seed {SPLIT_SEED}" if cut else ""
    train, validation, left_out = without_shared(train, rows["validation"], rows["test"])
    parts = [TextSplit(texts=part.texts) for part in (train, validation, rows["test"])]
    return parts[0], parts[1], parts[2], note + left_out


def _labelled(texts: list[str]) -> TextSplit:
    """Return texts of one class: what is cut by classes, and compared as a whole."""
    return TextSplit(texts=tuple(texts), labels=(0,) * len(texts))


def _contiguous(path: Path) -> Splits:
    """Return the first seven, the next and the last two tenths of one text's paragraphs."""
    lines = list(text_lines(path))
    tested = 1 - TEST_FRACTION
    ends = [round(len(lines) * part) for part in (0, tested - VALIDATION_FRACTION, tested, 1)]
    parts = [TextSplit(texts=tuple(lines[start:end])) for start, end in pairwise(ends)]
    train, validation, left_out = without_shared(*parts)
    note = "the first 70, the next 10 and the last 20 % of its lines"
    return train.joined(), validation.joined(), parts[2].joined(), note + left_out


def _rows(table: Table, columns: Mapping[str, str]) -> Iterable[dict[str, Any]]:
    """Yield each row as a conversation; see `tokenise.conversation_tokens`."""
    form, names = _form(table, columns)
    for row in range(table.rows):
        cells = [table.cells[name][row] for name in names]
        if form == "messages":
            yield {"messages": _messages(cells[0], table.place(row, names[0]))}
            continue
        texts = [
            _text(cell, table.place(row, name)) for name, cell in zip(names, cells, strict=True)
        ]
        if form == "prompt":
            yield {"prompt": texts[0], "completion": texts[1]}
            continue
        more = table.cells["input"][row] if "input" in table.cells else None
        if more is not None and not isinstance(more, str):
            _text(more, table.place(row, "input"))
        yield {"instruction": texts[0], "input": more or "", "output": texts[1]}


def _form(table: Table, columns: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Return the form of a table's conversations and their columns."""
    if "messages" in columns:
        check_column(table, "--messages-column", columns["messages"])
        return "messages", (columns["messages"],)
    if columns:
        pair = (columns.get("prompt", "prompt"), columns.get("completion", "completion"))
        for flag, name in zip(("--prompt-column", "--completion-column"), pair, strict=True):
            check_column(table, flag, name)
        return "prompt", pair
    for form, names in FORMS.items():
        if all(name in table.cells for name in names):
            return ("messages" if form in MESSAGES else form), names
    half = next((n for n in FORMS.values() if any(name in table.cells for name in n)), None)
    wanted = " and ".join(half) if half else "messages, or prompt and completion, or instruction "
    raise ValueError(
        f"`--data` must have the column{'s' if half else ''} {wanted}"
        f"{'' if half else 'and output'}, got {', '.join(map(repr, table.names))} in "
        f"{table.source}. Name yours with --messages-column, or --prompt-column and "
        "--completion-column."
    )


def _messages(cell: Any, place: str) -> list[tuple[str, str]]:
    """Return roles and contents of a conversation, after checking that each has its turn."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            cell = None
    if not isinstance(cell, list) or not all(isinstance(turn, dict) for turn in cell):
        raise ValueError(
            f"`--data` must hold a list of messages with role and content, got something else in "
            f"{place}. Mend the row."
        )
    turns = []
    for turn in cell:
        role = turn.get("role", turn.get("from"))
        content = _text(turn.get("content", turn.get("value")), place)
        turns.append((ALIASES.get(str(role), str(role)), content))
    roles = [role for role, _ in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != [("user", "assistant")[n % 2] for n in range(len(spoken))]:
        raise ValueError(
            "`--data` must hold messages of user and assistant in turn, after a system message or "
            f"none, got {', '.join(roles) or 'none'} in {place}. Mend the row."
        )
    if spoken[-1] != "assistant":
        raise ValueError(
            f"`--data` must hold conversations that end with an answer of the assistant, got "
            f"{', '.join(roles)} in {place}. Remove the last message, or answer it."
        )
    return turns


def _text(cell: Any, place: str) -> str:
    if isinstance(cell, list | dict):
        raise ValueError(
            "`--data` must hold text for each message, got nested content, as of images, in "
            f"{place}. Keep the text alone."
        )
    if not isinstance(cell, str) or not cell.strip():
        raise ValueError(
            f"`--data` must hold text for each prompt and answer, got {cell!r} in {place}. "
            "Remove or mend the row."
        )
    return cell
