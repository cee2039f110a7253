"""How every trial of a study is trained."""

import math
from dataclasses import dataclass, replace

EXECUTIONS = ("packed", "dequantized")
DEVICES = ("auto", "cpu", "cuda", "mps")
LORA_INITS = ("default", "residual", "eva")
# Of the steps of a trial from nothing, at its rate. In fewer steps a rate moves adapters more at
# random than forward, and falls with them: MiniLM on Rotten Tomatoes did best with 5e-4 in 50
# steps, and with 1e-3 in 100.
TUNE_FRACTION = 0.5


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How every trial of a study is trained.

    Attributes:
        learning_rate: Peak of AdamW's schedule.
        max_steps: Optimiser steps at full fidelity.
        batch_size: Sequences an optimiser step.
        accumulation_steps: Micro-batches that share one optimiser step; None for as few as fit
            in memory, which a study's planner decides.
        max_length: Tokens a sequence; longer ones are cut (classification) or the size of a
            window (language modelling).
        warmup_fraction: Part of the steps in which the learning rate rises.
        weight_decay: AdamW's decoupled decay.
        max_grad_norm: Norm at which gradients are clipped.
        alpha_over_rank: LoRA's scaling, the same for every rank.
        dropout: Probability of every dropout in the model. Frozen weights under small adapters
            hardly overfit in an epoch, and drawing the masks costs a tenth of a step on a CPU.
        device: `cpu`, `cuda` or `mps`; None for the fastest that the machine has.
        execution: `packed`, or `dequantized`: compute with a dequantised copy of the weights; None
            for packed, unless a study's planner finds room for copies on a CPU, where they are
            faster.
        gradient_checkpointing: Whether activations of blocks are computed again when gradients are
            taken, which takes less memory and a third more time; None for no, unless a study's
            planner needs it.
        lora_init: Where adapters start: `default` (B = 0), `residual` or `eva`.
        cpu_dtype: `float32` or `bfloat16`: type of the matrix products on a CPU; None for the
            one that is faster there.
        tune_steps: Optimiser steps of a trial that starts from a reference; None for half of
            `max_steps`.
        tune_learning_rate: Peak of its schedule; None for `learning_rate`, less by as much as
            there are fewer steps than that half, and where a step would promise more than the
            start has to win.
        prepared_tokens: Of a batch whose activations are kept before trials begin, for starts and
            table. With twice as many a worker takes 0.07 to 0.1 GB more for MiniLM, and a table a
            fifth less time: it unpacks all formats for each batch.
        held_bytes: Of the moments and factors that are held at once: all of a model of 0.1 billion
            parameters, three blocks of one of 7. A study's planner lowers both where memory is
            short.
    """

    learning_rate: float = 1e-3
    max_steps: int = 200
    batch_size: int = 32
    accumulation_steps: int | None = None
    max_length: int = 128
    warmup_fraction: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    alpha_over_rank: float = 2.0
    dropout: float = 0.0
    device: str | None = None
    execution: str | None = None
    gradient_checkpointing: bool | None = None
    lora_init: str = "default"
    cpu_dtype: str | None = None
    tune_steps: int | None = None
    tune_learning_rate: float | None = None
    prepared_tokens: int = 1024
    held_bytes: int = 2 * 10**9

    @property
    def tuning(self) -> "Recipe":
        """How a trial is trained that starts from a reference."""
        usual = max(1, round(TUNE_FRACTION * self.max_steps))
        steps = usual if self.tune_steps is None else self.tune_steps
        rate = self.tune_learning_rate
        if rate is None:
            rate = self.learning_rate * min(1.0, steps / usual)
        return replace(self, max_steps=steps, learning_rate=rate)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an optimiser step."""
        return self.accumulation_steps or 1

    @property
    def micro_batch(self) -> int:
        """Sequences of one forward pass in training."""
        return self.batch_size // self.micro_batches

    @property
    def smaller_batches(self) -> "Recipe | None":
        """The same recipe in micro-batches of at most half the size; None if that is one already.

        Every optimiser step sees the whole batch, so that results differ by rounding only.
        """
        for steps in range(2 * self.micro_batches, self.batch_size + 1):
            if self.batch_size % steps == 0:
                return replace(self, accumulation_steps=steps)
        return None

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        return max(1, round(self.warmup_fraction * self.max_steps))

    def learning_rate_factor(self, step: int) -> float:
        """Return the part of the peak learning rate after so many steps: linear, then cosine."""
        warmup = self.warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.max_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def __post_init__(self) -> None:
        for flag, rate in (
            ("--learning-rate", self.learning_rate),
            (
                "--tune-learning-rate",
                self.learning_rate if self.tune_learning_rate is None else self.tune_learning_rate,
            ),
        ):
            if not 0 < rate < 1:
                raise ValueError(f"`{flag}` must lie between 0 and 1, got {rate}. Try 1e-3.")
        for flag, value in (
            ("--max-steps", self.max_steps),
            ("--batch-size", self.batch_size),
            ("--tune-steps", 1 if self.tune_steps is None else self.tune_steps),
            (
                "--accumulation-steps",
                1 if self.accumulation_steps is None else self.accumulation_steps,
            ),
        ):
            if value < 1:
                raise ValueError(f"`{flag}` must be at least 1, got {value}. Give a larger number.")
        for flag, choice, known in (
            ("--execution", self.execution or EXECUTIONS[0], EXECUTIONS),
            ("--lora-init", self.lora_init, LORA_INITS),
            ("--device", self.device or "auto", DEVICES),
        ):
            if choice not in known:
                raise ValueError(
                    f"`{flag}` must be one of {', '.join(known)}, got {choice!r}. Use one of those."
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`--dropout` must lie in [0, 1), got {self.dropout}. Try 0.1.")
        if self.max_length < 8:
            raise ValueError(
                f"`--max-length` must be at least 8 tokens, got {self.max_length}. Try 128."
            )
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"`--accumulation-steps` must divide the batch size {self.batch_size}, "
                f"got {self.accumulation_steps}. Choose a divisor."
            )
