"""Chooses how many sequences go through a model at once, so that a trial fits in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from alrq_core.data.encode import PART_TOKENS
from alrq_core.memory.prediction import StepMemory, step_memory
from alrq_core.records import TaskKind
from search_spaces.allocation import Allocation
from search_spaces.costs import format_gigabytes
from search_spaces.inventory import Inventory

# Metal refuses single arrays of 2**32 bytes and more, whatever memory is free
# ("total bytes of NDArray > 2**32", MPSNDArray).
MPS_TENSOR_LIMIT = 2**32
# The peak of a step is the highest of many moments, each of which grows in a straight line with
# the micro-batch. So it is convex, and the line from one sequence to the whole batch lies above
# it: by up to 7 % on MiniLM-L6 and SmolLM2.
LINE_EXCESS = 0.1


class DoesNotFitError(ValueError):
    """A trial does not fit in memory, however small its batches are."""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How a batch is cut for memory; every optimiser step still sees the whole of it.

    Attributes:
        micro_batch: Sequences of one forward pass.
        accumulation_steps: Micro-batches of an optimiser step.
        memory: Predicted for this micro-batch.
        checkpointing: See `Recipe.gradient_checkpointing`.
        reason: Why, for people.
    """

    micro_batch: int
    accumulation_steps: int
    memory: StepMemory
    reason: str
    checkpointing: bool = False


@dataclass(frozen=True)
class _Limits:
    peak: int | None
    tensor: int | None

    def hold(self, memory: StepMemory) -> bool:
        return self.complaint(memory) is None

    def complaint(self, memory: StepMemory) -> str | None:
        """Return what does not fit, or None."""
        if self.peak is not None and memory.peak_bytes > self.peak:
            return (
                f"{format_gigabytes(memory.peak_bytes)} of {format_gigabytes(self.peak)}, "
                f"{format_gigabytes(memory.largest_tensor_bytes)} of it {memory.largest_tensor}"
            )
        if self.tensor is not None and memory.largest_tensor_bytes >= self.tensor:
            return (
                f"one tensor of {format_gigabytes(memory.largest_tensor_bytes)} of at most "
                f"{format_gigabytes(self.tensor)}, {memory.largest_tensor}"
            )
        return None


def plan_batch(
    inventory: Inventory,
    kind: TaskKind,
    labels: int,
    allocation: Allocation,
    recipe_batch_size: int,
    length: int,
    compute_dtype: torch.dtype,
    limit_bytes: int | None,
    tensor_limit_bytes: int | None,
    *,
    answers: int | None = None,
    dropout: float = 0.0,
    dequantised: bool = False,
    checkpointing: bool = False,
    passes: int = 1,
    device_type: str = "cpu",
) -> BatchPlan:
    """Return the largest micro-batch that divides the batch and fits.

    A step is traced once where the whole batch fits, else up to four times.

    Args:
        inventory: Of the model.
        kind: Of the task.
        labels: Number of classes.
        allocation: Format and rank of each module.
        recipe_batch_size: Sequences of an optimiser step.
        length: Tokens of the longest sequence.
        compute_dtype: Type of the matrix products.
        limit_bytes: What a trial may hold at once; None for no limit.
        tensor_limit_bytes: All tensors must be smaller; None for no limit.
        answers: Most tokens of a sequence that are predicted, see `step_memory`.
        dropout: See `step_memory`.
        dequantised: See `step_memory`.
        checkpointing: See `step_memory`.
        passes: Such batches of one optimiser step.
        device_type: See `step_memory`.

    Raises:
        DoesNotFitError: Not even one sequence fits, or the model can't be built in this memory.
    """
    trace = partial(
        step_memory,
        inventory,
        kind,
        labels,
        allocation,
        compute_dtype=compute_dtype,
        answers=answers,
        dropout=dropout,
        dequantised=dequantised,
        checkpointing=checkpointing,
        device_type=device_type,
    )

    def predict(size: int) -> StepMemory:
        parted = device_type == "cpu" and size * length > PART_TOKENS
        shapes = _largest_parts(size, length) if parted else [(size, length)]
        alone = passes == 1 and size == recipe_batch_size and not parted
        traced = (trace(*shape, alone=alone) for shape in shapes)
        return max(traced, key=lambda memory: memory.peak_bytes)

    limits = _Limits(limit_bytes, tensor_limit_bytes)
    whole = predict(recipe_batch_size)
    complaint = limits.complaint(whole)
    if complaint is None:
        why = "the whole batch at once"
        if device_type == "cpu" and recipe_batch_size * length > PART_TOKENS:
            why = f"in parts of at most {PART_TOKENS} tokens"
        return _plan(recipe_batch_size, recipe_batch_size, whole, why, checkpointing)
    _check_build(whole, limits)
    size, memory = _largest(predict, limits, recipe_batch_size, length)
    why = f"{recipe_batch_size} at once would take {complaint}"
    return _plan(recipe_batch_size, size, memory, why, checkpointing)


def tensor_limit_bytes(device_type: str) -> int | None:
    """Return what every single tensor must stay below on a device; None for no such limit."""
    return MPS_TENSOR_LIMIT if device_type == "mps" else None


def _largest_parts(sequences: int, length: int) -> list[tuple[int, int]]:
    """Return the shapes, sequences x tokens, of the parts that may take the most memory on a CPU.

    The longest sequences have the largest attention scores; some shorter ones may together have
    more tokens, by more than the few per cent that don't matter.
    """
    most = min(sequences, max(1, PART_TOKENS // length))
    shapes = [(most, length)]
    if most < sequences and most * length < 0.9 * PART_TOKENS:
        shapes.append((most + 1, PART_TOKENS // (most + 1)))
    return shapes


def _largest(
    predict: Callable[[int], StepMemory], limits: _Limits, batch_size: int, length: int
) -> tuple[int, StepMemory]:
    """Return the largest proper divisor of the batch that fits, and its memory."""
    one, whole = predict(1), predict(batch_size)
    complaint = limits.complaint(one)
    if complaint is not None:
        raise DoesNotFitError(
            f"`--max-length` must let one sequence fit in memory, got {length} tokens, which take "
            f"{complaint}. Use a smaller one, fewer --bits, smaller --ranks, or fewer "
            "cores (taskset -c 0), which share the memory."
        )
    line = partial(_between, one.step_bytes, whole.step_bytes, batch_size)
    for size in sorted((n for n in range(2, batch_size) if batch_size % n == 0), reverse=True):
        above = limits.peak is not None and line(size) > (1 + LINE_EXCESS) * limits.peak
        if not above and limits.hold(memory := predict(size)):
            return size, memory
    return 1, one


def _between(one: int, whole: int, batch_size: int, size: int) -> float:
    """Return the value at `size` of the line from 1 to the batch size."""
    return one + (whole - one) * (size - 1) / (batch_size - 1)


def _check_build(memory: StepMemory, limits: _Limits) -> None:
    if limits.peak is not None and memory.build_bytes > limits.peak:
        raise DoesNotFitError(
            f"`allocation` must leave memory to quantise its largest matrix, got a peak of "
            f"{format_gigabytes(memory.build_bytes)} of {format_gigabytes(limits.peak)} while the "
            "model is built. Give fewer cores (taskset -c 0), or keep the embeddings in 16 bits."
        )


def _plan(
    batch_size: int, size: int, memory: StepMemory, why: str, checkpointing: bool
) -> BatchPlan:
    steps = batch_size // size
    need = f"predicted peak {format_gigabytes(memory.peak_bytes)}"
    return BatchPlan(
        micro_batch=size,
        accumulation_steps=steps,
        memory=memory,
        checkpointing=checkpointing,
        reason=f"micro-batch {size} x {steps}, {need}: {why}",
    )
