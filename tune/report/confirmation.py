"""Compares confirmed allocations on the test split, and names the one to use."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from alrq_core.records import TestScore
from search_spaces.costs import average_bits, average_rank, target_bytes
from search_spaces.inventory import Inventory
from tune.report.intervals import f1_table, mean_interval
from tune.report.metrics import METRICS
from tune.study.events import Role
from tune.study.plan import COMPARATOR
from tune.study.state import StudyState, TrialState

SMALLER_THAN = "B-Q4"


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """One allocation, trained again with fresh seeds and scored once on the test split.

    Attributes:
        trial: Id of the trial that it confirms.
        role: Of that trial.
        allocation: `Allocation.to_json`.
        final_ranks: With AdaLoRA, the ranks that each seed ended with, by module; else empty.
        memory_bytes, target_bytes, average_rank: Means over the seeds, which AdaLoRA makes differ.
        trainable_parameters: Of the adapter and the head, from the receipts; mean over the seeds.
        train_seconds: Mean over the seeds.
        peak_memory_bytes: The highest of the seeds: see `TrialReport`.
        validation_loss: Mean over the fresh seeds.
        started: Whether each seed started from the reference of that seed.
        kept_steps: Of such seeds, the steps after which they were kept: see `TrialReport`.
        value, interval: The test metric and its 95 % interval.
        f1, f1_interval: Mean macro F1 of the seeds and its 95 % interval; None for language
            modelling, the interval also where predictions were not logged.
        context_tokens, stride_tokens: See `TrialReport`.
        comparator: The configuration that all are compared to: B-FP, or B-Q4 where it doesn't fit.
        difference, difference_interval: To it: points of accuracy or exact match, or per cent of
            perplexity;
            positive is better. None for want of one that is confirmed.
        seeds: The fresh seeds that were completed.
        values: The test metric of each seed.
    """

    trial: str
    role: Role
    allocation: dict[str, Any]
    final_ranks: tuple[dict[str, int], ...]
    average_bits: float
    average_rank: float
    memory_bytes: int
    target_bytes: int
    trainable_parameters: int | None
    train_seconds: float
    peak_memory_bytes: int
    validation_loss: float
    started: bool
    kept_steps: tuple[int, ...]
    metric: str
    value: float
    interval: tuple[float, float]
    f1: float | None
    f1_interval: tuple[float, float] | None
    context_tokens: int | None
    stride_tokens: int | None
    comparator: str
    difference: float | None
    difference_interval: tuple[float, float] | None
    seeds: tuple[int, ...]
    values: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def confirmed(
    state: StudyState,
    inventory: Inventory,
    labels: np.ndarray | None,
    comparator: str = COMPARATOR,
) -> list[Confirmed]:
    """Return what was confirmed, from the smallest to the largest.

    Args:
        state: All trials.
        inventory: The target modules.
        labels: True class of each test sequence; empty for language modelling. None where they are
            not at hand: F1 then has no interval.
        comparator: See `Confirmed`.
    """
    runs: dict[str, list[TrialState]] = {}
    for trial in state.confirmed_runs():
        runs.setdefault(trial.source, []).append(trial)
    rows = [
        _row(state.trials[key], group, comparator, runs.get(comparator), inventory, labels)
        for key, group in runs.items()
    ]
    return sorted(rows, key=lambda row: row.memory_bytes)


def _row(
    source: TrialState,
    runs: list[TrialState],
    comparator: str,
    reference: list[TrialState] | None,
    inventory: Inventory,
    labels: np.ndarray | None,
) -> Confirmed:
    tests = [run.test for run in runs if run.test is not None]
    scores = np.array([test.scores for test in tests])
    share = METRICS[tests[0].metric].share
    trained = [run.trainable_parameters for run in runs]
    difference, difference_interval = None, None
    paired = _paired(runs, reference)
    if paired is not None:
        ours, theirs = paired
        gap = ours - theirs
        change = _points if share else _per_cent_better
        difference = float(change(gap.mean()))
        low, high = sorted(float(change(bound)) for bound in mean_interval(gap))
        difference_interval = low, high
    return Confirmed(
        trial=source.id,
        role=source.role,
        allocation=source.allocation.to_json(),
        average_bits=average_bits(source.allocation, inventory),
        final_ranks=tuple(run.realised.rank_pattern for run in runs if run.realised is not None),
        average_rank=float(np.mean([average_rank(run.final, inventory) for run in runs])),
        memory_bytes=_mean([run.memory_bytes for run in runs]),
        target_bytes=_mean([target_bytes(run.final, inventory) for run in runs]),
        trainable_parameters=None if None in trained else _mean([t for t in trained if t]),
        train_seconds=float(np.mean([run.train_seconds for run in runs])),
        peak_memory_bytes=max(run.reports[-1].peak_memory_bytes for run in runs),
        validation_loss=float(np.mean([run.reports[-1].loss for run in runs])),
        started=runs[0].reference is not None,
        kept_steps=tuple(
            run.reports[-1].kept_step for run in runs if run.reports[-1].kept_step is not None
        ),
        metric=tests[0].metric,
        value=float(scores.mean() if share else np.exp(scores.mean())),
        interval=_share(scores) if share else _exponential(scores),
        f1=_mean_f1(tests),
        f1_interval=_f1_interval(tests, labels),
        context_tokens=tests[0].context_tokens,
        stride_tokens=tests[0].stride_tokens,
        comparator=comparator,
        difference=difference,
        difference_interval=difference_interval,
        seeds=tuple(run.seed for run in runs),
        values=tuple(test.value for test in tests),
    )


def _mean_f1(tests: list[TestScore]) -> float | None:
    found = [test.f1 for test in tests if test.f1 is not None]
    return float(np.mean(found)) if found else None


def _mean(values: Sequence[int]) -> int:
    return round(float(np.mean(values)))


def _paired(
    runs: list[TrialState], reference: list[TrialState] | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return both scores, seeds x sequences, over the seeds that both have."""
    ours = {run.seed: run.test.scores for run in runs if run.test is not None}
    theirs = {run.seed: run.test.scores for run in reference or [] if run.test is not None}
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    return np.array([ours[s] for s in seeds]), np.array([theirs[s] for s in seeds])


def _exponential(losses: np.ndarray) -> tuple[float, float]:
    low, high = np.exp(mean_interval(losses))
    return float(low), float(high)


def _share(table: np.ndarray) -> tuple[float, float]:
    """Return the interval of a mean that lies between 0 and 1."""
    low, high = np.clip(mean_interval(table), 0.0, 1.0)
    return float(low), float(high)


def _f1_interval(tests: list[TestScore], labels: np.ndarray | None) -> tuple[float, float] | None:
    """Return the interval of the macro F1; None where a run's predictions were not kept."""
    if labels is None or not all(test.predictions for test in tests):
        return None
    return _share(f1_table(np.array([test.predictions for test in tests]), labels))


def _points(gap: Any) -> Any:
    """Return a difference of accuracies in points."""
    return 100 * gap


def _per_cent_better(gap: Any) -> Any:
    """Return how much lower a perplexity is, in per cent, from differences of mean losses."""
    return 100 * (1 - np.exp(gap))
