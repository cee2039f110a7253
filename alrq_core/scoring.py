"""Scores a model on a split: loss, accuracy and F1, or perplexity."""

from dataclasses import dataclass
from math import exp, sqrt

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import nn

from alrq_core.data.encode import (
    EVAL_BATCH_FACTOR,
    EncodedTask,
    Tokens,
    collate,
    eval_batches,
    part_tokens,
)
from alrq_core.data.losses import sequence_losses
from alrq_core.memory.machine import autocast
from alrq_core.records import Recipe, TestScore, TrialReport

# That the event log keeps.
LOSS_DIGITS, SECOND_DIGITS = 6, 2
# That a study's files keep of each test sequence.
SEQUENCE_LOSS_DIGITS = 5


@dataclass(frozen=True)
class Evaluation:
    """Losses and answers over one split, in the order of the split.

    Attributes:
        losses: Mean loss of each sequence.
        predictions: Predicted class of each sequence; empty for language modelling.
        labels: True classes; empty for language modelling.
        context_tokens, stride_tokens: See `TrialReport`.
    """

    losses: np.ndarray
    predictions: np.ndarray
    labels: np.ndarray
    context_tokens: int | None = None
    stride_tokens: int | None = None

    @property
    def loss(self) -> float:
        """Mean loss; all sequences weigh the same (windows of one split are of one length)."""
        return float(self.losses.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean loss over sequences."""
        return float(self.losses.std(ddof=1) / sqrt(len(self.losses)))

    @property
    def accuracy(self) -> float | None:
        """Fraction of right answers."""
        if not len(self.labels):
            return None
        return float((self.predictions == self.labels).mean())

    @property
    def f1(self) -> float | None:
        """Macro F1."""
        if not len(self.labels):
            return None
        return float(f1_score(self.labels, self.predictions, average="macro", zero_division=0.0))

    @property
    def perplexity(self) -> float | None:
        """Exponential of the mean loss, infinite where that overflows."""
        if len(self.labels):
            return None
        return exp(self.loss) if self.loss < 700 else float("inf")

    def trial_report(
        self,
        *,
        step: int,
        train_loss: float,
        train_seconds: float,
        eval_seconds: float,
        peak_memory_bytes: int,
    ) -> TrialReport:
        """Return what a trial reports at a rung; see `TrialReport` for what is not known here."""
        return TrialReport(
            step=step,
            train_loss=round(train_loss, LOSS_DIGITS),
            loss=round(self.loss, LOSS_DIGITS),
            loss_standard_error=round(self.standard_error, LOSS_DIGITS),
            sequences=len(self.losses),
            accuracy=_rounded(self.accuracy),
            f1=_rounded(self.f1),
            perplexity=_rounded(self.perplexity),
            context_tokens=self.context_tokens,
            stride_tokens=self.stride_tokens,
            train_seconds=round(train_seconds, SECOND_DIGITS),
            eval_seconds=round(eval_seconds, SECOND_DIGITS),
            peak_memory_bytes=peak_memory_bytes,
        )

    def test_score(self) -> TestScore:
        """Return the score that a confirmed trial keeps."""
        losses = tuple(round(float(loss), SEQUENCE_LOSS_DIGITS) for loss in self.losses)
        if self.accuracy is not None:
            right = (self.predictions == self.labels).astype(int)
            scores = tuple(float(value) for value in right)
            return TestScore(
                metric="accuracy",
                value=self.accuracy,
                loss=self.loss,
                f1=self.f1,
                scores=scores,
                losses=losses,
                predictions=tuple(int(label) for label in self.predictions),
            )
        assert self.perplexity is not None
        return TestScore(
            metric="perplexity",
            value=self.perplexity,
            loss=self.loss,
            f1=None,
            scores=losses,
            losses=losses,
            context_tokens=self.context_tokens,
            stride_tokens=self.stride_tokens,
        )


def evaluate(
    model: nn.Module,
    task: EncodedTask,
    tokens: Tokens,
    recipe: Recipe,
    compute_dtype: torch.dtype,
    device: torch.device,
) -> Evaluation:
    """Return losses and answers over a whole split; leaves the model in eval mode."""
    model.eval()
    losses = np.empty(len(tokens), dtype=np.float64)
    predictions = np.zeros(len(tokens.labels), dtype=np.int64)
    most = recipe.micro_batch * EVAL_BATCH_FACTOR
    for rows in eval_batches(tokens, most, part_tokens(device)):
        batch = collate(tokens, rows, task.pad_id).to(device)
        with torch.inference_mode(), autocast(compute_dtype, device):
            batch_losses, logits = sequence_losses(model, batch)
        losses[rows] = batch_losses.cpu().numpy()
        if len(predictions):
            predictions[rows] = logits.argmax(dim=-1).cpu().numpy()
    return Evaluation(losses, predictions, tokens.labels, task.context_tokens, task.stride_tokens)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, LOSS_DIGITS)
