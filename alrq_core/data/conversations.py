"""Reads people's own conversations, to learn the answers of.

A conversation becomes one text in JSON, so that splits and digests treat it as they do others;
`tokenise` makes tokens of it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alrq_core.data.labels import is_unicode
from alrq_core.data.own_files import Splits, random_splits, split_files
from alrq_core.data.tables import READERS, Table, check_column, read_table

# Of a conversation's form, the columns that it needs.
FORMS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
}
# Goes with instructions where it is there.
INPUT = "input"
COLUMNS = (*sum(FORMS.values(), ()), INPUT)
# ShareGPT's names for columns and roles.
SHARED = "conversations"
ALIASES: Mapping[str, str] = {"human": "user", "gpt": "assistant"}


def conversations(data: Path, columns: Mapping[str, str]) -> Splits:
    """Return train, validation and test conversations, and where they come from.

    Each has the number of its row in its file as `row`.

    Args:
        data: A file, or a folder with train.jsonl and so on.
        columns: Names of those of `COLUMNS` that are not called so.

    Raises:
        ValueError: A row is no conversation with answers. The message has its place.
    """

    def read(path: Path) -> list[str]:
        table = read_table(path, {*columns.values(), *COLUMNS, SHARED})
        rows = _rows(table, columns)
        return [json.dumps({**row, "row": number}) for number, row in enumerate(rows, start=1)]

    return random_splits(split_files(data, READERS), read, _words)


def _words(conversation: str) -> list[str]:
    """Return all that is said in a conversation, by whomever, in whichever form it came."""
    row = json.loads(conversation)
    form = next(form for form in FORMS if form in row)
    if form == "messages":
        said = [content for _, content in row[form]]
    else:
        said = [row[name] for name in COLUMNS if name in row]
    return [word for text in said for word in text.split()]


def _rows(table: Table, columns: Mapping[str, str]) -> Iterable[dict[str, Any]]:
    """Yield each row as a conversation; see `tokenise.conversation_tokens`."""
    form, names = _form(table, columns)
    given = columns.get(INPUT, INPUT)
    for row in range(table.rows):
        cells = {name: table.cells[column][row] for name, column in names.items()}
        places = {name: table.place(row, column) for name, column in names.items()}
        if form == "messages":
            yield {form: _messages(cells[form], places[form])}
            continue
        conversation = {name: _text(cell, places[name]) for name, cell in cells.items()}
        if form == "instruction":
            more = table.cells[given][row] if given in table.cells else None
            empty = more is None or (isinstance(more, str) and not more.strip())
            conversation[INPUT] = "" if empty else _text(more, table.place(row, given))
        yield conversation


def _form(table: Table, columns: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the form of a table's conversations, and the column of each thing that it needs."""
    if columns:
        every = {
            form: (*names, INPUT) if form == "instruction" else names
            for form, names in FORMS.items()
        }
        forms = [form for form, names in every.items() if columns.keys() & set(names)]
        if len(forms) > 1:
            flags = ", ".join(f"--{name}-column" for name in columns)
            raise ValueError(
                f"`--data` must hold conversations of one form, got {flags}. Give messages, or "
                "prompt and completion, or instruction, input and output."
            )
        [form] = forms
        for name in every[form]:
            if name != INPUT or name in columns:
                check_column(table, f"--{name}-column", columns.get(name, name))
        return form, {name: columns.get(name, name) for name in FORMS[form]}
    if SHARED in table.cells and "messages" not in table.cells:
        return "messages", {"messages": SHARED}
    for form, names in FORMS.items():
        if all(name in table.cells for name in names):
            return form, {name: name for name in names}
    half = next((n for n in FORMS.values() if any(name in table.cells for name in n)), None)
    wanted = " and ".join(half) if half else "messages, or prompt and completion, or instruction "
    raise ValueError(
        f"`--data` must have the column{'s' if half else ''} {wanted}"
        f"{'' if half else 'and output'}, got {', '.join(map(repr, table.names))} in "
        f"{table.source}. Name yours with --messages-column, or --prompt-column and "
        "--completion-column, or --instruction-column, --input-column and --output-column."
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
    if not isinstance(cell, str) or not cell.strip() or not is_unicode(cell):
        raise ValueError(
            f"`--data` must hold text for each prompt and answer, got {cell!r} in {place}. "
            "Remove or mend the row."
        )
    return cell
