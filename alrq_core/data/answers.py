"""What a model answers, kept small, and how far another model's answers are from it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from alrq_core.data.encode import Batch, sent

# Answers whose probabilities are kept. All others count as one.
KEPT_ANSWERS = 32
# Below float32's resolution next to 1.
LEAST_PROBABILITY = 1e-7


@dataclass(frozen=True)
class Answers:
    """The likeliest answers of a model to each sequence of a split.

    Attributes:
        ids: Classes, sequences x kept, int32; of a language model the tokens that follow, sequences
            x (length - 1) x kept.
        logs: Logarithms of their probabilities, float32, of the same shape.
    """

    ids: Tensor
    logs: Tensor

    def of(self, rows: np.ndarray, device: torch.device) -> "Answers":
        """Return the answers to some sequences, on a device."""
        chosen = torch.from_numpy(rows)
        return Answers(sent(self.ids[chosen], device), sent(self.logs[chosen], device))


def likeliest(logits: Tensor, kept: int = KEPT_ANSWERS) -> Answers:
    """Return what logits, ... x answers, say of the likeliest answers."""
    logs, ids = nn.functional.log_softmax(logits.float(), dim=-1).topk(min(kept, logits.shape[-1]))
    return Answers(ids.int(), logs)


def divergences(logits: Tensor, batch: Batch, answers: Answers) -> Tensor:
    """Return each sequence's Kullback-Leibler divergence from the answers that were kept.

    Over the kept answers and the rest, which counts as one more: never above the divergence over
    all. Of a language model, the mean over the tokens that it predicts.

    Args:
        logits: sequences x classes, or sequences x length x tokens.
        batch: Its sequences.
        answers: To them.
    """
    if logits.dim() == 3:
        counted = batch.labels[:, 1:] != -100
        found = _divergence(logits[:, :-1], answers) * counted
        return found.sum(dim=1) / counted.sum(dim=1)
    return _divergence(logits, answers)


def _divergence(logits: Tensor, answers: Answers) -> Tensor:
    logits = logits.float()
    logs = logits.gather(-1, answers.ids.long()) - logits.logsumexp(dim=-1, keepdim=True)
    probabilities = answers.logs.exp()
    found = (probabilities * (answers.logs - logs)).sum(dim=-1)
    if answers.ids.shape[-1] == logits.shape[-1]:
        return found
    rest = (1 - probabilities.sum(dim=-1)).clamp_min(LEAST_PROBABILITY)
    ours = (1 - logs.exp().sum(dim=-1)).clamp_min(LEAST_PROBABILITY)
    return found + rest * (rest / ours).log()
