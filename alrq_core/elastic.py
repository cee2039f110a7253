"""One model trained for all allocations of a space at once, each scored by one evaluation."""

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from alrq_core.build import ADAPTER, frozen_layer, lora_layers, place, tied_head
from alrq_core.context import TrialContext
from alrq_core.encode import Tokens
from alrq_core.heads import head_names
from alrq_core.machine import pick_device
from alrq_core.packing import pack
from alrq_core.receipt import check_receipt, confirm_unchanged, take_receipt
from alrq_core.records import Receipt
from alrq_core.scoring import Evaluation, evaluate
from alrq_core.trial import CHECK_STEPS, SCREENING_STRIDE, TrialRun
from search_spaces.allocation import Allocation
from search_spaces.formats import Format
from search_spaces.spaces import Space

Draw = Callable[[Random], Allocation]


class ElasticRun:
    """Adapters of nested ranks that are trained while the allocation changes at every step.

    The first r columns of a module's adapter are its adapter of rank r (DyLoRA, Valipour et al.
    2023, arXiv:2210.07558), and all allocations share them (weight sharing as in Once-for-all, Cai
    et al. 2020, arXiv:1908.09791). alpha / rank is the same for all ranks, so that the scaling
    is too. Set to an allocation, the model computes what a `TrialRun` of it would with these
    adapters and this head.

    A draw's inactive columns get zeros for gradients, and a whole adapter at rank 0 gets none:
    AdamW's momentum still moves the former, as in any network of slices.

    Memory: a trial's, at the largest ranks, and the codes of all formats, 34 bits a weight in the
    joint space. On a CPU they are maps of the packed cache's files. All is computed from packed
    weights, whatever the recipe's execution: a copy of each format would be 16 bits a weight and
    format, and one that follows the allocation would be made anew at every step.

    Where several formats are allowed, `lora_init="residual"` starts from the errors of the one with
    the most bits: next to nothing where that is 16 or 8.

    Attributes:
        context: What trials share; the schedule ends at its recipe's `max_steps`.
        space: What is drawn from.
        allocation: What the model is set to.
        model: Packed layers and adapters of the largest ranks.
    """

    def __init__(
        self, context: TrialContext, space: Space, seed: int, draw: Draw | None = None
    ) -> None:
        """Build the model, pack every module in each of its formats, and check the receipts.

        Args:
            context: What trials share.
            space: A searched one over the context's model.
            seed: Of the draws, and of all that a trial's seed decides.
            draw: Returns the allocation of a step; None for `Space.draw_all`.

        Raises:
            ValueError: The space is fixed.
            ReceiptError: What was packed contradicts the space.
        """
        if space.fixed:
            raise ValueError(
                f"`space` must be a searched one for an elastic run, got {space.name}. "
                "Use joint, bits or rank."
            )
        self.context, self.space = context, space
        self._draw = draw or space.draw_all
        self._random = Random(seed)
        self._choices = {name: space.choices(name) for name in space.inventory.names}
        levels = _levels(space)
        self._run = TrialRun(context, levels[-1], seed, packed=True)
        self.model, self.allocation = self._run.model, levels[-1]
        self._head = head_names(context.base, context.task.kind)
        self._tied = tied_head(context.base, self.allocation)
        for layer in lora_layers(self.model).values():
            layer.forward = partial(_nested_forward, layer)
        self._layers = {name: self._pack(name) for name in self._choices}
        self._receipts = [(level, self._take_receipt(level)) for level in levels]

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self._run.step

    def set(self, allocation: Allocation) -> None:
        """Make the model that of an allocation, by references alone.

        Raises:
            ValueError: The allocation is not one of the space. The model stays as it was.
        """
        self._check(allocation)
        for name, choice in allocation.choices.items():
            packed = self._layers[name][choice.format]
            module: Any = self.model.get_submodule(name)
            if isinstance(module, LoraLayer):
                module.base_layer, module.active_rank = packed, choice.rank
            else:
                place(self.model, name, packed, self._tied)
        self.allocation = allocation

    def train(self, steps: int) -> float:
        """Do so many more optimiser steps, each with a new draw; return their mean loss.

        Raises:
            ValueError: There are not so many steps left, or a draw is not one of the space or
                leaves nothing to train.
            TrainingDivergedError: The training loss is not finite.
            ReceiptError: At the last step: the codes of a module changed.
        """
        run, last = self._run, self.context.recipe.max_steps
        if not 0 < steps <= last - run.step:
            raise ValueError(
                f"`steps` must lie between 1 and the {last - run.step} of {last} that are left, "
                f"got {steps}. Use a context whose recipe has a larger `max_steps`."
            )
        losses: list[Tensor] = []
        self.model.train()
        with run.randomness:
            for number in range(1, steps + 1):
                self._set_drawn()
                losses.append(run.train_step())
                if number % CHECK_STEPS == 0 or number in (1, steps):
                    run.check_finite(losses)
        if run.step == last:
            self._confirm_unchanged()
        return float(torch.stack(losses).mean())

    def score(self, allocation: Allocation, tokens: Tokens | None = None) -> Evaluation:
        """Set an allocation and evaluate it; training may go on afterwards.

        Args:
            allocation: One of the space.
            tokens: Of the split; None for every second validation sequence, as a trial is scored
                on below full fidelity.

        Raises:
            ValueError: See `set`.
        """
        self.set(allocation)
        task, recipe = self.context.task, self.context.recipe
        if tokens is None:
            tokens = task.validation.every(SCREENING_STRIDE)
        device = pick_device(recipe.device)
        return evaluate(self.model, task, tokens, recipe, self._run.compute_dtype, device)

    def _pack(self, name: str) -> dict[Format, nn.Module]:
        """Return a module's layer in each of its formats, the one that was built included."""
        context, built = self.context, self.allocation.choices[name].format
        layers = {built: frozen_layer(self.model, name)}
        source = context.base.get_submodule(name)
        for choice in self._choices[name]:
            if choice.format not in layers:
                layers[choice.format] = pack(
                    source, choice.format, self._run.compute_dtype, context.packed
                )
        return layers

    def _take_receipt(self, allocation: Allocation) -> Receipt:
        self.set(allocation)
        inventory = self.context.inventory
        receipt = take_receipt(self.model, inventory, self._run.compute_dtype)
        check_receipt(receipt, allocation, inventory)
        return receipt

    def _confirm_unchanged(self) -> None:
        current = self.allocation
        for allocation, receipt in self._receipts:
            self.set(allocation)
            confirm_unchanged(self.model, receipt, self.context.inventory)
        self.set(current)

    def _set_drawn(self) -> None:
        allocation = self._draw(self._random)
        if not allocation.rank_pattern and not self._head:
            raise ValueError(
                "`draw` must leave something to train, got rank 0 for all modules of a model "
                "without a new head. Draw a rank above 0 for some."
            )
        self.set(allocation)

    def _check(self, allocation: Allocation) -> None:
        names, known = allocation.choices.keys(), self._choices.keys()
        if names != known or allocation.final_rank is not None:
            other = sorted(names ^ known)
            what = f"another set of modules, first {other[0]}" if other else "one of AdaLoRA's"
            raise ValueError(
                f"`allocation` must give LoRA choices to the modules of --space {self.space.name}, "
                f"got {what}. Draw it from this space."
            )
        for name, choice in allocation.choices.items():
            if choice not in self._choices[name]:
                shown = ", ".join(":".join(map(str, c.values())) for c in self._choices[name])
                raise ValueError(
                    f"`choice` must be one that --space {self.space.name} has ({shown}), got "
                    f"{choice} for {name}. Use `Space.nearest_uniform`, or a space that has it."
                )


def _levels(space: Space) -> list[Allocation]:
    """Return allocations of the largest ranks that have every format of every module, most bits
    last.
    """
    of_module = {}
    for name in space.inventory.names:
        largest = [choice for choice in space.choices(name) if choice.rank == space.ranks[name][-1]]
        of_module[name] = sorted(largest, key=lambda choice: choice.bits)
    return [
        Allocation({name: found[min(level, len(found) - 1)] for name, found in of_module.items()})
        for level in range(max(map(len, of_module.values())))
    ]


def _nested_forward(layer: Any, x: Tensor) -> Tensor:
    """Return the output of the active layer under the first columns of its adapter."""
    rank = layer.active_rank
    if not rank:
        output: Tensor = layer.base_layer(x)
        return output
    a, b = layer.lora_A[ADAPTER].weight[:rank], layer.lora_B[ADAPTER].weight[:, :rank]
    output = layer.base_layer(x, a, b, layer.scaling[ADAPTER])
    return output
