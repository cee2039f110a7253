"""Which part of a task's train split is used for what."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from alrq_core.data.encode import Batch, EncodedTask, Tokens, collate

# Of the train split, in its order. MiniLM at 2 bits, on other text than its codes are made from,
# loses 3.67 % of its outputs' energy with 4,096 tokens and 3.44 % with 16,384; these cost about as
# much as eight training steps.
CALIBRATION_TOKENS = 8192
MIN_CALIBRATION_TOKENS = 128
CALIBRATION_BATCH = 16
# Answers that tell what a reference depends on: so many sequences, or that many tokens of text.
# Twice as many leave at most 4 % less of the divergence of MiniLM's starts at 2 and 3 bits.
FISHER_SEQUENCES = 400


def check_calibration(train: Tokens) -> None:
    """Check that a train split has enough text to learn from what enters each module.

    Raises:
        ValueError: It hasn't.
    """
    found = int(train.offsets[-1])
    if found < MIN_CALIBRATION_TOKENS:
        raise ValueError(
            f"`--data` must have at least {MIN_CALIBRATION_TOKENS} tokens in its train split, to "
            f"learn what enters each module, got {found}. Use more text, or neither the codes of "
            "gptq (--quant-backend bnb, hqq or none) nor --lora-init residual or eva."
        )


@dataclass(frozen=True)
class TrainParts:
    """The parts of a task's train split.

    Attributes:
        task: Has it.
        tuned_sequences: What a trial sees in training that starts from a reference.
    """

    task: EncodedTask
    tuned_sequences: int

    def calibration(self) -> list[Batch]:
        """Return the text that codes are made for.

        Raises:
            ValueError: There is too little.
        """
        train = self.task.train
        check_calibration(train)
        count = int(np.searchsorted(train.offsets[1:], CALIBRATION_TOKENS)) + 1
        rows = np.arange(min(count, len(train)))
        return [
            collate(train, rows[start : start + CALIBRATION_BATCH], self.task.pad_id)
            for start in range(0, len(rows), CALIBRATION_BATCH)
        ]

    @cached_property
    def scored(self) -> Tokens:
        """What starts are scored on, as many sequences as half of validation."""
        return self.task.train.take(self._shuffled[: self._scored])

    @cached_property
    def tuned(self) -> Tokens:
        """What trials are trained on that start from a reference."""
        return self._after_scored(self.tuned_sequences)

    @cached_property
    def probed(self) -> Tokens:
        """What tells what a reference's answers depend on.

        None of it is scored, where starts that are made by it would look better than they are.
        """
        if self.task.kind == "classification":
            return self._after_scored(FISHER_SEQUENCES)
        return self._after_scored(max(1, CALIBRATION_TOKENS // int(self.task.train.lengths.mean())))

    def _after_scored(self, count: int) -> Tokens:
        return self.task.train.take(self._shuffled[self._scored : self._scored + count])

    @property
    def _shuffled(self) -> np.ndarray:
        return np.random.default_rng(0).permutation(len(self.task.train))

    @property
    def _scored(self) -> int:
        return max(1, min(len(self.task.validation), len(self.task.train)) // 2)
