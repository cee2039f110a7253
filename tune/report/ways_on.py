"""Says which knob would change that a study recommends nothing."""

import math
from collections.abc import Sequence

from search_spaces.costs import format_bytes
from tune.report.confirmation import Confirmed
from tune.report.metrics import METRICS, digits_beside


def ways_on(
    rows: Sequence[Confirmed], margin: float, max_memory_bytes: int | None, sequences: int
) -> list[str]:
    """Return what would let the largest candidate pass, a sentence each; nothing where it does, or
    where none was compared.

    Args:
        rows: What was confirmed.
        margin: In points of accuracy or exact match, or per cent of perplexity.
        max_memory_bytes: Limit on the deployed model; None for none.
        sequences: Of the test split.
    """
    searched = [row for row in rows if row.role == "search"]
    candidates = searched or [row for row in rows if row.role == "baseline"]
    compared = [
        row
        for row in candidates
        if row.trial != row.comparator and row.difference_interval is not None
        if max_memory_bytes is None or row.memory_bytes <= max_memory_bytes
    ]
    if not compared:
        return []
    row = max(compared, key=lambda one: one.memory_bytes)
    assert row.difference is not None and row.difference_interval is not None
    low, unit = row.difference_interval[0], METRICS[row.metric].unit
    digits = digits_beside(row.difference_interval, margin)
    if low > -margin:
        return []
    found = []
    if row.difference > -margin:
        times = ((row.difference - low) / (row.difference + margin)) ** 2
        found.append(
            f"{row.trial} is estimated within the margin ({row.difference:+.1f} {unit}), but its "
            f"interval reaches {low:+.{digits}f}. Intervals shrink with the root of what is "
            f"scored: at least {_round(times * sequences):,} test sequences instead of "
            f"{sequences:,} would do (more --data, a larger --eval-sequences), in a new study and "
            "if the difference stays."
        )
    wider = math.floor(-10 * low + 1) / 10
    found.append(
        f"A margin of {wider:g} {unit} (--margin {wider:g}, in a new study) would let {row.trial} "
        "pass. Choose it by what the task can bear, not by this result."
    )
    if max_memory_bytes is not None:
        found.append(
            f"More bytes: {format_bytes(max_memory_bytes)} (--max-memory) is what keeps "
            "allocations of more bits out."
        )
    elif searched:
        found.append("Larger allocations: leave the fewest bits out (--bits 3,4,8).")
    return found


def _round(value: float) -> int:
    """Return two digits of a number, rounded up."""
    unit: int = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit
