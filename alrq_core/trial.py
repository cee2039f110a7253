"""Trains and scores one allocation, rung by rung, and proves with a receipt what ran."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from alrq_core.adapters.adalora import AdaptiveRanks
from alrq_core.adapters.reference import Reference, adapters_of
from alrq_core.build import build_model
from alrq_core.checkpoint import read_checkpoint, write_checkpoint
from alrq_core.context import TrialContext
from alrq_core.kept import Kept
from alrq_core.memory.machine import peak_memory_bytes, reset_peak_memory
from alrq_core.models.heads import head_names, reset_head
from alrq_core.models.recomputed import recompute_blocks
from alrq_core.randomness import Randomness
from alrq_core.receipt import (
    check_receipt,
    confirm_unchanged,
    probe_gradients,
    take_receipt,
    with_final_ranks,
)
from alrq_core.recipe import Recipe
from alrq_core.records import TestScore, TrialReport
from alrq_core.scoring import Scorer
from alrq_core.training import Training
from alrq_core.weights.layers import STORAGE_DTYPE, keep_dequantised
from search_spaces.allocation import Allocation

PROBE_SEQUENCES = 2
# Below full fidelity every second validation sequence is scored: the standard error grows by 1.4,
# and an evaluation costs as much as 6 training steps instead of 12.
SCREENING_STRIDE = 2


class TrialRun:
    """One allocation, built, and trained as far as it was told to.

    Attributes:
        context: What all trials of the study share.
        allocation: Bits and ranks.
        seed: Of all that is drawn.
        recipe: How it is trained.
        model: As built, with packed weights and adapters.
        receipt: What was really built.
        training: Its optimiser steps.
        compute_dtype: Type of the matrix products.
        randomness: The trial's own random numbers.
    """

    def __init__(
        self,
        context: TrialContext,
        allocation: Allocation,
        seed: int,
        confirming: bool = False,
        reference: Reference | None = None,
        labels: bool = False,
    ) -> None:
        """Build the model and check its receipt.

        Args:
            context: What all trials share.
            allocation: Bits and ranks.
            seed: Of the new head, the adapters, the order of the data and dropout.
            confirming: Compute with packed weights, whatever the recipe's execution, and score all
                of the validation split at every rung, and nothing else.
            reference: What it starts from and is trained towards; None to learn the task from
                nothing.
            labels: Train what started from a reference on the labels, not towards its answers.

        Raises:
            ReceiptError: What was built contradicts the allocation.
            ValueError: AdaLoRA's adapters were to start from a reference.
        """
        if reference is not None and allocation.final_rank is not None:
            raise ValueError(
                "`reference` must be None with AdaLoRA, whose adapters have no closed form, got "
                f"that of seed {reference.seed}. Leave it out."
            )
        self.context, self.allocation, self.seed = context, allocation, seed
        self.reports: list[TrialReport] = []
        self._reference = reference
        self._measured = None if confirming or reference is None else reference.answers["scored"]
        self.recipe = context.recipe if reference is None else context.recipe.tuning
        self._device, self.compute_dtype = context.device, context.compute_dtype
        reset_peak_memory(self._device)
        adaptive = self._build()
        self.receipt = take_receipt(self.model, context.inventory, self.compute_dtype)
        check_receipt(self.receipt, allocation, context.inventory)
        if reference is not None:
            self.receipt = replace(self.receipt, start=reference.receipt)
        if context.recipe.execution == "dequantized" and not confirming:
            keep_dequantised(self.model)
        validation = context.task.validation
        self._screening = validation if confirming else validation.every(SCREENING_STRIDE)
        self.training = Training(
            context, self.model, adaptive, seed, self.compute_dtype, self._device, reference, labels
        )
        self._scorer = Scorer(
            self.model, context.task, context.recipe, self.compute_dtype, self._device
        )
        self._best: Kept | None = None
        # Losses of the steps since the last report, and the seconds that they took.
        self._trained: tuple[list[Tensor], float] = [], 0.0

    def _build(self) -> AdaptiveRanks | None:
        """Build the model, with head and adapters started; return AdaLoRA's adapters."""
        context, reference = self.context, self._reference
        head = head_names(context.base, context.task.kind)
        with Randomness(self.seed, self._device):
            self.model = build_model(
                context.base,
                self.allocation,
                head,
                context.recipe.alpha_over_rank,
                self.compute_dtype,
                self._device,
                context.packed.of,
            )
        if context.recipe.gradient_checkpointing:
            recompute_blocks(self.model)
        # Building draws more or less, by the allocation: what a seed gives must not depend on it.
        self.randomness = Randomness(self.seed, self._device)
        with self.randomness:
            reset_head(self.model, head)
            adaptive = _adapt_ranks(self.model, self.allocation, context.recipe)
            if reference is not None:
                context.start_from(self.model, self.allocation, reference, self.seed)
            elif adaptive is None:
                context.start_adapters(self.model, self.allocation, self.seed)
        return adaptive

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.training.step

    def advance(self, step: int) -> TrialReport:
        """Train up to `step` optimiser steps in all, score the validation split, and report.

        Below full fidelity a fixed half of the split is scored. After a start from a reference, it
        is always the same part, and the divergence from the reference is measured with it; step 0
        scores the start, and the last report is of the state that the trial keeps: the last one,
        unless its validation loss is shown to be above that of the start.

        Raises:
            TrainingDivergedError: The training loss is not finite.
            ReceiptError: An adapter got no gradients, or the base weights changed.
        """
        self.train(step)
        losses, train_seconds = self._trained
        self._trained = [], 0.0
        train_loss = float(torch.stack(losses).mean()) if losses else 0.0
        trained = time.perf_counter()
        last = step == self.recipe.max_steps
        if last:
            self._end_adaptive()
        whole = last and self._reference is None
        result = self._scorer.evaluate(self.context.task.validation if whole else self._screening)
        apart = None
        if self._measured is not None:
            apart = self._scorer.evaluate(self.context.parts.scored, self._measured)
        if last:
            self.receipt = confirm_unchanged(self.model, self.receipt, self.context.inventory)
        report = result.trial_report(
            step=step,
            train_loss=train_loss,
            train_seconds=train_seconds,
            eval_seconds=time.perf_counter() - trained,
            peak_memory_bytes=peak_memory_bytes(self._device),
            start=apart,
        )
        if self._reference is not None:
            report = self._kept(report, result.losses, last)
        self.reports.append(report)
        return report

    def train(self, step: int) -> None:
        """Train up to `step` optimiser steps in all, without a report: for callers that want to
        tell how far it is. After the first step gradients are probed.

        Raises:
            TrainingDivergedError: The training loss is not finite.
            ReceiptError: An adapter got no gradients.
        """
        started = time.perf_counter()
        losses, seconds = self._trained
        self.model.train()
        with self.randomness:
            if self.step == 0 < step:
                losses += self.training.train_to(1)
                if self.training.trained:
                    self._probe()
            losses += self.training.train_to(step)
        self._trained = losses, seconds + time.perf_counter() - started

    def divergence(self) -> float:
        """Return the mean divergence from the reference, over what starts are scored on."""
        assert self._measured is not None
        found = self._scorer.evaluate(self.context.parts.scored, self._measured).divergences
        assert found is not None
        return float(found.mean())

    def test(self) -> TestScore:
        """Score the test split once, with adapters and head in the 16 bits of deployment."""
        self.round_to_storage()
        return self._scorer.evaluate(self.context.task.test).test_score()

    def round_to_storage(self) -> None:
        """Round adapters and head to the 16 bits that a deployed model keeps of them."""
        for parameter in self.training.trained:
            parameter.data = parameter.data.to(STORAGE_DTYPE).to(parameter.dtype)

    def reference(self) -> Reference:
        """Return this trial, fully trained from nothing, as what others of its seed start from.

        Adapters and head are rounded to the 16 bits of deployment.
        """
        self.round_to_storage()
        head = {
            f"{module}.{name}": value.detach().cpu().clone()
            for module in head_names(self.context.base, self.context.task.kind)
            for name, value in self.model.get_submodule(module).named_parameters()
        }
        context = self.context
        parts = {"scored": context.parts.scored, "tuned": context.parts.tuned}
        return Reference(
            allocation=self.allocation,
            seed=self.seed,
            adapters=adapters_of(self.model),
            head=head,
            answers={part: self._scorer.answers_to(tokens) for part, tokens in parts.items()},
        )

    def save_checkpoint(self, path: Path) -> None:
        """Write all that `load_checkpoint` needs to continue exactly, at once or not at all."""
        write_checkpoint(
            path, self.training, self.randomness, self.receipt, self.reports, self._best
        )

    def load_checkpoint(self, path: Path) -> None:
        """Continue from a checkpoint of this allocation and seed, whose reports are known then.

        Raises:
            CheckpointError: The file is damaged; nothing was changed.
        """
        self.receipt, self.reports, self._best = read_checkpoint(
            path, self.training, self.randomness, self._device
        )

    @property
    def final_allocation(self) -> Allocation:
        """The allocation that the model has: with AdaLoRA, at the ranks that it ended with."""
        if self.allocation.final_rank is None or self.training.adaptive is not None:
            return self.allocation
        return self.allocation.with_ranks(self.receipt.ranks)

    def _probe(self) -> None:
        """Check that an evaluation in the middle leaves the gradients alive.

        By the labels, since the divergence of a start that answers as the reference does has none.
        """
        context = self.context
        most = min(PROBE_SEQUENCES, context.recipe.micro_batch, len(context.task.train))
        rows, training = np.arange(most), self.training
        self.receipt = probe_gradients(
            self.model,
            self.receipt,
            lambda _: training.scaled(training.mean_loss(rows, labels=True)),
        )

    def _end_adaptive(self) -> None:
        """Let AdaLoRA's adapters shrink to their final ranks, and prove that they did."""
        adaptive = self.training.adaptive
        if adaptive is None:
            return
        ranks = self.training.end_adaptive(adaptive)
        inventory = self.context.inventory
        taken = take_receipt(self.model, inventory, self.compute_dtype)
        check_receipt(taken, self.allocation.with_ranks(ranks), inventory)
        self.receipt = with_final_ranks(self.receipt, taken, adaptive.budget, adaptive.steps)

    def _kept(self, report: TrialReport, losses: np.ndarray, last: bool) -> TrialReport:
        """Keep this state, unless the one before beats it; at the end, return to what is kept and
        report it.
        """
        trained = self.training.trained
        if self._best is None or not self._best.beats(losses):
            values = [parameter.detach().clone() for parameter in trained]
            self._best = Kept(report, values, torch.from_numpy(losses))
        if not last:
            return report
        for parameter, value in zip(trained, self._best.trained, strict=True):
            parameter.data.copy_(value)
        return self._best.report_at_end(report)


def _adapt_ranks(model: nn.Module, allocation: Allocation, recipe: Recipe) -> AdaptiveRanks | None:
    """Attach AdaLoRA's adapters, where the allocation asks for them."""
    if allocation.final_rank is None:
        return None
    return AdaptiveRanks(
        model,
        allocation.rank_pattern,
        allocation.final_rank,
        recipe.max_steps,
        recipe.alpha_over_rank,
    )
