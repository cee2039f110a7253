"""Reads the texts of a task into train, validation and test splits."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from alrq_core.data.conversations import COLUMNS, conversations
from alrq_core.data.labels import checked_labels, checked_texts, class_names
from alrq_core.data.own_text import running_text
from alrq_core.data.public_tasks import PACKAGED, TASKS
from alrq_core.data.tables import READERS, check_column, check_suffix, read_table
from alrq_core.data.task import Task, numbered, stratified


def load_task(
    name: str, data: Path | None = None, columns: Mapping[str, str] = MappingProxyType({})
) -> Task:
    """Return the named task, from a package, local files or the hub.

    Args:
        name: One of `TASKS` or `OWN`.
        data: Files of one's own, or a folder (`sst2`, `wikitext2`).
        columns: What a column of one's own files holds, see `OWN`, to its name.

    Raises:
        ValueError: Unknown task, or data that is missing or doesn't fit it.
    """
    check_task_name(name)
    for column in columns:
        if column not in OWN.get(name, ()):
            goes_with = [task for task, known in OWN.items() if column in known]
            raise ValueError(
                f"`--{column}-column` goes with --task {' or '.join(goes_with)}, got --task {name}."
                " Leave it out, or use another task."
            )
    if name in OWN and data is None:
        raise ValueError(f"`--task` {name} needs --data, got none. Give a file, or a folder.")
    if name in OWN and data is not None:
        return _own(name, data, columns)
    if data is not None and name in PACKAGED:
        raise ValueError(
            f"`--data` goes with sst2, wikitext2, {', '.join(OWN)}, got --task {name}, which comes "
            "from an installed package. Leave --data out."
        )
    if data is not None and not data.is_dir():
        raise ValueError(
            f"`--data` must be a folder for --task {name}, got {str(data)!r}. "
            "Give the folder that holds its files."
        )
    return TASKS[name](data)


def check_task_name(name: str) -> None:
    """Check that the task exists.

    Raises:
        ValueError: It doesn't.
    """
    if name not in (*TASKS, *OWN):
        raise ValueError(
            f"`--task` must be one of {', '.join((*TASKS, *OWN))}, got {name!r}. "
            "Use custom, sft or text with --data for your own."
        )


def _own(name: str, data: Path, columns: Mapping[str, str]) -> Task:
    if name == "custom":
        if set(columns) != set(OWN[name]):
            raise ValueError(
                "`--task` custom needs --text-column and --label-column, got "
                f"{', '.join(columns) or 'neither'}. Give both."
            )
        return _custom(data, columns["text"], columns["label"])
    if name == "sft":
        train, validation, test, note = conversations(data, columns)
    else:
        train, validation, test, note = running_text(data, columns.get("text"))
    return Task(
        name=name,
        kind="language-modelling",
        label_names=(),
        splits=note,
        train=train,
        validation=validation,
        test=test,
        conversations=name == "sft",
    )


def _custom(path: Path, text_column: str, label_column: str) -> Task:
    if not path.is_file():
        raise ValueError(f"`--data` must be a file, got {str(path)!r}. Check the path.")
    check_suffix(path, READERS)
    table = read_table(path, (text_column, label_column))
    for flag, column in (("--text-column", text_column), ("--label-column", label_column)):
        check_column(table, flag, column)
    texts, labels = checked_texts(table, text_column), checked_labels(table, label_column)
    names = class_names(labels, path.name)
    return stratified("custom", numbered(texts, labels, names), names)


# Tasks of one's own files, and what columns of them may hold.
OWN: Mapping[str, tuple[str, ...]] = {
    "custom": ("text", "label"),
    "sft": COLUMNS,
    "text": ("text",),
}
