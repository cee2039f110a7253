"""What a model answers to a batch, and the loss of each sequence, for both kinds of tasks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import masking_utils

from alrq_core.data.encode import Batch

# Logits of float32 that are held at once: 64 MB.
CHUNK = 2**24


def sequence_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the loss of each sequence, in float32, and the logits."""
    logits = logits_of(model, batch)
    return losses_of(logits, batch), logits


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return answers x classes, or answers x tokens: what a model says where an answer counts.

    A language model's output head sees no other place: what is not scored costs no product with a
    large vocabulary.
    """
    mask = batch.attention_mask if batch.padded else None
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": mask}
    if getattr(model.config, "use_cache", None):
        # It would fill twice where activations are computed again.
        inputs["use_cache"] = False
    if batch.places is None:
        logits: Tensor = model(**inputs).logits
        return logits
    head = model.get_output_embeddings()  # type: ignore[operator]
    with _only_at(head, batch.places), _rows_are_sequences():
        logits = model(**inputs).logits
    return logits.flatten(0, -2)


@contextmanager
def _only_at(head: nn.Module, places: Tensor) -> Iterator[None]:
    """Let an output head see some places of a batch alone, as one sequence."""

    def chosen(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].flatten(0, -2)[places][None],)

    handle = head.register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _rows_are_sequences() -> Iterator[None]:
    """Let transformers not look for several sequences in a row, for which a GPU has to wait."""
    looking = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = looking


def losses_of(logits: Tensor, batch: Batch) -> Tensor:
    """Return the loss of each sequence, in float32: see `Batch.by_sequence`."""
    return batch.by_sequence(in_chunks(_cross_entropy, logits, batch.targets))


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def in_chunks(measure: Callable[..., Tensor], logits: Tensor, *others: Tensor) -> Tensor:
    """Return a number for each row of logits, without all of them in float32 at once.

    What a chunk needs for its gradients is computed again when they are taken.

    Args:
        measure: Rows of logits, and of the others, to a number for each.
        logits: answers x classes or tokens.
        others: Tensors with a row for each answer.
    """
    rows = max(1, CHUNK // logits.shape[-1])
    if len(logits) <= rows:
        return measure(logits, *others)
    parts = zip(*(tensor.split(rows) for tensor in (logits, *others)), strict=True)
    if not logits.requires_grad:
        return torch.cat([measure(*part) for part in parts])
    again: Any = {"use_reentrant": False, "preserve_rng_state": False}
    return torch.cat([checkpoint(measure, *part, **again) for part in parts])
