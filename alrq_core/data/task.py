"""A task's texts, split once."""

from collections.abc import Iterable
from dataclasses import dataclass

from alrq_core.data.splits import (
    SPLIT_SEED,
    TEST_FRACTION,
    VALIDATION_FRACTION,
    TextSplit,
    cut_off,
    without_shared,
)
from alrq_core.records import TaskKind


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


def numbered(texts: list[str], labels: list[str], classes: Iterable[str]) -> TextSplit:
    """Return the texts with the number of each one's class: its place among `classes`."""
    numbers = {name: number for number, name in enumerate(classes)}
    return TextSplit(texts=tuple(texts), labels=tuple(numbers[label] for label in labels))


def stratified(name: str, rows: TextSplit, label_names: tuple[str, ...]) -> Task:
    """Return a task whose splits are cut from these rows, each class alike."""
    rest, test = cut_off(rows, TEST_FRACTION)
    train, validation = cut_off(rest, VALIDATION_FRACTION / (1 - TEST_FRACTION))
    note = f"no official splits: stratified 70/10/20 with seed {SPLIT_SEED}"
    return classification(name, label_names, note, train, validation, test)


def classification(
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
