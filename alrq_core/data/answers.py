"""What a model answers, kept small, and how far another model's answers are from it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from alrq_core.data.encode import Batch, sent
from alrq_core.data.losses import in_chunks

# Answers whose probabilities are kept. All others count as one.
KEPT_ANSWERS = 32
# Below float32's resolution next to 1.
LEAST_PROBABILITY = 1e-7


@dataclass(frozen=True)
class Answers:
    """The likeliest answers of a model to each sequence of a split.

    Attributes:
        ids: Classes or tokens, answers x kept, int32, sequence after sequence.
        logs: Logarithms of their probabilities, float32, of the same shape.
        offsets: Start of each sequence's answers, and the end of the last one's, int64.
    """

    ids: Tensor
    logs: Tensor
    offsets: Tensor

    def of(self, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return `ids` and `logs` of some sequences, in their order, on a device."""
        starts, ends = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist()
        ranges = [torch.arange(*ends_of) for ends_of in zip(starts, ends, strict=True)]
        chosen = torch.cat(ranges)
        return sent(self.ids[chosen], device), sent(self.logs[chosen], device)


def likeliest(logits: Tensor, kept: int = KEPT_ANSWERS) -> tuple[Tensor, Tensor]:
    """Return what logits, answers x classes or tokens, say of the likeliest: see `Answers`."""
    logs, ids = nn.functional.log_softmax(logits.float(), dim=-1).topk(min(kept, logits.shape[-1]))
    return ids.int(), logs


def divergences(logits: Tensor, batch: Batch, answers: tuple[Tensor, Tensor]) -> Tensor:
    """Return each sequence's Kullback-Leibler divergence from the answers that were kept.

    Over the kept answers and the rest, which counts as one more: never above the divergence over
    all. Of several answers, as `Batch.by_sequence` says.

    Args:
        logits: answers x classes or tokens.
        batch: Its sequences.
        answers: To them, as `Answers.of` returns them.
    """
    return batch.by_sequence(in_chunks(_divergence, logits, *answers))


def _divergence(logits: Tensor, ids: Tensor, theirs: Tensor) -> Tensor:
    logits = logits.float()
    logs = logits.gather(-1, ids.long()) - logits.logsumexp(dim=-1, keepdim=True)
    probabilities = theirs.exp()
    found = (probabilities * (theirs - logs)).sum(dim=-1)
    if ids.shape[-1] == logits.shape[-1]:
        return found
    rest = (1 - probabilities.sum(dim=-1)).clamp_min(LEAST_PROBABILITY)
    ours = (1 - logs.exp().sum(dim=-1)).clamp_min(LEAST_PROBABILITY)
    return found + rest * (rest / ours).log()
