"""The table and the sentence with which a study ends."""

from rich.table import Table

from search_spaces.costs import format_bytes
from tune.confirmation import REFERENCE, Confirmed


def closing_table(rows: list[Confirmed], recommendation: Confirmed | None) -> Table:
    """Return the confirmed allocations, from the smallest to the largest."""
    metric = rows[0].metric
    unit = "points" if metric == "accuracy" else "%"
    table = Table(
        title="Confirmed on the test split, fresh seeds (95 % intervals)", title_justify="left"
    )
    for column in (
        "allocation",
        "avg bits",
        "avg rank",
        "memory",
        "targets",
        "val loss",
        f"test {metric}",
        f"to B-FP ({unit})",
    ):
        table.add_column(column, justify="left" if column == "allocation" else "right")
    for row in rows:
        chosen = recommendation is not None and row.trial == recommendation.trial
        table.add_row(
            row.trial + (" *" if chosen else ""),
            f"{row.average_bits:.2f}",
            f"{row.average_rank:.1f}",
            format_bytes(row.memory_bytes),
            format_bytes(row.target_bytes),
            f"{row.validation_loss:.4f}",
            _with_interval(row),
            _difference(row),
        )
    return table


def recommendation_line(
    rows: list[Confirmed], recommendation: Confirmed | None, margin: float
) -> str:
    """Return which allocation to use, or why none is named."""
    if recommendation is not None:
        return (
            f"Recommended: {recommendation.trial} *, the smallest allocation whose interval "
            f"against {REFERENCE} stays above -{margin:g}: "
            f"{format_bytes(recommendation.memory_bytes)}, target modules "
            f"{format_bytes(recommendation.target_bytes)}."
        )
    if not any(row.difference is not None and row.trial != REFERENCE for row in rows):
        return f"No recommendation: nothing was confirmed beside {REFERENCE}."
    return f"No recommendation: no interval against {REFERENCE} stays above -{margin:g}."


def _with_interval(row: Confirmed) -> str:
    low, high = row.interval
    if row.metric == "accuracy":
        return f"{100 * row.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{row.value:.2f} [{low:.2f}, {high:.2f}]"


def _difference(row: Confirmed) -> str:
    if row.trial == REFERENCE or row.difference is None or row.difference_interval is None:
        return "-"
    low, high = row.difference_interval
    return f"{row.difference:+.1f} [{low:+.1f}, {high:+.1f}]"
