"""What all trials of a study share: the base model, the tokens, the recipe, the calibration."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import nn

from alrq_core.adapters.starts import (
    Moments,
    ResidualCache,
    initialise_eva,
    initialise_nested,
    initialise_residual,
    second_moments,
)
from alrq_core.data.encode import EncodedTask, collate, encode_task
from alrq_core.data.tasks import load_task
from alrq_core.memory.machine import pick_device
from alrq_core.models.loading import inspect_model, load_model, resolve_model
from alrq_core.records import Recipe
from alrq_core.weights.cache import PackedCache, cache_folder
from search_spaces.inventory import Inventory

# Of the train split, in its order. Moments of 1,536 inputs need a few thousand tokens, and these
# cost about as much as four training steps.
CALIBRATION_TOKENS = 4096
CALIBRATION_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class TrialContext:
    """What all trials of a study share.

    Attributes:
        base: The pretrained model in float32, never changed.
        inventory: Its target modules.
        task: The tokens.
        recipe: The training recipe.
    """

    base: nn.Module
    inventory: Inventory
    task: EncodedTask
    recipe: Recipe

    @cached_property
    def moments(self) -> Moments:
        """Second moments of the inputs of all target modules, on calibration data."""
        train = self.task.train
        count = int(np.searchsorted(train.offsets[1:], CALIBRATION_TOKENS)) + 1
        rows = np.arange(min(count, len(train)))
        batches = [
            collate(train, rows[start : start + CALIBRATION_BATCH], self.task.pad_id)
            for start in range(0, len(rows), CALIBRATION_BATCH)
        ]
        names = [target.name for target in self.inventory.targets]
        return second_moments(self.base, names, batches, pick_device(self.recipe.device))

    @cached_property
    def packed(self) -> PackedCache:
        """What all trials on this machine pack."""
        return PackedCache(cache_folder(), pick_device(self.recipe.device))

    @cached_property
    def corrections(self) -> ResidualCache:
        """Corrections of quantisation errors that earlier trials computed."""
        return {}

    def start_adapters(self, model: nn.Module, seed: int) -> None:
        """Start a built model's adapters as the recipe asks."""
        recipe = self.recipe
        if recipe.lora_init == "default":
            initialise_nested(model, seed)
        elif recipe.lora_init == "residual":
            initialise_residual(
                model, self.base, self.moments, recipe.alpha_over_rank, self.corrections
            )
        elif recipe.lora_init == "eva":
            initialise_eva(model, self.moments)


def load_context(
    model: str,
    task: str,
    recipe: Recipe,
    data: Path | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
) -> TrialContext:
    """Return what trials on this model and task share, ready to train without any search.

    Args:
        model: As given to `--model`.
        task: As given to `--task`.
        recipe: How trials are trained.
        data: File or folder of the task, where it needs one.
        text_column: Of a custom file.
        label_column: Of a custom file.

    Raises:
        ValueError: Model or data can't be used.
    """
    texts = load_task(task, data, text_column, label_column)
    inventory = inspect_model(model, texts.kind, len(texts.label_names), recipe.max_length)
    return make_context(
        inventory, encode_task(texts, resolve_model(model), recipe.max_length), recipe
    )


def make_context(inventory: Inventory, task: EncodedTask, recipe: Recipe) -> TrialContext:
    """Return what trials share, with the base model loaded."""
    base = load_model(inventory.model, task.kind, len(task.label_names), recipe.dropout)
    return TrialContext(base=base, inventory=inventory, task=task, recipe=recipe)
