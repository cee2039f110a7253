"""The typed records that a trial gives back."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

VERSION = 2
TaskKind = Literal["classification", "language-modelling"]


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
        exact_match: Of conversations, where it was asked for: see `Evaluation`.
        divergence: Of a trial that started from a reference: mean Kullback-Leibler divergence from
            its answers, on training text that no trial is trained on.
        divergence_standard_error: Of it, over these sequences.
        kept_step: Of such a trial at its end: the step whose state it keeps, which is the last one
            unless its validation loss is shown to be higher. What is reported is of that step.
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
    exact_match: float | None = None
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
        metric: `accuracy`, `perplexity` or `exact_match`.
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
