"""Compares confirmed allocations on the test split, and names the one to use."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from search_spaces.costs import average_bits, target_bytes
from search_spaces.inventory import Inventory
from tune.state import StudyState, TrialState

RESAMPLES = 10_000
LEVEL = 0.95
REFERENCE = "B-FP"
SMALLER_THAN = "B-Q4"


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """One allocation, trained again with fresh seeds and scored once on the test split.

    Attributes:
        trial: Id of the trial that it confirms.
        allocation: `Allocation.to_json`.
        validation_loss: Mean over the fresh seeds.
        value, interval: The test metric and its 95 % interval.
        difference, difference_interval: To B-FP: points of accuracy, or per cent of perplexity;
            positive is better. None for want of a confirmed B-FP.
        seeds: The fresh seeds that were completed.
        values: The test metric of each seed.
    """

    trial: str
    allocation: dict[str, Any]
    average_bits: float
    average_rank: float
    memory_bytes: int
    target_bytes: int
    validation_loss: float
    metric: str
    value: float
    interval: tuple[float, float]
    f1: float | None
    difference: float | None
    difference_interval: tuple[float, float] | None
    seeds: tuple[int, ...]
    values: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def confirmed(state: StudyState, inventory: Inventory) -> list[Confirmed]:
    """Return what was confirmed, from the smallest to the largest."""
    runs: dict[str, list[TrialState]] = {}
    for trial in state.of_role("confirm"):
        if trial.status == "completed" and trial.test is not None:
            runs.setdefault(trial.origin, []).append(trial)
    reference = runs.get(REFERENCE)
    rows = [_row(state.trials[key], group, reference, inventory) for key, group in runs.items()]
    return sorted(rows, key=lambda row: row.memory_bytes)


def recommend(rows: list[Confirmed], margin: float) -> Confirmed | None:
    """Return the smallest allocation whose interval against B-FP stays above -`margin`.

    None if there is none, or no B-FP to compare with.
    """
    good = [
        row
        for row in rows
        if row.trial != REFERENCE
        and row.difference_interval is not None
        and row.difference_interval[0] > -margin
    ]
    return min(good, key=lambda row: row.memory_bytes) if good else None


def _row(
    source: TrialState,
    runs: list[TrialState],
    reference: list[TrialState] | None,
    inventory: Inventory,
) -> Confirmed:
    tests = [run.test for run in runs if run.test is not None]
    scores = np.array([test.scores for test in tests])
    perplexity = tests[0].metric == "perplexity"
    statistic: Callable[[np.ndarray], np.ndarray] = np.exp if perplexity else np.asarray
    difference, interval = None, None
    paired = _paired(runs, reference)
    if paired is not None:
        ours, theirs = paired
        gap = ours - theirs
        change = _per_cent_better if perplexity else _points
        difference = float(change(gap.mean()))
        interval = _interval(change(_resampled_means(gap)))
    return Confirmed(
        trial=source.id,
        allocation=source.allocation.to_json(),
        average_bits=average_bits(source.allocation, inventory),
        average_rank=source.allocation.average_rank,
        memory_bytes=source.memory_bytes,
        target_bytes=target_bytes(source.allocation, inventory),
        validation_loss=float(np.mean([run.reports[-1].loss for run in runs])),
        metric=tests[0].metric,
        value=float(statistic(scores.mean())),
        interval=_interval(statistic(_resampled_means(scores))),
        f1=float(np.mean([t.f1 for t in tests if t.f1 is not None])) if not perplexity else None,
        difference=difference,
        difference_interval=interval,
        seeds=tuple(run.seed for run in runs),
        values=tuple(test.value for test in tests),
    )


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


def _resampled_means(scores: np.ndarray) -> np.ndarray:
    """Return bootstrap means of a seeds x sequences table; both are drawn with replacement.

    Drawing the seeds too keeps the luck of a training run inside the interval (Owen 2007, "The
    pigeonhole bootstrap", section 3). The draws are the same for every table of one shape, so
    that intervals can be compared.
    """
    generator = np.random.default_rng(0)
    seeds, sequences = scores.shape
    seed_weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 500):
        part = slice(start, start + 500)
        size = len(means[part])
        weights = generator.multinomial(sequences, np.full(sequences, 1 / sequences), size)
        means[part] = ((seed_weights[part] @ scores) * weights).sum(axis=1) / sequences
    return means


def _interval(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _points(gap: Any) -> Any:
    """Return a difference of accuracies in points."""
    return 100 * gap


def _per_cent_better(gap: Any) -> Any:
    """Return how much lower a perplexity is, in per cent, from differences of mean losses."""
    return 100 * (1 - np.exp(gap))
