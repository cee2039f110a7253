"""Predicts the peak memory of a trial from a training step that is traced and never run."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from alrq_core.adapters.lora import adapter_tensors, lora_layers
from alrq_core.data.encode import Batch
from alrq_core.data.losses import sequence_losses
from alrq_core.memory.live_bytes import LiveBytes
from alrq_core.memory.outline import CPU, fill, outline
from alrq_core.models.checks import has_weights, matrix_types
from alrq_core.models.finding import resolve_model
from alrq_core.models.loading import read_config
from alrq_core.models.recomputed import recompute_blocks
from alrq_core.models.shared_weights import held_dtype
from alrq_core.precision import acting_as, autocast, stream_dtype
from alrq_core.records import TaskKind
from alrq_core.weights.calibrate import ROWS_AT_ONCE
from alrq_core.weights.quantise import CHUNK_WEIGHTS
from search_spaces.allocation import Allocation
from search_spaces.costs import BYTES_FLOAT32, stored_bytes
from search_spaces.formats import Format
from search_spaces.inventory import Inventory

# Bytes a weight, beside what is stored in the end, while `pack` quantises one part of a matrix:
# read from the code of torch and bitsandbytes 0.50 on a CPU and measured to within 3 %. GPUs have
# kernels of their own for some of it, and need less.
PART_BYTES: Mapping[str, int] = {
    # Nothing but the bfloat16 copy that is kept.
    "plain": 0,
    # Half precision (2), and codes times scales before (4) and after (4) rounding.
    "int8": 10,
    # Scaled to [-1, 1] (4), codes as int32 (4) and as bytes (1), and the upper halves (1/2) before
    # they are joined with the lower ones (1/2).
    "nf4-double": 10,
    "nf4": 10,
    # The same, and at the moment before the bytes codes are put into another order, through int64
    # numbers (8) into int64 codes (8): 4 + 4 + 8 + 8.
    "fp4": 24,
}
# HQQ fits a whole matrix at once, in eight matrices of float32: codes and weights of the last round
# and of this one, the error, its magnitude, and two terms of the shrinking operator (hqq 0.2.8).
HQQ_BYTES = 32
# Matrices of float32 of rows x in while calibrated codes are made, beside two of in x in: moment
# and the factor of its inverse, while which is found there are four. Measured.
CALIBRATION_MATRICES = 6.4
# AdaLoRA's importance of each parameter, its mean and the mean of its deviations.
IMPORTANCE_STATES = 3
ADAM_STATES = 2


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """The memory of a trial at one micro-batch, as predicted.

    Attributes:
        static_bytes: What stays: packed weights, unquantised parameters as they lie in memory
            while training, adapters, gradients of earlier passes, the states of AdamW.
        activation_bytes: What a forward and backward pass needs on top, at its highest.
        build_bytes: Peak while the model is built, whatever the batch: HQQ needs several copies of
            a matrix.
        largest_tensor_bytes: The largest single tensor of a step.
        largest_tensor: What it is, for people.
    """

    static_bytes: int
    activation_bytes: int
    build_bytes: int
    largest_tensor_bytes: int
    largest_tensor: str

    @property
    def step_bytes(self) -> int:
        """Peak of a training step."""
        return self.static_bytes + self.activation_bytes

    @property
    def peak_bytes(self) -> int:
        """Peak of the trial: of building or of training, whichever is higher."""
        return max(self.step_bytes, self.build_bytes)


def step_memory(
    inventory: Inventory,
    kind: TaskKind,
    labels: int,
    allocation: Allocation,
    micro_batch: int,
    length: int,
    compute_dtype: torch.dtype,
    *,
    answers: int | None = None,
    dropout: float = 0.0,
    dequantised: bool = False,
    checkpointing: bool = False,
    alone: bool = False,
    device_type: str = "cpu",
) -> StepMemory:
    """Return the peak memory of a trial, without reading a weight or allocating a tensor.

    Counted is what torch allocates for the trial on its device. Not part of it: the base model
    (see `base_bytes`), the process itself, what an allocator keeps in reserve, and the start of
    adapters from data.

    The passes are those of a CPU, in the types of the device. A GPU whose attention keeps no scores
    (CUDA) holds the same; MPS has no such attention for training, and its scores are counted.

    Args:
        inventory: Of the model.
        kind: Of the task.
        labels: Number of classes.
        allocation: Format and rank of each module.
        micro_batch: Sequences of one forward pass.
        length: Tokens of a sequence.
        compute_dtype: Type of the matrix products.
        answers: Tokens of a sequence that are predicted; None for all but the first.
        dropout: Probability of every dropout in the model.
        dequantised: Whether the trial computes with dequantised copies.
        checkpointing: See `Recipe.gradient_checkpointing`.
        alone: Whether a step is this one pass, which begins without gradients.
        device_type: `cpu`, `cuda` or `mps`.

    Raises:
        ValueError: The model can't be found, or AdaLoRA doesn't take the allocation.
    """
    # One signature for mypy and one cache entry for each trace.
    return _traced(
        inventory,
        kind,
        labels,
        allocation,
        micro_batch,
        length,
        compute_dtype,
        answers,
        dropout,
        dequantised,
        checkpointing,
        alone,
        device_type,
    )


def base_bytes(inventory: Inventory) -> int:
    """Return the bytes of the base model, which lie in memory once for all processes of a machine.

    They are maps of its files, in the type that these have; see `models.shared_weights`.
    """
    weights = sum(module.weights for module in inventory.modules)
    folder = resolve_model(inventory.model, weights=False)
    if has_weights(folder):
        dtype = held_dtype(matrix_types(folder, inventory.model))
    else:
        named = str(read_config(folder).dtype).removeprefix("torch.")
        dtype = getattr(torch, named, torch.float32)
    return dtype.itemsize * (weights + inventory.other_parameters)


def build_bytes(inventory: Inventory, allocation: Allocation, stream: torch.dtype) -> int:
    """Return the peak while a model is built on top of its base, by arithmetic.

    Modules are packed in the order of the inventory, when all that stays unquantised is copied.
    Calibrated codes are in the cache by then: see `preparation.codes_stage`.

    Args:
        inventory: Of the model.
        allocation: Format of each module.
        stream: Type of what stays unquantised: see `stream_dtype`.
    """
    held = stream.itemsize * inventory.other_parameters
    peak = held
    for module in inventory.modules:
        rows, columns = module.out_features, module.in_features
        stored = allocation.choices[module.name].format
        if stored.method != "gptq":
            peak = max(peak, held + packing_bytes(stored, rows, columns))
        held += stored_bytes(stored, rows, columns)
    return max(peak, held)


def packing_bytes(stored: Format, out_features: int, in_features: int) -> int:
    """Return the peak while `pack` stores one matrix, on top of that matrix."""
    weights = out_features * in_features
    if stored.method == "hqq":
        return HQQ_BYTES * weights
    if stored.method == "gptq":
        return stored_bytes(stored, out_features, in_features) + calibration_bytes(
            out_features, in_features
        )
    part = PART_BYTES[stored.method] * min(weights, CHUNK_WEIGHTS)
    # Scales are quantised themselves only once all are known.
    method = "nf4" if stored.method == "nf4-double" else stored.method
    known = replace(stored, method=method)
    return stored_bytes(known, out_features, in_features) + part


def calibration_bytes(out_features: int, in_features: int) -> int:
    """Return what making calibrated codes of one matrix takes: see `weights.calibrate`."""
    matrix, square = min(out_features, ROWS_AT_ONCE) * in_features, in_features**2
    return int(BYTES_FLOAT32 * max(4 * square, 2 * square + CALIBRATION_MATRICES * matrix))


@lru_cache(maxsize=256)
def _traced(
    inventory: Inventory,
    kind: TaskKind,
    labels: int,
    allocation: Allocation,
    micro_batch: int,
    length: int,
    compute_dtype: torch.dtype,
    answers: int | None,
    dropout: float,
    dequantised: bool,
    checkpointing: bool,
    alone: bool,
    device_type: str,
) -> StepMemory:
    # Layers of bitsandbytes begin with a drawn weight of one element.
    with torch.random.fork_rng(devices=[]), acting_as(device_type):
        model = outline(inventory, kind, labels, allocation, compute_dtype, dropout)
        held = build_bytes(inventory, allocation, stream_dtype(compute_dtype, CPU))
    attention: Callable[[], AbstractContextManager[Any]] = (
        (lambda: sdpa_kernel(SDPBackend.MATH)) if device_type == "mps" else nullcontext
    )
    with FakeTensorMode(), LiveBytes() as live, attention(), acting_as(device_type):
        fill(model, allocation, dequantised)
        if checkpointing:
            recompute_blocks(model)
        states = _training_states(model, allocation, alone)
        static = live.peak = live.live
        batch = empty_batch(kind, micro_batch, length, answers)
        _run_step(model.train(), batch, compute_dtype)
    del states
    size, shape, dtype = live.largest
    return StepMemory(
        static_bytes=static,
        activation_bytes=live.peak - static,
        build_bytes=held,
        largest_tensor_bytes=size,
        largest_tensor=_describe(shape, dtype, inventory, batch),
    )


def _training_states(model: nn.Module, allocation: Allocation, alone: bool) -> list[Tensor]:
    """Give every trained parameter its gradient; return what the optimiser keeps of it.

    All but the first pass of an optimiser step begin with gradients.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained if not alone else ():
        parameter.grad = torch.empty_like(parameter)
    states = [torch.empty_like(p) for p in trained for _ in range(ADAM_STATES)]
    if allocation.final_rank is not None:
        adapters = [p for layer in lora_layers(model).values() for p in adapter_tensors(layer)]
        states += [torch.empty_like(p) for p in adapters for _ in range(IMPORTANCE_STATES)]
    return states


def empty_batch(kind: TaskKind, micro_batch: int, length: int, answers: int | None = None) -> Batch:
    """Return a batch of full-length sequences whose values don't matter.

    Models that can't see the values of a mask take it for one that hides something.

    Args:
        kind: Of the task.
        micro_batch: Sequences.
        length: Tokens of each.
        answers: See `step_memory`.
    """
    ids = torch.zeros(micro_batch, length, dtype=torch.int64)
    rows = np.arange(micro_batch)
    if kind == "classification":
        return Batch(ids, torch.ones_like(ids), ids[:, 0].clone(), rows)
    predicted = length - 1 if answers is None else min(answers, length - 1)
    places = torch.zeros(micro_batch * predicted, dtype=torch.int64)
    return Batch(ids, torch.ones_like(ids), places.clone(), rows, places, padded=False)


def _run_step(model: nn.Module, batch: Batch, compute_dtype: torch.dtype) -> None:
    # The logits are let go as `TrialRun` does, before the backward pass.
    with autocast(compute_dtype, CPU):
        loss = sequence_losses(model, batch)[0]
    loss.mean().backward()


def _describe(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    inventory: Inventory,
    batch: Batch,
) -> str:
    """Return what a tensor of a step is, such as `logits 4 x 256 x 49152, float32`."""
    vocabulary = max((module.out_features for module in inventory.embeddings), default=0)
    tokens = prod(shape) // vocabulary if vocabulary in shape else 0
    micro_batch, length = batch.input_ids.shape
    if tokens in (micro_batch * length, len(batch.targets)):
        # Also where the kernel sees them flat, or with the classes in the middle.
        what, shape = "logits", (micro_batch, tokens // micro_batch, vocabulary)
    elif not dtype.is_floating_point:
        what = "packed weights"
    elif shape in {(module.out_features, module.in_features) for module in inventory.modules}:
        what = "weights"
    elif shape[-2:] == (length, length):
        what = "attention scores"
    else:
        what = "activations"
    return f"{what} {' x '.join(map(str, shape))}, {str(dtype).removeprefix('torch.')}"
