"""Scores a model on a split: loss, accuracy and F1, or perplexity."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn

from alrq_core.data.answers import Answers, divergences, likeliest
from alrq_core.data.encode import (
    EVAL_BATCH_FACTOR,
    Batch,
    EncodedTask,
    Tokens,
    collate,
    eval_batches,
    part_tokens,
)
from alrq_core.data.losses import logits_of, losses_of
from alrq_core.precision import autocast
from alrq_core.recipe import Recipe
from alrq_core.records import TestScore, TrialReport

# That the event log keeps.
LOSS_DIGITS, SECOND_DIGITS = 6, 2
# That a study's files keep of each test sequence.
SEQUENCE_LOSS_DIGITS = 5


@dataclass(frozen=True)
class Evaluation:
    """Losses and answers over one split, in the order of the split.

    Attributes:
        losses: Of each sequence: see `Batch.by_sequence`.
        predictions: Predicted class of each sequence; empty for language modelling.
        labels: True classes; empty for language modelling.
        divergences: Of each sequence from a reference's answers; None where they were not given.
        context_tokens, stride_tokens: See `TrialReport`.
        matches: Whether each conversation is answered word by word; None where that isn't scored.
    """

    losses: np.ndarray
    predictions: np.ndarray
    labels: np.ndarray
    divergences: np.ndarray | None = None
    context_tokens: int | None = None
    stride_tokens: int | None = None
    matches: np.ndarray | None = None

    @property
    def loss(self) -> float:
        """Mean loss; all answers weigh the same."""
        return float(self.losses.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean loss over sequences; of a single one, as if it were all."""
        freedom = min(1, len(self.losses) - 1)
        return float(self.losses.std(ddof=freedom) / sqrt(len(self.losses)))

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

    @property
    def exact_match(self) -> float | None:
        """Fraction of conversations that greedy decoding answers word by word.

        It does so just where each token of the answers, the one that ends them included, is the
        likeliest after those before it: that is read from the logits, and nothing is generated.
        """
        return None if self.matches is None else float(self.matches.mean())

    def trial_report(
        self,
        *,
        step: int,
        train_loss: float,
        train_seconds: float,
        eval_seconds: float,
        peak_memory_bytes: int,
        start: "Evaluation | None" = None,
    ) -> TrialReport:
        """Return what a trial reports at a rung; see `TrialReport` for what is not known here.

        Args:
            step, train_loss, train_seconds, eval_seconds, peak_memory_bytes: As reported.
            start: Over the sequences on which the divergence from a reference is measured.
        """
        apart = None if start is None else start.divergences
        return TrialReport(
            step=step,
            train_loss=round(train_loss, LOSS_DIGITS),
            loss=round(self.loss, LOSS_DIGITS),
            loss_standard_error=round(self.standard_error, LOSS_DIGITS),
            sequences=len(self.losses),
            accuracy=_rounded(self.accuracy),
            f1=_rounded(self.f1),
            perplexity=_rounded(self.perplexity),
            exact_match=_rounded(self.exact_match),
            divergence=None if apart is None else float(f"{apart.mean():.6g}"),
            divergence_standard_error=(
                None if apart is None else float(f"{apart.std(ddof=1) / sqrt(len(apart)):.3g}")
            ),
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
        if self.matches is not None:
            return TestScore(
                metric="exact_match",
                value=float(self.matches.mean()),
                loss=self.loss,
                f1=None,
                scores=tuple(float(match) for match in self.matches),
                losses=losses,
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


@dataclass(frozen=True)
class Scorer:
    """Runs a model over whole splits, and leaves it in eval mode.

    Attributes:
        model: On the device.
        task: Whose splits they are.
        recipe: Says how many sequences fit.
        compute_dtype: Type of the matrix products.
        device: Where it runs.
    """

    model: nn.Module
    task: EncodedTask
    recipe: Recipe
    compute_dtype: torch.dtype
    device: torch.device

    def evaluate(self, tokens: Tokens, answers: Answers | None = None) -> Evaluation:
        """Return losses and answers over a split, and its divergence from a reference's answers."""
        losses = np.empty(len(tokens), dtype=np.float64)
        predictions = np.zeros(len(tokens.labels), dtype=np.int64)
        apart = None if answers is None else np.empty(len(tokens), dtype=np.float64)
        matches = np.empty(len(tokens), dtype=bool) if self.task.exact_match else None
        for batch, logits in self._forward(tokens):
            losses[batch.rows] = losses_of(logits, batch).cpu().numpy()
            if len(predictions):
                predictions[batch.rows] = logits.argmax(dim=-1).cpu().numpy()
            if matches is not None:
                right = (logits.argmax(dim=-1) == batch.targets).cpu().numpy()
                starts = np.cumsum([0, *tokens.answers[batch.rows][:-1]])
                matches[batch.rows] = np.logical_and.reduceat(right, starts)
            if answers is not None and apart is not None:
                theirs = answers.of(batch.rows, self.device)
                apart[batch.rows] = divergences(logits, batch, theirs).cpu().numpy()
        task = self.task
        return Evaluation(
            losses=losses,
            predictions=predictions,
            labels=tokens.labels,
            divergences=apart,
            context_tokens=task.context_tokens,
            stride_tokens=task.stride_tokens,
            matches=matches,
        )

    def answers_to(self, tokens: Tokens) -> Answers:
        """Return what the model answers to a split."""
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        for batch, logits in self._forward(tokens):
            counts = tokens.answers[batch.rows].tolist()
            for row, own in zip(batch.rows, logits.split(counts), strict=True):
                ids, logs = likeliest(own)
                kept[int(row)] = ids.cpu(), logs.cpu()
        each = [kept[row] for row in range(len(tokens))]
        ends = torch.from_numpy(tokens.answers.cumsum())
        return Answers(
            torch.cat([ids for ids, _ in each]),
            torch.cat([logs for _, logs in each]),
            torch.cat((ends.new_zeros(1), ends)),
        )

    def _forward(self, tokens: Tokens) -> Iterator[tuple[Batch, Tensor]]:
        """Yield each batch of a split with its logits."""
        self.model.eval()
        most = self.recipe.micro_batch * EVAL_BATCH_FACTOR
        for rows in eval_batches(tokens, most, part_tokens(self.device)):
            batch = collate(tokens, rows, self.task.pad_id).to(self.device)
            with torch.inference_mode(), autocast(self.compute_dtype, self.device):
                logits = logits_of(self.model, batch)
            yield batch, logits


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, LOSS_DIGITS)
