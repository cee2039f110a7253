"""The tables with which a study ends."""

from rich.table import Table

from search_spaces.costs import format_bytes
from tune.report.confirmation import Confirmed
from tune.report.metrics import METRICS, digits_beside


def closing_table(rows: list[Confirmed], recommendation: Confirmed | None, margin: float) -> Table:
    """Return the confirmed allocations, from the smallest to the largest.

    Accuracy and macro F1, exact match, or perplexity with its context and stride in the title.
    """
    metric = METRICS[rows[0].metric]
    table = Table(title=_title(rows), title_justify="left")
    # Headers of two lines keep the table within 120 columns.
    for column in (
        "allocation",
        "avg\nbits",
        "avg\nrank",
        "memory",
        "targets",
        "val\nloss",
        metric.title.replace(" ", "\n", 1),
        *["macro\nF1 (%)"] * (rows[0].metric == "accuracy"),
        f"to {rows[0].comparator} ({metric.unit})",
    ):
        table.add_column(column, justify="left" if column == "allocation" else "right")
    for row in rows:
        chosen = recommendation is not None and row.trial == recommendation.trial
        table.add_row(
            row.trial + ("°" if row.started else "") + (" *" if chosen else ""),
            f"{row.average_bits:.2f}",
            f"{row.average_rank:.1f}",
            format_bytes(row.memory_bytes),
            format_bytes(row.target_bytes),
            f"{row.validation_loss:.4f}",
            *_with_intervals(row),
            difference_text(row, margin),
        )
    return table


def cost_table(rows: list[Confirmed]) -> Table:
    """Return what training each confirmed allocation took."""
    table = Table(title="Training, mean of the seeds", title_justify="left")
    for column in ("allocation", "trainable parameters", "seconds", "peak memory of the process"):
        table.add_column(column, justify="left" if column == "allocation" else "right")
    for row in rows:
        trained = "-" if row.trainable_parameters is None else f"{row.trainable_parameters:,}"
        peak = format_bytes(row.peak_memory_bytes)
        table.add_row(row.trial, trained, f"{row.train_seconds:.1f}", peak)
    return table


def _title(rows: list[Confirmed]) -> str:
    row = rows[0]
    protocol = ""
    if row.context_tokens is not None:
        protocol = f", context {row.context_tokens}, stride {row.stride_tokens}"
    started = "; °: started from the reference" if any(row.started for row in rows) else ""
    return f"Confirmed on the test split{protocol}, fresh seeds (95 % intervals){started}"


def _with_intervals(row: Confirmed) -> list[str]:
    """Return the metric with its interval, and with accuracy macro F1."""
    metric = METRICS[row.metric]
    value, low, high = (metric.number(one) for one in (row.value, *row.interval))
    told = [f"{value} [{low}, {high}]"]
    if row.metric == "accuracy":
        told.append("-" if row.f1 is None else f"{100 * row.f1:.1f}")
    return told


def difference_text(row: Confirmed, margin: float) -> str:
    """Return a difference to the comparator with its interval; a dash where there is none."""
    if row.trial == row.comparator or row.difference is None or row.difference_interval is None:
        return "-"
    low, high = row.difference_interval
    n = digits_beside(row.difference_interval, margin)
    return f"{row.difference:+.{n}f} [{low:+.{n}f}, {high:+.{n}f}]"
