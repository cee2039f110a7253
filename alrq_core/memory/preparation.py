"""Predicts the memory that a study takes before its trials: for codes, and for what starts need."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from alrq_core.data.encode import Batch
from alrq_core.data.fisher import answer_scores
from alrq_core.data.gradients import collect_gradients
from alrq_core.memory.live_bytes import LiveBytes
from alrq_core.memory.outline import CPU, fill, outline
from alrq_core.memory.prediction import calibration_bytes, empty_batch
from alrq_core.models.recomputed import recompute_blocks
from alrq_core.precision import acting_as, autocast, gradient_dtype
from alrq_core.records import TaskKind
from search_spaces.allocation import Allocation
from search_spaces.costs import BYTES_FLOAT32
from search_spaces.inventory import Inventory

# Matrices of float32, out x in, while a correction is found: the weight that is wanted, the stored
# one, what lies between, and their products with the factors.
CORRECTION_MATRICES = 6


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What has to be done before trials.

    Attributes:
        work_bytes: Its peak, beside what it holds.
        least_bytes: That it holds at least: what belongs to one module.
        all_bytes: What belongs to all modules, which is made again where not all of it is held.
    """

    work_bytes: int
    least_bytes: int
    all_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Peak with the least that is held."""
        return self.bytes_with(0)

    def bytes_with(self, held_bytes: int) -> int:
        """Return the peak with so much held, as far as it is needed and no less than must be."""
        return self.work_bytes + max(self.least_bytes, min(self.all_bytes, held_bytes))


def codes_stage(inventory: Inventory) -> Stage:
    """Return what making calibrated codes takes: moments, and one matrix at work on its own."""
    squares = [BYTES_FLOAT32 * target.in_features**2 for target in inventory.targets]
    work = max(calibration_bytes(t.out_features, t.in_features) for t in inventory.targets)
    return Stage(work_bytes=work, least_bytes=max(squares), all_bytes=sum(squares))


@lru_cache(maxsize=64)
def starts_stage(
    inventory: Inventory,
    kind: TaskKind,
    labels: int,
    reference: Allocation,
    sequences: int,
    length: int,
    compute_dtype: torch.dtype,
    device_type: str,
    checkpointing: bool = False,
    answers: int | None = None,
) -> Stage:
    """Return what the corrections of a reference take: see `FisherFactors`.

    Its backward pass is traced, as `step_memory` traces a step; then one module at a time is
    corrected.

    Args:
        inventory: Of the model.
        kind: Of the task.
        labels: Number of classes.
        reference: Its formats and ranks.
        sequences: Of one pass.
        length: Tokens of a sequence.
        compute_dtype: Type of a trial's matrix products.
        device_type: See `step_memory`.
        checkpointing: See `step_memory`.
        answers: See `step_memory`.
    """
    dtype = gradient_dtype(compute_dtype)
    sizes = {t.name: (t.out_features, t.in_features) for t in inventory.targets}
    sums = [BYTES_FLOAT32 * (rows**2 + 2 * columns**2) for rows, columns in sizes.values()]
    with torch.random.fork_rng(devices=[]), acting_as(device_type):
        model = outline(inventory, kind, labels, reference, dtype, 0.0)

    def score(_: object, batch: Batch) -> Tensor:
        with autocast(dtype, CPU):
            return answer_scores(model, batch, torch.Generator())

    with FakeTensorMode(), LiveBytes() as live, acting_as(device_type):
        fill(model, reference, dequantised=False)
        if checkpointing:
            recompute_blocks(model, watched=True)
        batch = empty_batch(kind, sequences, length, answers)
        collect_gradients(model, {name: name for name in sizes}, [batch], _Products(), score)
    return Stage(
        work_bytes=max(live.peak, *_correction_bytes(sizes.values())),
        least_bytes=max(sums),
        all_bytes=sum(sums),
    )


def _correction_bytes(sizes: Iterable[tuple[int, int]]) -> Iterator[int]:
    for rows, columns in sizes:
        squares = 2 * rows**2 + 2 * columns**2
        yield BYTES_FLOAT32 * (CORRECTION_MATRICES * rows * columns + squares)


class _Products:
    """Makes what `FisherFactors` adds to its sums, and lets go of it; see `Collector`."""

    def add(self, name: str, x: Tensor, gradient: Tensor) -> None:
        # Those rows are copied that reach the answers.
        x = x.reshape(-1, x.shape[-1]).to(gradient.dtype).clone()
        gradient = gradient.reshape(-1, gradient.shape[-1]).clone()
        both = x * x, gradient * gradient
        if gradient.dtype != torch.float32:
            wider = max(both, key=lambda rows: rows.shape[1])
            _ = wider.T @ wider

    def add_lookup(self, name: str, ids: Tensor, gradient: Tensor) -> None:
        raise AssertionError(f"{name} is an embedding")
