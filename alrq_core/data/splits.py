"""Cuts labelled texts into splits, and keeps the splits apart."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from datasets import ClassLabel, Dataset, Features, Value

SPLIT_SEED = 0
TEST_FRACTION = 0.2
VALIDATION_FRACTION = 0.1
PARAGRAPH_WORDS = 10


@dataclass(frozen=True, kw_only=True)
class TextSplit:
    """Texts in a fixed order.

    Attributes:
        texts: Whole ones, or paragraphs.
        labels: Class of each; empty for language modelling.
        documents: Of paragraphs, number of the text that each is from; empty where all are from
            one.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...] = ()
    documents: tuple[int, ...] = ()

    def rows(self, numbers: Iterable[int]) -> "TextSplit":
        """Return the texts of these rows, in their order."""
        kept = list(numbers)
        return TextSplit(
            texts=tuple(self.texts[row] for row in kept),
            labels=tuple(self.labels[row] for row in kept if self.labels),
            documents=tuple(self.documents[row] for row in kept if self.documents),
        )

    def joined(self) -> "TextSplit":
        """Return the texts that these paragraphs are from, without labels."""
        whole: dict[int, list[str]] = {}
        numbers = self.documents or (0,) * len(self.texts)
        for number, text in zip(numbers, self.texts, strict=True):
            whole.setdefault(number, []).append(text)
        return TextSplit(texts=tuple("".join(texts) for texts in whole.values()))

    def without(
        self, *others: "TextSplit", words: Callable[[str], Sequence[str]] = str.split
    ) -> "TextSplit":
        """Return the texts that no other split holds.

        Without labels, texts are paragraphs, of which short ones such as headings may recur.

        Args:
            others: The splits.
            words: Of a text. Two texts of the same words are the same: blanks make no difference.
        """
        known = {tuple(words(text)) for other in others for text in other.texts}
        if not self.labels:
            known = {found for found in known if len(found) >= PARAGRAPH_WORDS}
        texts = enumerate(self.texts)
        return self.rows(row for row, text in texts if tuple(words(text)) not in known)


def cut_off(rows: TextSplit, fraction: float) -> tuple[TextSplit, TextSplit]:
    """Return the rest and a random part in which each class has its share."""
    classes = ClassLabel(num_classes=max(rows.labels) + 1)
    table = Dataset.from_dict(
        {"row": range(len(rows.texts)), "label": rows.labels},
        features=Features({"row": Value("int64"), "label": classes}),
    )
    parts = table.train_test_split(
        test_size=fraction, seed=SPLIT_SEED, stratify_by_column="label", keep_in_memory=True
    )
    return rows.rows(parts["train"]["row"][:]), rows.rows(parts["test"]["row"][:])


def without_shared(
    train: TextSplit,
    validation: TextSplit,
    test: TextSplit,
    words: Callable[[str], Sequence[str]] = str.split,
) -> tuple[TextSplit, TextSplit, str]:
    """Return train and validation split without the texts that are scored later, and a note.

    What a model was trained on, or chosen by, tells nothing about texts that it hasn't seen. The
    test split stays whole.

    Raises:
        ValueError: Nothing is left to train or to choose by.
    """
    chosen_by = validation.without(test, words=words)
    trained_on = train.without(validation, test, words=words)
    if set(trained_on.labels) != set(train.labels) or len(chosen_by.texts) < 2:
        raise ValueError(
            "`--data` must have texts of each class in the train split, and two in the validation "
            f"split, that no later split has, got {len(trained_on.texts)} of {len(train.texts)} "
            f"and {len(chosen_by.texts)} of {len(validation.texts)}. Remove repeated texts."
        )
    note = ""
    for whole, left, name, later in (
        (train, trained_on, "train", "validation or test"),
        (validation, chosen_by, "validation", "test"),
    ):
        count = len(whole.texts) - len(left.texts)
        if count:
            note += f"; {count} texts that are also in {later} left out of {name}"
    return trained_on, chosen_by, note
