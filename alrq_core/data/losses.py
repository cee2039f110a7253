"""The loss of each sequence of a batch, for both kinds of tasks."""

from torch import Tensor, nn

from alrq_core.data.encode import Batch


def sequence_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the mean loss of each sequence, in float32, and the logits."""
    logits = logits_of(model, batch)
    return losses_of(logits, batch), logits


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return sequences x classes, or sequences x length x tokens."""
    mask = batch.attention_mask if batch.padded else None
    logits: Tensor = model(input_ids=batch.input_ids, attention_mask=mask).logits
    return logits


def losses_of(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean loss of each sequence, in float32."""
    if batch.labels.dim() == 1:
        return nn.functional.cross_entropy(logits.float(), batch.labels, reduction="none")
    shifted, targets = logits[:, :-1].float(), batch.labels[:, 1:]
    # Flat: with the classes in the middle axis it takes twice as long on a CPU.
    losses = nn.functional.cross_entropy(
        shifted.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100
    ).view_as(targets)
    return losses.sum(dim=1) / (targets != -100).sum(dim=1)
