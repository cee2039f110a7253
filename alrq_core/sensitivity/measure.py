"""Measures the visibility table: one short training run, and gradients at two of its states."""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alrq_core.adapters.starts import leading_eigenvectors
from alrq_core.context import TrialContext
from alrq_core.data.encode import (
    Batch,
    EncodedTask,
    collate,
    part_tokens,
    train_batches,
    train_parts,
)
from alrq_core.files import spared
from alrq_core.memory.machine import pick_device
from alrq_core.models.heads import head_names
from alrq_core.models.structure import tied_head
from alrq_core.sensitivity.gradients import (
    Gradients,
    SquaredGradients,
    SummedGradients,
    collect_gradients,
)
from alrq_core.sensitivity.table import ModuleVisibility, VisibilityTable, load_table
from alrq_core.trial import TrialRun
from alrq_core.weights.packing import pack
from search_spaces.allocation import Allocation
from search_spaces.formats import Format
from search_spaces.inventory import TargetModule
from search_spaces.spaces import Space

# Raise it when the same inputs give another table.
METHOD = 2
# Of the recipe's steps: the state at which gains and at which damages are measured, and the batches
# whose gradients are taken at each. Squares of single sequences take 2 to 3 steps a batch, sums
# 1.5: in all four fifths of the training of a full trial.
START_FRACTION, END_FRACTION, BATCH_FRACTION = 0.05, 0.5, 0.08
# The run is scored on so few sequences: nothing depends on it.
SCORED_SEQUENCES = 16
# As every trial of a study fits in memory, so does this one.
WARM_BITS, WARM_RANK = 4, 8
KEY_DIGITS = 32
RECIPE_PARTS = (
    *("learning_rate", "max_steps", "batch_size", "warmup_fraction", "weight_decay"),
    *("max_grad_norm", "alpha_over_rank", "dropout", "lora_init"),
)


@dataclass(frozen=True, kw_only=True)
class MeasurePlan:
    """How much is trained and measured.

    Attributes:
        start_step, end_step: Optimiser steps before gains and before damages are measured.
        batches: Whose gradients are taken at each.
    """

    start_step: int
    end_step: int
    batches: int


def measure_plan(max_steps: int) -> MeasurePlan:
    """Return what a table costs where a full trial has so many steps."""
    start = max(1, round(START_FRACTION * max_steps))
    end = max(start + 1, round(END_FRACTION * max_steps))
    return MeasurePlan(
        start_step=start, end_step=end, batches=max(1, round(BATCH_FRACTION * max_steps))
    )


def warm_allocation(space: Space) -> Allocation:
    """Return the allocation that is trained for the table of a space."""
    return space.nearest_uniform(WARM_BITS, WARM_RANK)


def visibility_table(
    context: TrialContext, space: Space, folder: Path | None = None, seed: int = 0
) -> VisibilityTable:
    """Return the table of a searched space, from `folder` where it was measured before.

    Raises:
        ValueError: The space is fixed.
    """
    if space.fixed:
        raise ValueError(
            f"`--space` must be a searched one for a visibility table, got {space.name}. "
            "Use joint, bits or rank."
        )
    key = table_key(context, space, seed)
    known = None if folder is None else load_table(folder, key)
    if known is not None:
        return known
    table = measure_table(context, space, key, seed)
    if folder is not None:
        with spared(folder, "the visibility table"):
            table.save(folder)
    return table


def measure_table(context: TrialContext, space: Space, key: str, seed: int) -> VisibilityTable:
    """Return a new table; the same seed gives the same one on one machine.

    A model at 4 bits and rank 8 everywhere is trained in half the steps of a trial, with a schedule
    that ends there: cut off at the peak of its learning rate, MiniLM's loss after 60 of 200 steps
    was 0.56 with one seed and 0.66 with another, and all damages of the second twice as large.
    Early, when the head points somewhere and the adapters are still near their start, the mean
    gradient says where the loss can be won (`_gains`). At the end the mean squared gradients of
    single sequences say what an error in each weight costs (`_damages`). Both are taken over
    sequences that the run didn't train on, unless the task has too few.

    A batch's squared gradient would cost less, but tell b times less about single sequences,
    and hold what is left of the mean gradient b times as strongly.

    Memory: beside the trial one float32 copy of all modules for the sums, 28 GB at 7e9 weights.
    """
    started = time.perf_counter()
    plan = measure_plan(context.recipe.max_steps)
    run = TrialRun(_shortened(context, plan), warm_allocation(space), seed)
    names = {target.name: target.name for target in space.inventory.targets}
    batches = list(_measured(context, plan, seed))
    summed, squared = SummedGradients(), SquaredGradients()
    run.advance(plan.start_step)
    start = collect_gradients(run.model, names, batches, summed, run.compute_dtype)
    shares = _gains(summed.sums, space)
    summed.sums.clear()
    run.advance(plan.end_step)
    names |= _embedding_names(context, run.allocation)
    end = collect_gradients(run.model, names, batches, squared, run.compute_dtype)
    start_loss, end_loss = float(np.mean(start)), float(np.mean(end))
    # A window's loss is a mean over its tokens, each an observation of its own.
    scale = ((context.task.context_tokens or 2) - 1) / len(end)
    damages = {
        target.name: _damages(
            context, space, target, squared.sums.pop(target.name).mul_(scale), run.compute_dtype
        )
        for target in space.inventory.modules
    }
    won = max(0.0, start_loss - end_loss)
    return VisibilityTable(
        key=key,
        modules={name: _module(space, name, damages, shares, won) for name in damages},
        steps=plan.end_step,
        sequences=len(end),
        start_loss=_digits(start_loss),
        end_loss=_digits(end_loss),
        seconds=round(time.perf_counter() - started, 2),
    )


def _module(
    space: Space,
    name: str,
    damages: dict[str, dict[Format, tuple[float, ...]]],
    shares: dict[str, tuple[float, ...]],
    won: float,
) -> ModuleVisibility:
    gain = tuple(_digits(won * share) for share in shares[name])
    return ModuleVisibility(ranks=_ranks(space, name), damage=damages[name], gain=gain)


def _embedding_names(context: TrialContext, allocation: Allocation) -> dict[str, str]:
    """Return the embeddings; a tied head counts for the one whose matrix it shares."""
    names = {module.name: module.name for module in context.inventory.embeddings}
    tied = tied_head(context.base, allocation.choices)
    return names if tied is None else {**names, tied: next(iter(names))}


def _shortened(context: TrialContext, plan: MeasurePlan) -> TrialContext:
    """Return the context of a run that ends with the plan and is hardly scored."""
    recipe = replace(context.recipe, max_steps=plan.end_step)
    return replace(context, task=context.task.scored_on(SCORED_SEQUENCES), recipe=recipe)


def _measured(context: TrialContext, plan: MeasurePlan, seed: int) -> Iterator[Batch]:
    device, task = pick_device(context.recipe.device), context.task
    trained = train_batches(task.train, context.recipe, seed)
    most_tokens = part_tokens(device)
    for rows in islice(trained, plan.end_step, plan.end_step + plan.batches):
        for part in train_parts(rows, task.train.lengths, context.recipe.micro_batch, most_tokens):
            yield collate(task.train, part, task.pad_id).to(device)


def _gains(gradients: Gradients, space: Space) -> dict[str, tuple[float, ...]]:
    """Return each module's share at each of its ranks in what adapters won while they trained.

    By the energy of the mean gradient in its leading directions, which are where an adapter's
    first steps go (LoRA-GA, arXiv:2407.05000, section 3.2); all modules at `WARM_RANK`, as
    they were trained, make 1.
    """
    energies: dict[str, tuple[float, ...]] = {}
    total = 0.0
    for name in space.inventory.names:
        ranks = _ranks(space, name)
        if ranks == (0,):
            energies[name] = (0.0,)
            continue
        leading = _leading_energies(gradients[name], max(*ranks, WARM_RANK))
        energies[name] = tuple(float(leading[:rank].sum()) for rank in ranks)
        total += float(leading[:WARM_RANK].sum())
    return {
        name: tuple(energy / total if total else 0.0 for energy in found)
        for name, found in energies.items()
    }


def _damages(
    context: TrialContext,
    space: Space,
    target: TargetModule,
    fisher: Tensor,
    compute_dtype: torch.dtype,
) -> dict[Format, tuple[float, ...]]:
    """Return what is left of each format's damage at each rank.

    The damage is half the sum of squared gradient times squared error of each weight: the loss to
    second order with the Fisher information's diagonal for its curvature (SqueezeLLM,
    arXiv:2306.07629, section 4.1). Rank r takes from it the energy of the error in its r
    leading directions, rows and columns weighted by the roots of their mean information (LQ-LoRA,
    arXiv:2311.12023, section 3.3).

    Args:
        context: Has the weights.
        space: Has formats and ranks.
        target: The module.
        fisher: out x in, mean squared gradients.
        compute_dtype: Type of the matrix products.
    """
    name, ranks = target.name, _ranks(space, target.name)
    module = context.base.get_submodule(name)
    weight: Tensor = module.get_parameter("weight").detach()
    rows, columns = fisher.mean(dim=1).sqrt(), fisher.mean(dim=0).sqrt()
    found = {}
    for stored in space.formats_of(name):
        packed: Any = pack(module, stored, compute_dtype, context.packed.of(name))
        layer = getattr(packed, "packed", packed)
        error = weight.to(fisher.device) - layer.dequantised().float()
        damage = 0.5 * float((fisher * error.square()).sum())
        left = [1.0] * len(ranks)
        if ranks != (0,) and damage:
            weighted = error.mul_(rows[:, None]).mul_(columns)
            energies = _leading_energies(weighted, max(ranks)) / weighted.square().sum()
            left = [max(0.0, 1.0 - float(energies[:rank].sum())) for rank in ranks]
        found[stored] = tuple(_digits(damage * part) for part in left)
    return found


def _leading_energies(matrix: Tensor, count: int) -> Tensor:
    """Return the squares of the largest singular values, descending."""
    return leading_eigenvectors(lambda x: matrix @ (matrix.T @ x), matrix, count)[0]


def _ranks(space: Space, name: str) -> tuple[int, ...]:
    """Return the module's ranks, with 0 for the damage as it is."""
    return tuple(sorted({0, *space.ranks[name]}))


def _digits(value: float) -> float:
    return float(f"{value:.6g}")


def table_key(context: TrialContext, space: Space, seed: int) -> str:
    """Return a key of all that a table is made from.

    The model's weights, the training tokens, the parts of the recipe that change what is learned,
    formats and ranks. How it is computed (device, execution, type of products) is left out, and so
    is the new head, which each process draws anew and each trial replaces.
    """
    digest = hashlib.sha256()
    head = tuple(f"{name}." for name in head_names(context.base, context.task.kind))
    for name, tensor in context.base.state_dict().items():
        if name.startswith(head):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    _add_task(digest, context.task)
    recipe = {part: getattr(context.recipe, part) for part in RECIPE_PARTS}
    modules = {
        name: [[astuple(stored) for stored in space.formats_of(name)], space.ranks[name]]
        for name in space.inventory.names
    }
    how = {"method": METHOD, "seed": seed, "recipe": recipe, "modules": modules}
    digest.update(json.dumps(how, sort_keys=True).encode())
    key: str = digest.hexdigest()[:KEY_DIGITS]
    return key


def _add_task(digest: "hashlib._Hash", task: EncodedTask) -> None:
    digest.update(f"{task.kind} {len(task.label_names)} {task.pad_id}".encode())
    for array in (task.train.ids, task.train.offsets, task.train.labels):
        digest.update(np.ascontiguousarray(array).data)
