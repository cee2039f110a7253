"""What all trials of a study share: the base model, the tokens, the recipe, the calibration."""

from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from alrq_core.adapters.reference import Reference
from alrq_core.adapters.starts import (
    CACHED_RANK,
    Corrections,
    correct,
    initialise_eva,
    initialise_nested,
    initialise_towards,
)
from alrq_core.build import build_model
from alrq_core.data.encode import (
    Batch,
    EncodedTask,
    Tokens,
    collate,
    eval_batches,
    part_tokens,
)
from alrq_core.data.fisher import Factors, FisherFactors, answer_scores
from alrq_core.data.moments import InputMoments
from alrq_core.data.parts import TrainParts
from alrq_core.data.tasks import load_task
from alrq_core.data.tokenise import encode_task
from alrq_core.memory.machine import give_back_memory, pick_compute_dtype, pick_device
from alrq_core.models.digests import model_digest
from alrq_core.models.finding import resolve_model
from alrq_core.models.heads import head_names
from alrq_core.models.loading import inspect_model, load_model
from alrq_core.models.recomputed import recompute_blocks
from alrq_core.models.structure import tied_head
from alrq_core.precision import autocast, gradient_dtype
from alrq_core.randomness import Randomness
from alrq_core.recipe import Recipe
from alrq_core.weights.cache import PackedCache, cache_folder
from alrq_core.weights.packing import pack
from search_spaces.allocation import Allocation
from search_spaces.formats import Format
from search_spaces.inventory import Inventory


@dataclass(frozen=True, kw_only=True)
class TrialContext:
    """What all trials of a study share.

    Attributes:
        base: The pretrained model in the type of its files, never changed.
        inventory: Its target modules.
        task: The tokens.
        recipe: The training recipe.
    """

    base: nn.Module
    inventory: Inventory
    task: EncodedTask
    recipe: Recipe

    @cached_property
    def moments(self) -> InputMoments:
        """Second moments of the inputs of all that is multiplied, on calibration data.

        An embedding that is only looked up has none; with a tied output head it has the head's.
        A train split that is too small for them raises a ValueError when they are asked for.
        """
        modules = {target.name: target.name for target in self.inventory.targets}
        for module in self.inventory.embeddings:
            if isinstance(self.base.get_submodule(module.name), nn.Linear):
                modules[module.name] = module.name
            elif (head := tied_head(self.base, (module.name,))) is not None:
                modules[module.name] = head
        return InputMoments(
            self.base,
            self.source,
            modules,
            self.parts.calibration,
            self.device,
            self.recipe.held_bytes,
        )

    @cached_property
    def packed(self) -> PackedCache:
        """What all trials on this machine pack."""
        return PackedCache(cache_folder(), self.device, self.source, self.moments)

    @cached_property
    def source(self) -> str:
        """Digest of the model's files."""
        return model_digest(resolve_model(self.inventory.model), self.inventory.model)

    def make_codes(self, formats: Mapping[str, Iterable[Format]]) -> Iterator[tuple[int, int]]:
        """Make the codes of modules in formats that take long, together with other processes.

        Each process makes what no other is at, and ends once all of them lie in the cache. Yields
        how many do, of how many, each time before one is made.
        """
        yield from self.packed.fill(
            (name, self.base.get_submodule(name).get_parameter("weight"), stored)
            for name, every in formats.items()
            for stored in every
            if stored.method == "gptq"
        )
        self.let_go()

    def let_go(self) -> None:
        """Let go of moments where only codes are made from them, which are in the cache by now."""
        if self.recipe.lora_init == "default":
            self.moments.forget()

    def trained_by(self, recipe: Recipe) -> "TrialContext":
        """Return this context with a recipe of other micro-batches, and all that is shared."""
        other = copy(self)
        object.__setattr__(other, "recipe", recipe)
        return other

    @cached_property
    def parts(self) -> TrainParts:
        """Which part of the train split is used for what."""
        return TrainParts(self.task, self.recipe.tuning.max_steps * self.recipe.batch_size)

    @cached_property
    def corrections(self) -> Corrections:
        """Corrections of quantisation errors that earlier trials computed."""
        return Corrections()

    def start_adapters(self, model: nn.Module, allocation: Allocation, seed: int) -> None:
        """Start the adapters of a model that was built for an allocation as the recipe asks."""
        recipe = self.recipe
        if recipe.lora_init == "eva":
            initialise_eva(model, self.moments)
            return
        initialise_nested(model, seed)
        if recipe.lora_init == "residual":
            initialise_towards(
                model,
                self._weight,
                lambda name: Factors(self.moments[name]),
                partial(self._codes_key, allocation),
                recipe.alpha_over_rank,
                self.corrections,
            )

    def start_from(
        self,
        model: nn.Module,
        allocation: Allocation,
        reference: Reference,
        seed: int,
    ) -> None:
        """Start a built model's adapters and head from a reference, see `Reference.start`."""
        initialise_nested(model, seed)
        reference.start(
            model,
            allocation,
            partial(self.tuned_weight, reference),
            self.factors(reference).of,
            partial(self._codes_key, allocation),
            self.recipe.alpha_over_rank,
        )

    def factors(self, reference: Reference) -> FisherFactors:
        """Return what errors of a reference's modules cost its answers; of the latest one kept."""
        key = reference.checksum
        if key not in self._factors:
            sizes = {t.name: (t.out_features, t.in_features) for t in self.inventory.targets}
            found = FisherFactors(
                partial(self.tuned_model, reference),
                sizes,
                partial(self.batches, self.parts.probed),
                self.answer_scores,
                self.recipe.held_bytes,
            )
            self._factors.clear()
            self._factors[key] = found
        return self._factors[key]

    @cached_property
    def _factors(self) -> dict[int, FisherFactors]:
        return {}

    def tuned_model(self, reference: Reference) -> nn.Module:
        """Return a reference's own model, to take gradients of.

        A trial that is just being built draws on as before.
        """
        head, alpha = head_names(self.base, self.task.kind), self.recipe.alpha_over_rank
        device, dtype = self.device, gradient_dtype(self.compute_dtype)
        with Randomness(reference.seed, device):
            model = build_model(
                self.base, reference.allocation, head, alpha, dtype, device, self.packed.of
            )
            self.start_from(model, reference.allocation, reference, reference.seed)
        if self.recipe.gradient_checkpointing:
            recompute_blocks(model, watched=True)
        return model

    def answer_scores(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return `answer_scores` of a `tuned_model`."""
        with autocast(gradient_dtype(self.compute_dtype), self.device):
            return answer_scores(model, batch, generator)

    def batches(self, tokens: Tokens, copies: int = 1) -> Iterator[Batch]:
        """Yield sequences in batches whose activations may be kept, on the device.

        Args:
            tokens: Their tokens.
            copies: How often each stands in its batch, one after the other.
        """
        kept = self.recipe.prepared_tokens // copies
        most = max(1, kept // int(tokens.lengths.max()))
        for rows in eval_batches(tokens, most, part_tokens(self.device) and kept):
            yield collate(tokens, rows.repeat(copies), self.task.pad_id).to(self.device)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type of the matrix products."""
        return pick_compute_dtype(self.device, self.recipe.cpu_dtype)

    @property
    def device(self) -> torch.device:
        """Where trials run."""
        return pick_device(self.recipe.device)

    def make_corrections(
        self, reference: Reference, formats: Mapping[str, Iterable[Format]]
    ) -> Iterator[tuple[int, int]]:
        """Make all corrections that starts from a reference ask for; let go of what that needed.

        Yields of how many modules they are there, of how many, each time before one is at it.

        Args:
            reference: Whose answers are wanted.
            formats: Those that modules with an adapter may have.
        """
        for number, (name, every) in enumerate(formats.items()):
            yield number, len(formats)
            tuned = self.tuned_weight(reference, name)
            for stored in every:
                self.correction(reference, name, stored, tuned)
        self._factors.clear()
        # Up to `held_bytes`, which C's library keeps for later otherwise.
        give_back_memory()

    def tuned_weight(self, reference: Reference, name: str) -> Tensor:
        """Return a module's weight with the reference's adapter, out x in, float32."""
        stored = self.dequantised(name, reference.allocation.choices[name].format)
        return reference.weight(name, stored, self.recipe.alpha_over_rank)

    def dequantised(self, name: str, stored: Format) -> Tensor:
        """Return what a format makes of a module's weight, out x in, float32."""
        module = self.base.get_submodule(name)
        packed: Any = pack(module, stored, torch.float32, self.packed.of(name))
        found: Tensor = getattr(packed, "packed", packed).dequantised()
        return found.detach().float().contiguous()

    def correction(
        self, reference: Reference, name: str, stored: Format, tuned: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the halves that bring a module nearest to the reference, see `Corrections`."""
        weight_of, dequantised = (lambda _: tuned), partial(self.dequantised, name, stored)
        factors_of = self.factors(reference).of
        make = partial(correct, name, weight_of, dequantised, factors_of, CACHED_RANK, 0.0)
        return reference.corrections.of(self.packed.key(self._weight(name), stored, name), make)

    def _codes_key(self, allocation: Allocation, name: str) -> str:
        return self.packed.key(self._weight(name), allocation.choices[name].format, name)

    def _weight(self, name: str) -> Tensor:
        return self.base.get_submodule(name).get_parameter("weight")


def load_context(
    model: str,
    task: str,
    recipe: Recipe,
    data: Path | None = None,
    columns: Mapping[str, str] = MappingProxyType({}),
) -> TrialContext:
    """Return what trials on this model and task share, ready to train without any search.

    Args:
        model: As given to `--model`.
        task: As given to `--task`.
        recipe: How trials are trained.
        data: File or folder of the task, where it needs one.
        columns: See `load_task`.

    Raises:
        ValueError: Model or data can't be used.
    """
    texts = load_task(task, data, columns)
    inventory = inspect_model(model, texts.kind, len(texts.label_names), recipe.max_length)
    return make_context(
        inventory, encode_task(texts, resolve_model(model), recipe.max_length), recipe
    )


def make_context(inventory: Inventory, task: EncodedTask, recipe: Recipe) -> TrialContext:
    """Return what trials share, with the base model loaded."""
    base = load_model(inventory.model, task.kind, len(task.label_names), recipe.dropout)
    return TrialContext(base=base, inventory=inventory, task=task, recipe=recipe)
