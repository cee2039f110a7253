"""The tables of a report: rows that a page sorts and hands out as CSV."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from search_spaces.costs import average_bits, average_rank, module_bytes
from tune.report.confirmation import Confirmed
from tune.report.facts import Facts
from tune.report.figures.style import visible
from tune.report.metrics import METRICS
from tune.study.state import TrialState


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table.

    Attributes:
        name: Of its file, and of its place in the page.
        title: What it has.
        columns: Titles with units.
        rows: Numbers and texts; None for nothing.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[list[Any]]


def report_tables(facts: Facts) -> list[Table]:
    """Return all tables that have a row."""
    found = [*([confirmed_table(facts)] if facts.rows else []), _trials(facts)]
    if facts.chosen is not None:
        found += [_modules(facts, facts.chosen), *_receipts(facts, facts.chosen)]
    return [_without_empty(table) for table in found if table.rows]


def _without_empty(table: Table) -> Table:
    """Return a table without the columns that nothing stands in."""
    kept = [
        at for at in range(len(table.columns)) if any(row[at] is not None for row in table.rows)
    ]
    return replace(
        table,
        columns=tuple(table.columns[at] for at in kept),
        rows=[[row[at] for at in kept] for row in table.rows],
    )


def confirmed_table(facts: Facts) -> Table:
    """Return what was confirmed, of which there must be something, from the smallest up."""
    metric = METRICS[facts.rows[0].metric]
    return Table(
        name="confirmed",
        title="Confirmed on the test split",
        columns=(
            "allocation",
            "role",
            "MB",
            f"difference ({metric.unit})",
            "its 95 % from",
            "its 95 % to",
            metric.title,
            "95 % from",
            "95 % to",
            "average bits",
            "average rank",
            "validation loss",
            "seeds",
            "trained s",
            "peak GB",
        ),
        rows=[_confirmed_row(row, metric.scale) for row in facts.rows],
    )


def _confirmed_row(row: Confirmed, scale: int) -> list[Any]:
    low, high = row.difference_interval or (None, None)
    return _rounded(
        row.trial,
        row.role,
        row.memory_bytes / 1e6,
        row.difference,
        low,
        high,
        scale * row.value,
        scale * row.interval[0],
        scale * row.interval[1],
        row.average_bits,
        row.average_rank,
        row.validation_loss,
        len(row.seeds),
        row.train_seconds,
        row.peak_memory_bytes / 1e9,
    )


def _trials(facts: Facts) -> Table:
    return Table(
        name="trials",
        title="All trials",
        columns=(
            "trial",
            "role",
            "chosen by",
            "status",
            "MB",
            "average bits",
            "average rank",
            "step",
            "divergence",
            "validation loss",
            "trained s",
            "reason",
        ),
        rows=[_trial_row(facts, trial) for trial in facts.state.trials.values()],
    )


def _trial_row(facts: Facts, trial: TrialState) -> list[Any]:
    judged, last = trial.judged, trial.last
    return _rounded(
        trial.id,
        trial.role,
        trial.origin,
        trial.status,
        trial.memory_bytes / 1e6,
        average_bits(trial.final, facts.inventory),
        average_rank(trial.final, facts.inventory),
        last.step if last else None,
        judged.divergence if judged else None,
        last.loss if last else None,
        trial.train_seconds,
        trial.reason,
    )


def _modules(facts: Facts, row: Confirmed) -> Table:
    choices = facts.allocation(row).choices
    return Table(
        name="modules",
        title=f"Matrices of {row.trial}",
        columns=("module", "block", "part", "shape", "bits", "method", "group", "rank", "KB"),
        rows=[
            _rounded(
                target.name,
                target.block if target.block >= 0 else None,
                target.part,
                f"{target.out_features} x {target.in_features}",
                choices[target.name].bits,
                choices[target.name].method,
                choices[target.name].group_size or None,
                choices[target.name].rank,
                module_bytes(target, choices[target.name]) / 1e3,
            )
            for target in facts.inventory.modules
        ],
    )


def _receipts(facts: Facts, row: Confirmed) -> Sequence[Table]:
    """Return the receipt of the first seed: what was read back from the built model."""
    run = facts.first_run(row)
    if run is None or not (path := facts.folder / f"receipts/{run.id}.json").is_file():
        return []
    modules = json.loads(path.read_text(encoding="utf-8"))["modules"]
    rows = [
        _rounded(
            name,
            entry["module_class"].rpartition(".")[2],
            entry["bits"],
            entry["method"],
            entry["rank"],
            entry["stored_bytes"],
            f"{entry['checksum']:08x}",
        )
        for name, entry in modules.items()
    ]
    columns = ("module", "class", "bits", "method", "rank", "stored bytes", "CRC-32 of its codes")
    return [Table(name="receipt", title=f"Receipt of {run.id}", columns=columns, rows=rows)]


def _rounded(*values: Any) -> list[Any]:
    return [visible(value, 6) for value in values]
