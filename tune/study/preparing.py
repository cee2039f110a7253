"""How a study prepares its trials in the memory that there is."""

from dataclasses import dataclass, replace
from functools import partial

import torch

from alrq_core.data.encode import EncodedTask
from alrq_core.memory.batch_plan import DoesNotFitError
from alrq_core.memory.preparation import Stage, codes_stage, starts_stage
from alrq_core.recipe import Recipe
from search_spaces.allocation import Allocation
from search_spaces.costs import format_bytes
from search_spaces.inventory import Inventory
from search_spaces.spaces import Space


@dataclass(frozen=True)
class Preparing:
    """What `Recipe` says of the work before trials.

    Attributes:
        tokens: See `Recipe.prepared_tokens`.
        held_bytes: See `Recipe`.
        checkpointing: See `Recipe.gradient_checkpointing`.
    """

    tokens: int
    held_bytes: int
    checkpointing: bool = False

    def within(self, limit: int, stage: Stage) -> "Preparing":
        """Return this with no more held than a stage leaves room for."""
        return replace(self, held_bytes=min(self.held_bytes, limit - stage.work_bytes))


def codes_prepared(recipe: Recipe, space: Space, limit: int | None) -> Preparing:
    """Return how the codes of a space are made.

    Raises:
        DoesNotFitError: They can't be in this memory.
    """
    usual = Preparing(recipe.prepared_tokens, recipe.held_bytes)
    stored = {form for name in space.inventory.names for form in space.formats_of(name)}
    if limit is None or all(form.method != "gptq" for form in stored):
        return usual
    stage = codes_stage(space.inventory)
    _check(stage, limit, "codes for its largest matrix")
    return usual.within(limit, stage)


def starts_prepared(
    codes: Preparing,
    inventory: Inventory,
    task: EncodedTask,
    reference: Allocation,
    compute_dtype: torch.dtype,
    device_type: str,
    limit: int | None,
    checkpointing: bool,
) -> Preparing:
    """Return how the starts from a reference are made, in batches that fit.

    Smaller batches cost less time than factors that have to be made in several parts, each with
    passes of its own over all text.

    Args:
        codes: How its codes are.
        inventory: Of the model.
        task: In tokens.
        reference: Its formats and ranks.
        compute_dtype: Type of the matrix products.
        device_type: `cpu`, `cuda` or `mps`.
        limit: Bytes that a worker may hold; None for no limit.
        checkpointing: See `Recipe.gradient_checkpointing`.

    Raises:
        DoesNotFitError: They can't be made in this memory.
    """
    codes = replace(codes, checkpointing=checkpointing)
    if limit is None:
        return codes
    length, labels = int(task.train.lengths.max()), len(task.label_names)
    trace = partial(starts_stage, inventory, task.kind, labels, reference)
    sequences = max(1, codes.tokens // length)
    where = (compute_dtype, device_type, checkpointing, task.most_answers)
    stage = trace(sequences, length, *where)
    while sequences > 1 and stage.bytes_with(codes.held_bytes) > limit:
        sequences //= 2
        stage = trace(sequences, length, *where)
    _check(stage, limit, "starts from its fine-tune")
    tokens = min(codes.tokens, sequences * length)
    return replace(codes, tokens=tokens).within(limit, stage)


def _check(stage: Stage, limit: int, what: str) -> None:
    if stage.peak_bytes > limit:
        raise DoesNotFitError(
            f"`--model` must leave memory to make {what}, got a peak of "
            f"{format_bytes(stage.peak_bytes)} of {format_bytes(limit)}. Use a smaller model, a "
            "smaller --max-length, or fewer cores (taskset -c 0), which share the memory."
        )
