"""Takes the optimiser steps of one trial: batches, loss, gradients, learning rate."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alrq_core.adapters.adalora import AdaptiveRanks
from alrq_core.adapters.final_ranks import attach_plain, rebuild
from alrq_core.adapters.reference import Reference
from alrq_core.context import TrialContext
from alrq_core.data.answers import Answers, divergences
from alrq_core.data.encode import collate, part_tokens, train_batches, train_parts
from alrq_core.data.losses import logits_of, losses_of
from alrq_core.precision import autocast
from alrq_core.recipe import Recipe

# Times the recipe's. AdaLoRA begins with random directions that only their values can scale: MiniLM
# on Rotten Tomatoes, 200 steps, B-Ada: loss 0.684 at 1e-3 (63 % right) and 0.419 at 5e-3 (81 %),
# where LoRA has 0.411 at 1e-3.
ADALORA_LEARNING_RATE = 5.0
CHECK_STEPS = 10
# Of the first step in float16. A sum over 16,000 tokens has gradients of 1e-9 for its smallest
# logits, which begin to count at 6e-8.
LOSS_SCALE = 2.0**13
# Times the longest rate at which a step along the signs of the gradient, as Adam's first ones are,
# promises no more than there is to lose: the loss over the sum of all slopes, as Polyak's step is
# the loss over their squares (Minimization of unsmooth functionals, 1969), since no divergence is
# below 0. Of the rates from 5e-5 to 1e-3 the best from six starts of SmolLM2 at 0.04 to 0.29 were
# 0.4 to 2.5 times that one, with 30 steps; for random allocations of MiniLM it is above 1e-3.
REACH = 1.0


class TrainingDivergedError(RuntimeError):
    """The training loss is no longer finite."""


class Training:
    """A built model in training.

    Attributes:
        step: Optimiser steps done.
        adaptive: AdaLoRA's adapters, until they have their final ranks; None for plain ones.
        trained: What the optimiser changes.
    """

    def __init__(
        self,
        context: TrialContext,
        model: nn.Module,
        adaptive: AdaptiveRanks | None,
        seed: int,
        compute_dtype: torch.dtype,
        device: torch.device,
        reference: Reference | None = None,
        labels: bool = False,
    ) -> None:
        """Begin before the first step.

        Args:
            context: The training split and the recipe.
            model: With its adapters, started; on the device.
            adaptive: Its AdaLoRA adapters, where it has such.
            seed: Of the order of the data.
            compute_dtype: Type of the matrix products.
            device: Where batches go.
            reference: What the model started from; it is trained towards its answers.
            labels: Train on the labels all the same.
        """
        self._pad_id = context.task.pad_id
        self._tokens, self._recipe = context.task.train, context.recipe
        self._answers: Answers | None = None
        if reference is not None:
            self._tokens, self._recipe = context.parts.tuned, context.recipe.tuning
            self._answers = None if labels else reference.answers["tuned"]
        self._model = model
        self.adaptive = adaptive
        self._seed = seed
        self._compute_dtype, self._device = compute_dtype, device
        self.step = 0
        self.trained = _trainable(model)
        self._optimizer = _make_optimizer(self.trained, self._recipe, adaptive is not None)
        # Gradients of float16 fall below its smallest number: Mixed precision training,
        # arXiv:1710.03740, section 3.2.
        narrow = compute_dtype == torch.float16 and bool(self.trained)
        self._scaler = torch.amp.GradScaler(device.type, init_scale=LOSS_SCALE, enabled=narrow)
        [group] = self._optimizer.param_groups
        self._rate: float = group["lr"]
        # Loss and slope of the steps in which the rate rises, where they bound it.
        self._first: list[Tensor] | None = None
        if self._answers is not None and self._recipe.tune_learning_rate is None:
            self._first = []
        self._batches = self._batches_from(0)

    def train_to(self, step: int) -> list[Tensor]:
        """Do the steps up to `step`; return the loss of each, on the device.

        Losses are read now and then only, since a GPU must finish its queue for that.

        Raises:
            TrainingDivergedError: A loss is not finite.
        """
        losses: list[Tensor] = []
        while self.step < step:
            losses.append(self.train_step())
            if self.step % CHECK_STEPS == 0 or self.step == step:
                _check_finite(losses[-CHECK_STEPS:], self.step)
        return losses

    def train_step(self) -> Tensor:
        """Do one optimiser step; return its mean loss over sequences, on the device.

        Within the trial's `randomness`, where it is not `TrialRun.advance` that calls it.
        """
        rows = next(self._batches)
        lengths, most_tokens = self._tokens.lengths, part_tokens(self._device)
        parts = train_parts(rows, lengths, self._recipe.micro_batch, most_tokens)
        losses = []
        for part in parts:
            loss = self.mean_loss(part) * (len(part) / len(rows))
            losses.append(loss.detach())
            if self.adaptive is not None:
                loss = loss + self.adaptive.regularisation() / len(parts)
            if self.trained:
                self.scaled(loss).backward()
        self._scaler.unscale_(self._optimizer)
        loss = torch.stack(losses).sum()
        self._set_rate(loss)
        nn.utils.clip_grad_norm_(self.trained, self._recipe.max_grad_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.step += 1
        if self.adaptive is not None:
            self._allocate(self.adaptive)
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    def scaled(self, loss: Tensor) -> Tensor:
        """Return a loss times what keeps its gradients within the compute type's range."""
        scaled: Tensor = self._scaler.scale(loss)
        return scaled

    def _allocate(self, adaptive: AdaptiveRanks) -> None:
        """Let AdaLoRA see the step's gradients; a step that overflowed counts as one of none."""
        if self._scaler.is_enabled():
            for parameter in self.trained:
                if parameter.grad is not None:
                    parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        adaptive.allocate(self.step)

    def _set_rate(self, loss: Tensor) -> None:
        """Set the rate of this step: of the schedule, and bounded where a start may be near."""
        [group] = self._optimizer.param_groups
        factor = self._recipe.learning_rate_factor(self.step)
        group["lr"] = self._rate * factor
        if self._first is not None and self.trained:
            if self.step < self._recipe.warmup_steps:
                self._first.append(self._to_win(loss))
            to_win, slope = torch.stack(self._first).sum(dim=0)
            # A tensor, so that nobody waits for the loss. A start that answers as the reference
            # does has neither.
            longest = REACH * to_win / slope.clamp(min=torch.finfo(slope.dtype).tiny)
            group["lr"] = longest.clamp(max=self._rate) * factor

    def _to_win(self, loss: Tensor) -> Tensor:
        """Return a loss and the sum of all slopes; zeros for a step that overflowed."""
        slopes = [p.grad.abs().sum() for p in self.trained if p.grad is not None]
        pair = torch.stack((loss, torch.stack(slopes).sum()))
        return torch.where(pair.isfinite().all(), pair, torch.zeros_like(pair))

    def mean_loss(self, rows: np.ndarray, labels: bool = False) -> Tensor:
        """Return the model's mean loss over rows of what it is trained on, in its mode.

        Args:
            rows: Of the tokens.
            labels: By the labels, even where it is trained towards answers.
        """
        batch = collate(self._tokens, rows, self._pad_id).to(self._device)
        with autocast(self._compute_dtype, self._device):
            logits = logits_of(self._model, batch)
            if labels or self._answers is None:
                return losses_of(logits, batch).mean()
            return divergences(logits, batch, self._answers.of(rows, self._device)).mean()

    def end_adaptive(self, adaptive: AdaptiveRanks) -> dict[str, int]:
        """Let AdaLoRA's adapters shrink to their final ranks after the last step; return the ranks.

        Raises:
            RankBudgetError: The ranks are above the budget.
        """
        ranks = rebuild(adaptive)
        self._forget_adaptive()
        return ranks

    def state(self) -> dict[str, Any]:
        """Return what `load_state` needs, in types that torch.load trusts.

        At full fidelity the optimiser's state is left out, since nothing is left to train.
        """
        finished = self.step == self._recipe.max_steps
        return {
            "step": self.step,
            "trained": [parameter.detach().cpu() for parameter in self.trained],
            "adaptive": None if self.adaptive is None else self.adaptive.state(),
            "optimizer": None if finished else self._optimizer.state_dict(),
            "first": None if self._first is None else [pair.cpu() for pair in self._first],
            "scale": self._scaler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any], ranks: Mapping[str, int]) -> None:
        """Continue from what `state` returned for the same allocation and seed.

        Args:
            state: As returned.
            ranks: Of all modules at that time, from the receipt.
        """
        if self.adaptive is not None and state["adaptive"] is None:
            attach_plain(self.adaptive, ranks)
            self._forget_adaptive()
        elif self.adaptive is not None:
            self.adaptive.load_state(state["adaptive"])
        for parameter, saved in zip(self.trained, state["trained"], strict=True):
            parameter.data.copy_(saved)
        if state["optimizer"] is not None:
            self._optimizer.load_state_dict(state["optimizer"])
        first = state["first"]
        self._first = None if first is None else [pair.to(self._device) for pair in first]
        self._scaler.load_state_dict(state["scale"])
        self.step = state["step"]
        self._batches = self._batches_from(self.step)

    def _batches_from(self, step: int) -> Iterator[np.ndarray]:
        return islice(train_batches(self._tokens, self._recipe, self._seed), step, None)

    def _forget_adaptive(self) -> None:
        self.adaptive = None
        self.trained = _trainable(self._model)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _make_optimizer(
    trained: list[nn.Parameter], recipe: Recipe, adaptive: bool
) -> torch.optim.Optimizer:
    rate = recipe.learning_rate
    if adaptive:
        rate = min(1.0, rate * ADALORA_LEARNING_RATE)
    # A language model of rank 0 everywhere has nothing to train, and is scored as it is.
    return torch.optim.AdamW(
        trained or [nn.Parameter(torch.zeros(()))],
        lr=rate,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def _check_finite(recent: list[Tensor], step: int) -> None:
    """Raise where a loss is not finite; the last of them is that of `step`."""
    losses = torch.stack(recent)
    bad = (~losses.isfinite()).nonzero().flatten()
    if len(bad):
        first = int(bad[0])
        raise TrainingDivergedError(
            f"training loss became {float(losses[first])} at step {step - len(losses) + 1 + first}"
        )
