"""Cuts labelled texts into splits, and keeps the splits apart."""

from collections.abc import Iterable
from dataclasses import dataclass

from datasets import ClassLabel, Dataset, Features, Value

SPLIT_SEED = 0
TEST_FRACTION = 0.2
VALIDATION_FRACTION = 0.1
PARAGRAPH_WORDS = 10


@dataclass(frozen=True, kw_only=True)
class TextSplit:
    """Texts in a fixed order; `labels` is empty for language modelling."""

    texts: tuple[str, ...]
    labels: tuple[int, ...] = ()

    def rows(self, numbers: Iterable[int]) -> "TextSplit":
        """Return the texts of these rows, in their order."""
        kept = list(numbers)
        return TextSplit(
            texts=tuple(self.texts[row] for row in kept),
            labels=tuple(self.labels[row] for row in kept if self.labels),
        )

    def joined(self) -> "TextSplit":
        """Return the texts as one, without labels."""
        return TextSplit(texts=("".join(self.texts),))

    def without(self, *others: "TextSplit") -> "TextSplit":
        """Return the texts that no other split holds; blanks make no difference.

        Without labels, texts are paragraphs, of which short ones such as headings may recur.
        """
        known = {tuple(text.split()) for other in others for text in other.texts}
        if not self.labels:
            known = {words for words in known if len(words) >= PARAGRAPH_WORDS}
        texts = enumerate(self.texts)
        return self.rows(row for row, text in texts if tuple(text.split()) not in known)


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
    train: TextSplit, validation: TextSplit, test: TextSplit
) -> tuple[TextSplit, TextSplit, str]:
    """Return train and validation split without the texts that are scored later, and a note.

    What a model was trained on, or chosen by, tells nothing about texts that it hasn't seen. The
    test split stays whole.

    Raises:
        ValueError: Nothing is left to train or to choose by.
    """
    chosen_by, trained_on = validation.without(test), train.without(validation, test)
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
