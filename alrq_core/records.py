"""The typed records that a trial takes and gives back."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

VERSION = 2
TaskKind = Literal["classification", "language-modelling"]
EXECUTIONS = ("packed", "dequantized")
DEVICES = ("auto", "cpu", "cuda", "mps")
LORA_INITS = ("default", "residual", "eva")
TUNE_FRACTION = 0.25


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
        lora_init: Where adapters start: `default` (B = 0), `residual` or `eva`.
        cpu_dtype: `float32` or `bfloat16`: type of the matrix products on a CPU; None for the
            one that is faster there.
        tune_steps: Optimiser steps of a trial that starts from a reference; None for a quarter of
            `max_steps`.
        tune_learning_rate: Peak of its schedule.
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
    lora_init: str = "default"
    cpu_dtype: str | None = None
    tune_steps: int | None = None
    tune_learning_rate: float = 5e-4

    @property
    def tuning(self) -> "Recipe":
        """How a trial is trained that starts from a reference."""
        steps = self.tune_steps
        if steps is None:
            steps = max(1, round(TUNE_FRACTION * self.max_steps))
        return replace(self, max_steps=steps, learning_rate=self.tune_learning_rate)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an optimiser step."""
        return self.accumulation_steps or 1

    @property
    def micro_batch(self) -> int:
        """Sequences of one forward pass in training."""
        return self.batch_size // self.micro_batches

    def learning_rate_factor(self, step: int) -> float:
        """Return the part of the peak learning rate after so many steps: linear, then cosine."""
        warmup = max(1, round(self.warmup_fraction * self.max_steps))
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.max_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def __post_init__(self) -> None:
        for flag, rate in (
            ("--learning-rate", self.learning_rate),
            ("--tune-learning-rate", self.tune_learning_rate),
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


@dataclass(frozen=True, kw_only=True)
class TrialReport:
    """What one trial measured at one rung.

    Attributes:
        step: Optimiser steps done.
        train_loss: Mean loss of the steps since the rung before.
        loss: Mean validation loss, per sequence (classification) or token.
        loss_standard_error: Of `loss`, over validation sequences.
        sequences: Validation sequences that were scored.
        accuracy, f1: Classification only; macro F1.
        perplexity: Language modelling only.
        divergence: Of a trial that started from a reference: mean Kullback-Leibler divergence from
            its answers, on training text that no trial is trained on.
        divergence_standard_error: Of it, over these sequences.
        kept_step: Of such a trial at its end: the step whose state it keeps, which is that of the
            lowest validation loss. What is reported then is of that step.
        context_tokens, stride_tokens: Language modelling only: tokens of a window, and from the
            start of one window of the split to that of the next.
        train_seconds, eval_seconds: Wall time since the rung before.
        peak_memory_bytes: Highest resident (or device) memory of the trial so far.
    """

    step: int
    train_loss: float
    loss: float
    loss_standard_error: float
    sequences: int
    accuracy: float | None = None
    f1: float | None = None
    perplexity: float | None = None
    divergence: float | None = None
    divergence_standard_error: float | None = None
    kept_step: int | None = None
    context_tokens: int | None = None
    stride_tokens: int | None = None
    train_seconds: float
    eval_seconds: float
    peak_memory_bytes: int

    @property
    def objective(self) -> float:
        """What a search minimises beside bytes: the divergence where there is one, else the loss.

        Divergences of modules' changes nearly add up, are free of the labels' noise, and leave the
        validation split for decisions.
        """
        return self.loss if self.divergence is None else self.divergence

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, absent metrics left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ModuleReceipt:
    """One target module as it was really built.

    Attributes:
        module_class: Class of the frozen layer.
        bits, method, group_size: Format of the codes, read from the stored tensors.
        stored_bytes: Codes, scales and zero points.
        rank: Read from the adapter's tensors; 0 without one.
        checksum: CRC-32 of the stored codes.
    """

    module_class: str
    bits: int
    method: str
    group_size: int
    stored_bytes: int
    rank: int
    checksum: int


@dataclass(frozen=True, kw_only=True)
class AdaLoraReceipt:
    """How AdaLoRA brought the ranks down to their budget.

    Attributes:
        initial_ranks, final_ranks: Sums over all modules, read from the tensors.
        budget: Sum that was to be reached.
        allocations: Steps at which the ranks were allocated.
    """

    initial_ranks: int
    budget: int
    final_ranks: int
    allocations: int


@dataclass(frozen=True, kw_only=True)
class StartReceipt:
    """Which reference a trial started from.

    Attributes:
        allocation: Of the reference, as `Allocation.encode` writes it.
        seed: Of its training.
        checksum: CRC-32 of its adapters and head.
    """

    allocation: str
    seed: int
    checksum: int


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What one trial really built and whether it really trained.

    Attributes:
        modules: Target module to its receipt, read before training.
        memory_bytes: The deployed model: stored weights, adapters, all else in 16 bits.
        target_bytes: The target modules with their adapters alone.
        average_bits: Stored bits per base weight of the target modules.
        trainable_parameters: Adapter and head.
        lora_pairs: Adapters that were built.
        lora_pairs_with_gradient: Those that got gradients after an evaluation.
        compute_dtype: Type of the matrix products.
        unchanged_after_training: Whether a second reading of the base weights at the end agrees;
            None until it was taken.
        adalora: Of an AdaLoRA trial, once its adapter was rebuilt; the rest is then as rebuilt.
        start: The reference that the trial started from; None if it learnt the task from nothing.
    """

    modules: dict[str, ModuleReceipt]
    memory_bytes: int
    target_bytes: int
    average_bits: float
    trainable_parameters: int
    lora_pairs: int
    lora_pairs_with_gradient: int
    compute_dtype: str
    unchanged_after_training: bool | None = None
    adalora: AdaLoraReceipt | None = None
    start: StartReceipt | None = None
    version: int = field(default=VERSION)

    @property
    def ranks(self) -> dict[str, int]:
        """Module name to the rank that it was built with."""
        return {name: module.rank for name, module in self.modules.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the versioned JSON form."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Receipt":
        """Return the receipt that `to_json` wrote.

        Raises:
            ValueError: Another version.
        """
        if data.get("version") != VERSION:
            raise ValueError(
                f"`version` of a receipt must be {VERSION}, got {data.get('version')!r}. "
                "Read it with the release that wrote it."
            )
        modules = {name: ModuleReceipt(**entry) for name, entry in data["modules"].items()}
        parts: dict[str, Any] = {"modules": modules}
        for name, kind in (("adalora", AdaLoraReceipt), ("start", StartReceipt)):
            if data.get(name) is not None:
                parts[name] = kind(**data[name])
        return Receipt(**{**data, **parts})


@dataclass(frozen=True, kw_only=True)
class TestScore:
    """One confirmed trial on the test split.

    Attributes:
        metric: `accuracy` or `perplexity`.
        value: The metric over the whole split.
        loss: Mean test loss.
        f1: Macro F1; None for language modelling.
        scores: Per test sequence: 1 or 0 for a right or wrong answer, or the mean negative
            log-likelihood of a window. In the order of the split, so that runs can be paired.
        losses: Mean loss of each test sequence, in the same order.
        predictions: Predicted class of each test sequence; empty for language modelling.
        context_tokens, stride_tokens: See `TrialReport`.
    """

    __test__ = False  # not a test class, whatever its name suggests to pytest

    metric: str
    value: float
    loss: float
    f1: float | None
    scores: tuple[float, ...]
    losses: tuple[float, ...]
    predictions: tuple[int, ...] = ()
    context_tokens: int | None = None
    stride_tokens: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, absent metrics left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}
