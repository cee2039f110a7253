"""Names the allocation to use, or says what keeps it from being named."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alrq_core.data.encode import EncodedTask
from search_spaces.costs import format_bytes
from tune.report.confirmation import Confirmed
from tune.report.intervals import LEVEL
from tune.report.metrics import METRICS
from tune.report.table import difference_text
from tune.study.confirming import CONFIRM_SEEDS

# Of normal values, an interval of a mean that is drawn from so few holds the truth in 93 rather
# than 95 of 100 cases, and from 8 in 89.
MIN_WINDOWS = 20
# Why nothing is recommended of a study that could have.
LOST = "no interval against"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a study advises.

    Attributes:
        row: The allocation to use; None if none is named.
        text: Which it is, or why there is none and what to do.
    """

    row: Confirmed | None
    text: str


def judge(
    rows: Sequence[Confirmed],
    *,
    sequences: int,
    constant: float,
    margin: float,
    max_memory_bytes: int | None,
    finished: bool,
) -> Verdict:
    """Return the smallest allocation that is shown to do within the margin as well as B-FP, or as
    what takes its place.

    Args:
        rows: What was confirmed.
        sequences: Of the test split.
        constant: See `constant_answer`.
        margin: In points of accuracy or exact match, or per cent of perplexity.
        max_memory_bytes: Limit on the deployed model; None for none.
        finished: Whether nothing is left to run.
    """
    doubt = _doubt(rows, sequences, constant, margin, finished)
    if doubt is not None:
        return Verdict(row=None, text=f"No recommendation: {doubt}")
    complete = [row for row in rows if len(row.seeds) >= CONFIRM_SEEDS]
    row = recommend(complete, margin, max_memory_bytes)
    text = recommendation_line(complete, row, margin, max_memory_bytes)
    passed = recommend(rows, margin, max_memory_bytes)
    if passed is not row and passed is not None:
        text = f"{text} {'But' if row is None else 'Smaller, but'} {_too_few_seeds(passed)}"
    return Verdict(row=row, text=text)


def _doubt(
    rows: Sequence[Confirmed], sequences: int, constant: float, margin: float, finished: bool
) -> str | None:
    """Return why no comparison of this study can carry a recommendation; None where they can."""
    reference = next((row for row in rows if row.trial == row.comparator), None)
    if not finished:
        return "the study has not ended. Go on with --resume."
    if reference is None or not _compared(rows):
        return _nothing(rows)
    if len(reference.seeds) < CONFIRM_SEEDS:
        return _too_few_seeds(reference)
    few = too_few_sequences(sequences, margin, reference.metric)
    if few is not None:
        return f"{few}, in a new study."
    if not _has_learnt(reference, constant):
        low, high = reference.interval
        return (
            f"{reference.trial} has learnt nothing that the test split shows: {reference.metric} "
            f"{reference.value:.3g} [{low:.3g}, {high:.3g}], and one answer for all gives "
            f"{constant:.3g}. Train longer (--max-steps, --learning-rate) or check the labels."
        )
    return None


def _too_few_seeds(row: Confirmed) -> str:
    return (
        f"{row.trial} completed {len(row.seeds)} of {CONFIRM_SEEDS} seeds. Go on with --resume, "
        "which tries the others again."
    )


def _compared(rows: Sequence[Confirmed]) -> bool:
    return any(row.difference is not None and row.trial != row.comparator for row in rows)


def _nothing(rows: Sequence[Confirmed]) -> str:
    return f"nothing was confirmed{f' beside {rows[0].comparator}' if rows else ''}."


def too_few_sequences(sequences: int, margin: float, metric: str) -> str | None:
    """Return that a test split can't show a loss as large as the margin; None where it can."""
    needed = sequences_needed(margin, metric)
    if sequences >= needed:
        return None
    return (
        f"{sequences} test sequences can't show a loss of {margin:g} "
        f"{METRICS[metric].unit}, which takes at least {needed}. Score more (--data, "
        "--eval-sequences) or give a larger --margin"
    )


def sequences_needed(margin: float, metric: str) -> int:
    """Return the test sequences without which a loss as large as the margin can go unseen.

    An allocation that turns a share of the answers from right to wrong turns none of n with
    probability (1 - share)^n, and its interval is then [0, 0]. With the number returned that
    happens less often than an interval of 95 % lies too high (Hanley & Lippman-Hand 1983, "If
    nothing goes wrong, is everything all right?"). A window's loss is never the same twice: of
    them, there must be enough for the interval itself to hold.

    Args:
        margin: In points of accuracy or exact match, or per cent of perplexity.
        metric: `accuracy`, `perplexity` or `exact_match`.
    """
    if not METRICS[metric].share:
        return MIN_WINDOWS
    share = margin / 100
    return 1 if share >= 1 else math.ceil(math.log((1 - LEVEL) / 2) / math.log1p(-share))


def constant_answer(task: EncodedTask) -> float:
    """Return what the best single answer to every test sequence scores.

    The accuracy of the commonest class, the share of the commonest answer of all tokens, or the
    perplexity of guessing every token that is scored by its share.
    """
    answers = task.test.targets
    if task.exact_match:
        each = np.split(answers, np.cumsum(task.test.answers)[:-1])
        return max(Counter(answer.tobytes() for answer in each).values()) / len(each)
    shares = np.unique(answers, return_counts=True)[1] / len(answers)
    if len(task.test.labels):
        return float(shares.max())
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _has_learnt(reference: Confirmed, constant: float) -> bool:
    low, high = reference.interval
    return low > constant if METRICS[reference.metric].share else high < constant


def recommend(
    rows: Sequence[Confirmed], margin: float, max_memory_bytes: int | None
) -> Confirmed | None:
    """Return the smallest allocation that fits and whose interval against the comparator stays
    above -margin.

    None if there is none, or nothing to compare with. What a search found is tested from the
    largest down, until one fails: as the order is not chosen by the test split, many finalists are
    no likelier to yield a wrong recommendation than one (fixed-sequence testing: Maurer, Hothorn &
    Lehmacher 1995, "Multiple comparisons in drug clinical trials and preclinical assays: a-priori
    ordered hypotheses"). Baselines and controls are there to compare with. Without a search, each
    configuration is a question of its own.

    Args:
        rows: What was confirmed, whatever its bytes.
        margin: In points of accuracy or exact match, or per cent of perplexity.
        max_memory_bytes: Limit on the deployed model; None for none.
    """
    passed, _ = _tested(rows, margin, max_memory_bytes)
    return passed[-1] if passed else None


def _tested(
    rows: Sequence[Confirmed], margin: float, max_memory_bytes: int | None
) -> tuple[list[Confirmed], Confirmed | None]:
    """Return what passed, from the largest down, and what ended the sequence by failing."""
    searched = any(row.role == "search" for row in rows)
    candidate = "search" if searched else "baseline"
    sequence = [
        row
        for row in sorted(rows, key=lambda row: -row.memory_bytes)
        if row.trial != row.comparator and row.role == candidate and _fits(row, max_memory_bytes)
    ]
    passed = []
    for row in sequence:
        if row.difference_interval is None:
            continue
        if row.difference_interval[0] > -margin:
            passed.append(row)
        elif searched:
            return passed, row
    return passed, None


def best_that_fits(rows: Sequence[Confirmed], max_memory_bytes: int) -> Confirmed | None:
    """Return the allocation within the limit that does best; None if none was confirmed."""
    fitting = [row for row in rows if row.difference is not None and _fits(row, max_memory_bytes)]
    return max(fitting, key=lambda row: row.difference or 0.0) if fitting else None


def _fits(row: Confirmed, max_memory_bytes: int | None) -> bool:
    return max_memory_bytes is None or row.memory_bytes <= max_memory_bytes


def recommendation_line(
    rows: Sequence[Confirmed],
    recommendation: Confirmed | None,
    margin: float,
    max_memory_bytes: int | None,
) -> str:
    """Return which allocation to use, or why none is named and which is the best that fits."""
    _, failed = _tested(rows, margin, max_memory_bytes)
    ended = ""
    if failed is not None:
        ended = f" From the largest down, {failed.trial} fails first; smaller ones are not tested."
    if recommendation is not None:
        return (
            f"Recommended: {recommendation.trial} *, the smallest allocation whose interval "
            f"against {recommendation.comparator} stays above -{margin:g}: "
            f"{format_bytes(recommendation.memory_bytes)}, target modules "
            f"{format_bytes(recommendation.target_bytes)}.{ended}"
        )
    if not _compared(rows):
        return f"No recommendation: {_nothing(rows)}"
    comparator = rows[0].comparator
    if max_memory_bytes is None:
        return f"No recommendation: {LOST} {comparator} stays above -{margin:g}.{ended}"
    line = (
        f"No recommendation: of what fits in {format_bytes(max_memory_bytes)}, {LOST} "
        f"{comparator} stays above -{margin:g}.{ended}"
    )
    best = best_that_fits(rows, max_memory_bytes)
    if best is None:
        return line
    size = format_bytes(best.memory_bytes)
    return (
        f"{line} The best that fits: {best.trial}, {size}, {difference_text(best, margin)} to "
        f"{comparator}."
    )
