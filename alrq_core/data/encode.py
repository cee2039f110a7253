"""The tokens of a task, and batches of them of similar length."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from alrq_core.recipe import Recipe
from alrq_core.records import TaskKind

# Batches that are sorted by length together: enough for tight padding, few enough to keep
# the order of an epoch random.
BUCKET_BATCHES = 25
EVAL_BATCH_FACTOR = 2
# Padded tokens that go through a model at once on a CPU: more don't make its products faster, but
# leave the cache between them and take memory. Scoring 427 sentences with MiniLM-L6, seconds by
# sentences at once: 4: 3.1, 8: 2.7, 16: 2.5, 32: 2.5, 64: 2.9, 128: 3.3 (28 tokens a sentence).
PART_TOKENS = 1024


@dataclass(frozen=True)
class Tokens:
    """Sequences of token numbers, one after another.

    Attributes:
        ids: All sequences joined, int32.
        offsets: Start of each sequence in `ids`, and the end of the last one.
        labels: Class of each sequence; empty for language modelling.
        counted: Whether each token is to be predicted, for language modelling; None for all. The
            first of a sequence never is.
    """

    ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    counted: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def sequence(self, index: int) -> np.ndarray:
        """Return one sequence, without a copy."""
        return self.ids[self._place(index)]

    def predicted(self, index: int) -> np.ndarray:
        """Return whether each token of a language model's sequence is to be predicted."""
        place = self._place(index)
        if self.counted is not None:
            found = self.counted[place].copy()
        else:
            found = np.ones(place.stop - place.start, dtype=bool)
        found[0] = False
        return found

    def _place(self, index: int) -> slice:
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def every(self, stride: int) -> "Tokens":
        """Return the first of every `stride` sequences."""
        return self.take(np.arange(0, len(self), stride))

    def first(self, count: int) -> "Tokens":
        """Return the first `count` sequences, or all if there are fewer."""
        return self.take(np.arange(min(count, len(self))))

    def take(self, rows: np.ndarray) -> "Tokens":
        """Return the sequences of these numbers, in their order."""
        sequences = [self.sequence(row) for row in rows]
        offsets = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
        labels = self.labels[rows] if len(self.labels) else self.labels
        counted = None
        if self.counted is not None:
            counted = np.concatenate([self.counted[self._place(row)] for row in rows])
        ids = np.concatenate(sequences)
        return replace(self, ids=ids, offsets=offsets, labels=labels, counted=counted)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence."""
        return np.diff(self.offsets)

    @property
    def targets(self) -> np.ndarray:
        """All that is to be answered: classes, or tokens."""
        if len(self.labels):
            return self.labels
        found = [self.sequence(row)[self.predicted(row)] for row in range(len(self))]
        return np.concatenate(found)

    @cached_property
    def answers(self) -> np.ndarray:
        """What a model is to answer in each sequence: one class, or so many tokens."""
        if len(self.labels):
            return np.ones(len(self), dtype=np.int64)
        return np.asarray([int(self.predicted(row).sum()) for row in range(len(self))])


@dataclass(frozen=True, kw_only=True)
class EncodedTask:
    """A task in tokens, ready for trials. Small enough to send to every worker.

    Attributes:
        conversations: Whether answers alone are learnt and scored.
        exact_match: Whether people read the share of conversations that are answered word by word,
            instead of perplexity.
        cut_answers: Answers of validation and test that were too long.
    """

    name: str
    kind: TaskKind
    label_names: tuple[str, ...]
    splits: str
    pad_id: int
    train: Tokens
    validation: Tokens
    test: Tokens
    conversations: bool = False
    exact_match: bool = False
    cut_answers: int = 0

    @property
    def most_answers(self) -> int:
        """What one sequence of the train split is asked for at most, in classes or tokens."""
        return int(self.train.answers.max())

    def scored_on(self, count: int) -> "EncodedTask":
        """Return the task with only the first sequences of validation and test split."""
        return replace(
            self,
            splits=f"{self.splits}; the first {count} sequences of validation and test are scored",
            validation=self.validation.first(count),
            test=self.test.first(count),
        )

    @property
    def metric(self) -> str:
        """Name of the metric that people read."""
        if self.kind == "classification":
            return "accuracy"
        return "exact_match" if self.exact_match else "perplexity"

    @property
    def context_tokens(self) -> int | None:
        """Tokens of a scored window of a running text; None for other tasks."""
        running = self.kind == "language-modelling" and not self.conversations
        return int(self.test.lengths[0]) if running else None

    @property
    def stride_tokens(self) -> int | None:
        """Tokens from the start of a window to that of the next; windows do not overlap."""
        return self.context_tokens


@dataclass(frozen=True)
class Batch:
    """One padded batch.

    Attributes:
        input_ids: batch x length.
        attention_mask: batch x length, 1 where there is a token.
        targets: What is to be answered, a class or a token, sequence after sequence.
        places: Where a language model answers that, counted through `input_ids`; None where each
            sequence has one answer.
        mean_answers: Of a sequence, in the mean of its split.
        rows: Numbers of its sequences in the split.
        padded: Whether a model needs the mask. A decoder doesn't: what pads a sequence comes after
            it, where no token of it looks. To see that a mask hides nothing, a GPU would have to
            finish its queue.
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    rows: np.ndarray
    places: Tensor | None = None
    mean_answers: float = 1.0
    padded: bool = True

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return replace(
            self,
            input_ids=sent(self.input_ids, device),
            attention_mask=sent(self.attention_mask, device),
            targets=sent(self.targets, device),
            places=None if self.places is None else sent(self.places, device),
        )

    def by_sequence(self, values: Tensor) -> Tensor:
        """Return each sequence's sum of what was found for its answers, over `mean_answers`.

        So that all answers of a split weigh alike in the mean over its sequences.
        """
        if self.places is None:
            return values
        spread = values.new_zeros(self.input_ids.numel()).scatter(0, self.places, values)
        return spread.view_as(self.input_ids).sum(dim=1) / self.mean_answers


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device, which may still be at work on what came before."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def epoch_batches(rows: int, batch_size: int) -> int:
    """Return the number of batches in which every row comes once."""
    return -(-rows // batch_size)


def train_batches(tokens: Tokens, recipe: Recipe, seed: int) -> Iterator[np.ndarray]:
    """Yield the rows of each batch, epoch after epoch, without end.

    An epoch holds every row once, in as few batches as hold them. Where the rows don't divide, the
    batches are of equal size but for one row, so that all rows weigh alike. The same seed gives
    the same order.
    """
    generator = np.random.default_rng(seed)
    lengths = tokens.lengths
    number = epoch_batches(len(tokens), recipe.batch_size)
    while True:
        sizes = [len(part) for part in np.array_split(lengths, number)]
        batches: list[np.ndarray] = []
        order = generator.permutation(len(tokens))
        for first in range(0, number, BUCKET_BATCHES):
            ends = np.cumsum(sizes[first : first + BUCKET_BATCHES])
            bucket, order = np.split(order, ends[-1:])
            bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
            batches.extend(np.split(bucket, ends[:-1]))
        for place in generator.permutation(number):
            yield batches[place]


def part_tokens(device: torch.device) -> int | None:
    """Return the padded tokens that go through a model at once on a device; None for no limit."""
    return PART_TOKENS if device.type == "cpu" else None


def train_parts(
    rows: np.ndarray, lengths: np.ndarray, most: int, most_tokens: int | None
) -> list[np.ndarray]:
    """Return a batch cut into the least number of equal parts that fit.

    Args:
        rows: Of the batch.
        lengths: Tokens of every sequence of the split.
        most: Sequences of a part.
        most_tokens: Padded tokens of a part, unless it is a single sequence; None for no limit.
    """
    if most_tokens is not None:
        most = min(most, max(1, most_tokens // int(lengths[rows].max())))
    return np.array_split(rows, -(-len(rows) // most))


def eval_batches(tokens: Tokens, most: int, most_tokens: int | None) -> Iterator[np.ndarray]:
    """Yield the rows of every sequence once, sorted by length.

    Args:
        tokens: Of the split.
        most: Sequences of a batch.
        most_tokens: Padded tokens of a batch, unless it is a single sequence; None for no limit.
    """
    order, start = np.argsort(tokens.lengths, kind="stable"), 0
    lengths = tokens.lengths[order]
    while start < len(order):
        end = min(start + most, len(order))
        if most_tokens is not None:
            padded = lengths[start:end] * np.arange(1, end - start + 1)
            end = start + max(1, int(np.searchsorted(padded, most_tokens, side="right")))
        yield order[start:end]
        start = end


def collate(tokens: Tokens, rows: np.ndarray, pad_id: int) -> Batch:
    """Return the sequences of these rows, padded to the longest of them."""
    sequences = [tokens.sequence(int(row)) for row in rows]
    shape = (len(sequences), max(len(sequence) for sequence in sequences))
    ids = np.full(shape, pad_id, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    predicted = np.zeros(shape, dtype=bool)
    for line, (row, sequence) in enumerate(zip(rows, sequences, strict=True)):
        ids[line, : len(sequence)] = sequence
        mask[line, : len(sequence)] = 1
        if not len(tokens.labels):
            predicted[line, : len(sequence)] = tokens.predicted(int(row))
    places = None
    if len(tokens.labels):
        targets = tokens.labels[rows]
    else:
        targets = ids[predicted]
        # A token is predicted where the one before it stands.
        places = torch.from_numpy(np.flatnonzero(predicted) - 1)
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.from_numpy(targets),
        rows,
        places,
        float(tokens.answers.mean()),
        padded=places is None and not mask.all(),
    )
