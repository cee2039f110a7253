"""Trains and scores one allocation, rung by rung, and proves with a receipt what ran."""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from alrq_core.adapters.adalora import AdaptiveRanks
from alrq_core.build import build_model
from alrq_core.context import TrialContext
from alrq_core.data.encode import Batch, Tokens, collate, part_tokens, train_batches, train_parts
from alrq_core.data.losses import sequence_losses
from alrq_core.files import replaced
from alrq_core.memory.machine import (
    autocast,
    peak_memory_bytes,
    pick_compute_dtype,
    pick_device,
    reset_peak_memory,
)
from alrq_core.models.heads import head_names, reset_head
from alrq_core.randomness import Randomness
from alrq_core.receipt import (
    check_receipt,
    confirm_unchanged,
    probe_gradients,
    take_receipt,
    with_final_ranks,
)
from alrq_core.records import Receipt, TestScore, TrialReport
from alrq_core.scoring import Evaluation, evaluate
from alrq_core.weights.layers import STORAGE_DTYPE, keep_dequantised
from search_spaces.allocation import Allocation

PROBE_SEQUENCES = 2
# Below full fidelity every second validation sequence is scored: the standard error grows by 1.4,
# and an evaluation costs as much as 6 training steps instead of 12.
SCREENING_STRIDE = 2
# Times the recipe's. AdaLoRA begins with random directions that only their values can scale: MiniLM
# on Rotten Tomatoes, 200 steps, B-Ada: loss 0.684 at 1e-3 (63 % right) and 0.419 at 5e-3 (81 %),
# where LoRA has 0.411 at 1e-3.
ADALORA_LEARNING_RATE = 5.0
CHECK_STEPS = 10


class TrainingDivergedError(RuntimeError):
    """The training loss is no longer finite."""


class TrialRun:
    """One allocation, built, and trained as far as it was told to.

    Attributes:
        context: What all trials of the study share.
        allocation: Bits and ranks.
        model: As built, with packed weights and adapters.
        receipt: What was really built.
        step: Optimiser steps done.
        compute_dtype: Type of the matrix products.
        randomness: The trial's own random numbers.
    """

    def __init__(
        self, context: TrialContext, allocation: Allocation, seed: int, packed: bool = False
    ) -> None:
        """Build the model and check its receipt.

        Args:
            context: What all trials share.
            allocation: Bits and ranks.
            seed: Of the new head, the adapters, the order of the data and dropout.
            packed: Compute with packed weights, whatever the recipe's execution.

        Raises:
            ReceiptError: What was built contradicts the allocation.
        """
        self.context = context
        self.allocation = allocation
        self._device = pick_device(context.recipe.device)
        self.compute_dtype = pick_compute_dtype(self._device, context.recipe.cpu_dtype)
        self._seed = seed
        reset_peak_memory(self._device)
        head = head_names(context.base, context.task.kind)
        with Randomness(seed, self._device):
            self.model = build_model(
                context.base,
                allocation,
                head,
                context.recipe.alpha_over_rank,
                self.compute_dtype,
                self._device,
                context.packed,
            )
        # Building draws more or less, by the allocation: what a seed gives must not depend on it.
        self.randomness = Randomness(seed, self._device)
        with self.randomness:
            reset_head(self.model, head)
            self._adaptive = self._adapt_ranks()
            if self._adaptive is None:
                context.start_adapters(self.model, seed)
        self.receipt = take_receipt(self.model, context.inventory, self.compute_dtype)
        check_receipt(self.receipt, allocation, context.inventory)
        if context.recipe.execution == "dequantized" and not packed:
            keep_dequantised(self.model)
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = self._make_optimizer()
        self._schedule = LambdaLR(self._optimizer, context.recipe.learning_rate_factor)
        self._screening = context.task.validation.every(SCREENING_STRIDE)
        self._batches: Iterator[np.ndarray] = train_batches(
            context.task.train, context.recipe, seed
        )
        self.step = 0

    def advance(self, step: int) -> TrialReport:
        """Train up to `step` optimiser steps in all, score the validation split, and report.

        Below full fidelity a fixed half of the split is scored.

        Raises:
            TrainingDivergedError: The training loss is not finite.
            ReceiptError: An adapter got no gradients, or the base weights changed.
        """
        started = time.perf_counter()
        self.model.train()
        with self.randomness:
            train_loss = self._train_to(step)
        trained = time.perf_counter()
        last = step == self.context.recipe.max_steps
        if last and self._adaptive is not None:
            self._end_adaptive(self._adaptive)
        result = self._evaluate(self.context.task.validation if last else self._screening)
        if last:
            self.receipt = confirm_unchanged(self.model, self.receipt, self.context.inventory)
        return result.trial_report(
            step=step,
            train_loss=train_loss,
            train_seconds=trained - started,
            eval_seconds=time.perf_counter() - trained,
            peak_memory_bytes=peak_memory_bytes(self._device),
        )

    def test(self) -> TestScore:
        """Score the test split once, with adapters and head in the 16 bits of deployment."""
        self.round_to_storage()
        return self._evaluate(self.context.task.test).test_score()

    def round_to_storage(self) -> None:
        """Round adapters and head to the 16 bits that a deployed model keeps of them."""
        for parameter in self._trained:
            parameter.data = parameter.data.to(STORAGE_DTYPE).to(parameter.dtype)

    def save_checkpoint(self, path: Path, report: TrialReport) -> None:
        """Write all that `load_checkpoint` needs to continue exactly, at once or not at all.

        At full fidelity the optimiser's state is left out, since nothing is left to train.
        """
        finished = self.step == self.context.recipe.max_steps
        state = {
            "step": self.step,
            "report": report.to_json(),
            "receipt": self.receipt.to_json(),
            "trained": [parameter.detach().cpu() for parameter in self._trained],
            "adaptive": None if self._adaptive is None else self._adaptive.state(),
            "optimizer": None if finished else self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "randomness": self.randomness.states,
        }
        with replaced(path) as partial:
            torch.save(state, partial)

    def load_checkpoint(self, path: Path) -> TrialReport:
        """Continue from a checkpoint of this allocation and seed; return its last report."""
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location=self._device)
        self.receipt = Receipt.from_json(state["receipt"])
        if self._adaptive is not None and state["adaptive"] is None:
            self._adaptive.attach_plain(self.receipt.ranks)
            self._forget_adaptive()
        elif self._adaptive is not None:
            self._adaptive.load_state(state["adaptive"])
        for parameter, saved in zip(self._trained, state["trained"], strict=True):
            parameter.data.copy_(saved)
        if state["optimizer"] is not None:
            self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.step = state["step"]
        taken = self.step
        self._batches = islice(
            train_batches(self.context.task.train, self.context.recipe, self._seed), taken, None
        )
        self.randomness.states = [generator.cpu() for generator in state["randomness"]]
        return TrialReport(**state["report"])

    def train_step(self) -> Tensor:
        """Do one optimiser step; return its mean loss over sequences, on the device.

        Within the trial's `randomness`, where it is not `advance` that calls it.
        """
        task, recipe = self.context.task, self.context.recipe
        rows = next(self._batches)
        most_tokens = part_tokens(self._device)
        parts = train_parts(rows, task.train.lengths, recipe.micro_batch, most_tokens)
        losses = []
        for part in parts:
            batch = collate(task.train, part, task.pad_id).to(self._device)
            loss = self._loss(self.model, batch) * (len(part) / len(rows))
            losses.append(loss.detach())
            if self._adaptive is not None:
                loss = loss + self._adaptive.regularisation() / len(parts)
            if self._trained:
                loss.backward()
        nn.utils.clip_grad_norm_(self._trained, recipe.max_grad_norm)
        self._optimizer.step()
        self._schedule.step()
        self.step += 1
        if self._adaptive is not None:
            self._adaptive.allocate(self.step)
        self._optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).sum()

    def _train_to(self, step: int) -> float:
        """Do the steps up to `step`; return their mean loss.

        Losses are read now and then only, since a GPU must finish its queue for that.
        """
        losses: list[Tensor] = []
        while self.step < step:
            losses.append(self.train_step())
            if self.step % CHECK_STEPS == 0 or self.step in (1, step):
                self.check_finite(losses)
            if self.step == 1 and self._trained:
                self._probe()
        return float(torch.stack(losses).mean())

    def check_finite(self, losses: list[Tensor]) -> None:
        """Raise if one of the last steps' losses is not finite.

        Raises:
            TrainingDivergedError: One is not.
        """
        recent = torch.stack(losses[-CHECK_STEPS:])
        bad = (~recent.isfinite()).nonzero().flatten()
        if len(bad):
            first = int(bad[0])
            step = self.step - len(recent) + 1 + first
            raise TrainingDivergedError(
                f"training loss became {float(recent[first])} at step {step}"
            )

    @property
    def final_allocation(self) -> Allocation:
        """The allocation that the model has: with AdaLoRA, at the ranks that it ended with."""
        if self.allocation.final_rank is None or self._adaptive is not None:
            return self.allocation
        return self.allocation.with_ranks(self.receipt.ranks)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        recipe = self.context.recipe
        rate = recipe.learning_rate
        if self._adaptive is not None:
            rate = min(1.0, rate * ADALORA_LEARNING_RATE)
        # A language model of rank 0 everywhere has nothing to train, and is scored as it is.
        return torch.optim.AdamW(
            self._trained or [nn.Parameter(torch.zeros(()))],
            lr=rate,
            weight_decay=recipe.weight_decay,
            fused=True,
        )

    def _adapt_ranks(self) -> AdaptiveRanks | None:
        """Attach AdaLoRA's adapters, where the allocation asks for them."""
        if self.allocation.final_rank is None:
            return None
        recipe = self.context.recipe
        return AdaptiveRanks(
            self.model,
            self.allocation.rank_pattern,
            self.allocation.final_rank,
            recipe.max_steps,
            recipe.alpha_over_rank,
        )

    def _end_adaptive(self, adaptive: AdaptiveRanks) -> None:
        """Let AdaLoRA's adapters shrink to their final ranks, and prove that they did."""
        ranks = adaptive.rebuild()
        self._forget_adaptive()
        inventory = self.context.inventory
        taken = take_receipt(self.model, inventory, self.compute_dtype)
        check_receipt(taken, self.allocation.with_ranks(ranks), inventory)
        self.receipt = with_final_ranks(self.receipt, taken, adaptive.budget, adaptive.steps)

    def _forget_adaptive(self) -> None:
        self._adaptive = None
        self._trained = [p for p in self.model.parameters() if p.requires_grad]

    def _probe(self) -> None:
        """Check that an evaluation in the middle leaves the gradients alive."""
        task = self.context.task
        rows = np.arange(min(PROBE_SEQUENCES, self.context.recipe.micro_batch, len(task.train)))
        batch = collate(task.train, rows, task.pad_id).to(self._device)
        self.receipt = probe_gradients(
            self.model, self.receipt, lambda model: self._loss(model, batch)
        )

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        with autocast(self.compute_dtype, self._device):
            losses, _ = sequence_losses(model, batch)
        return losses.mean()

    def _evaluate(self, tokens: Tokens) -> Evaluation:
        context = self.context
        return evaluate(
            self.model, context.task, tokens, context.recipe, self.compute_dtype, self._device
        )
