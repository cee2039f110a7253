"""The types that devices compute in: of products, and of what runs from block to block."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch

_ACTED: ContextVar[str | None] = ContextVar("_ACTED", default=None)


@contextmanager
def acting_as(device_type: str) -> Iterator[None]:
    """Let a CPU compute in the types of another device, to trace or test what that would do."""
    before = _ACTED.set(device_type)
    try:
        yield
    finally:
        _ACTED.reset(before)


def kind_of(device: torch.device) -> str:
    """Return the type of the device whose types are used: its own, but in traces and tests."""
    return _ACTED.get() or device.type


def stream_dtype(compute_dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the type of what runs from block to block.

    A GPU is bound by the bytes that it moves; CPUs take as long to convert as they save. Sums in
    float16 would overflow: decoders have single activations in the thousands (Massive activations,
    arXiv:2402.17762, section 2).
    """
    narrow = kind_of(device) != "cpu" and compute_dtype != torch.float16
    return compute_dtype if narrow else torch.float32


def gradient_dtype(compute_dtype: torch.dtype) -> torch.dtype:
    """Return the type of passes whose gradients are summed: float16 has no room for small ones."""
    return torch.float32 if compute_dtype == torch.float16 else compute_dtype


def autocast(compute_dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Return autocast to the compute type, or nothing where all of a model has it.

    On a GPU it would take normalisations out of bfloat16 and what follows them back into it, once
    for each layer that reads them.
    """
    if stream_dtype(compute_dtype, device) == compute_dtype:
        return nullcontext()
    return torch.autocast(device.type, dtype=compute_dtype)
