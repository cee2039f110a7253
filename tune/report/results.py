"""Writes all result files of a study from its state, at any time."""

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from alrq_core.files import replaced, write_json
from search_spaces.costs import average_bits, average_rank, target_bytes
from search_spaces.fixed import FIXED
from search_spaces.inventory import Inventory
from tune.report.confirmation import Confirmed
from tune.report.recommendation import Verdict
from tune.study.config import StudyConfig
from tune.study.state import StudyState, TrialState

RESULTS_VERSION = 1
SUMMARY_COLUMNS = (
    "experiment",
    "task",
    "model",
    "study",
    "trial",
    "metric",
    "value",
    "interval_low",
    "interval_high",
    "f1",
    "f1_low",
    "f1_high",
    "context_tokens",
    "stride_tokens",
    "validation_loss",
    "difference_to_b_fp",
    "difference_low",
    "difference_high",
    "average_bits",
    "average_rank",
    "memory_bytes",
    "target_bytes",
    "trainable_parameters",
    "train_seconds",
    "peak_memory_bytes",
    "seeds",
    "recommended",
)


def write_study_tables(
    folder: Path, state: StudyState, inventory: Inventory, expected: Mapping[str, float]
) -> None:
    """Write `trials.parquet` (a row a report) and `front.json` into the study's folder.

    The latter has the front by the losses observed, and by those that the searcher's model
    expects, of which finalists are chosen.

    Args:
        folder: Of the study.
        state: All trials.
        inventory: The model's modules.
        expected: Trial id to the loss that the model expects; empty where there is no model.
    """
    rows = [_report_row(trial, rung, inventory) for trial, rung in _reports(state)]
    if rows:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "trials.parquet")
    content: dict[str, Any] = {"version": RESULTS_VERSION}
    for name, trials in (("front", state.front()), ("expected_front", state.front(expected))):
        content[name] = [
            _front_row(trial, inventory) | {"expected_loss": expected.get(trial.id)}
            for trial in trials
        ]
    write_json(folder / "front.json", content)


def write_results(
    config: StudyConfig,
    splits: str,
    state: StudyState,
    rows: list[Confirmed],
    verdict: Verdict,
) -> list[Path]:
    """Write the files of `results/`; return those of this study.

    Each fixed configuration gets a file of its own, as does the recommendation of a search.
    """
    folder, recommendation = Path(config.output_dir), verdict.row
    written = []
    for experiment, row in _experiments(config, rows, recommendation):
        path = folder / f"results_{experiment}_{config.task}.json"
        content = {
            "version": RESULTS_VERSION,
            "experiment": experiment,
            "task": config.task,
            "model": config.model,
            "study": config.name,
            "splits": splits,
            "recipe": asdict(config.recipe),
            "recommended": recommendation is not None and row.trial == recommendation.trial,
            **row.to_json(),
        }
        write_json(path, content)
        written.append(path)
    write_json(
        config.folder / "confirmation.json",
        {
            "version": RESULTS_VERSION,
            "margin": config.margin,
            "max_memory_bytes": config.max_memory_bytes,
            "recommendation": recommendation.trial if recommendation else None,
            "reason": verdict.text,
            "confirmed": [row.to_json() for row in rows],
            "failed": [
                {"trial": trial.id, "reason": trial.reason} for trial in state.with_status("failed")
            ],
        },
    )
    _write_overviews(folder)
    return written


def _experiments(
    config: StudyConfig, rows: list[Confirmed], recommendation: Confirmed | None
) -> list[tuple[str, Confirmed]]:
    found = [(row.trial, row) for row in rows if row.trial in FIXED]
    if recommendation is None or config.space in FIXED:
        return found
    return [*found, (config.space, recommendation)]


def _write_overviews(folder: Path) -> None:
    """Write `all_results.json` and `experiment_summary.csv` over all result files there."""
    entries = []
    for path in sorted(folder.glob("results_*_*.json")):
        entries.append(json.loads(path.read_text(encoding="utf-8")))
    write_json(folder / "all_results.json", {"version": RESULTS_VERSION, "results": entries})
    with (
        replaced(folder / "experiment_summary.csv") as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, SUMMARY_COLUMNS)
        writer.writeheader()
        writer.writerows(_summary(entry) for entry in entries)


def _summary(entry: dict[str, Any]) -> dict[str, Any]:
    low, high = entry["difference_interval"] or (None, None)
    f1_low, f1_high = entry.get("f1_interval") or (None, None)
    extra = {
        "interval_low": entry["interval"][0],
        "interval_high": entry["interval"][1],
        "f1_low": f1_low,
        "f1_high": f1_high,
        "difference_to_b_fp": entry["difference"],
        "difference_low": low,
        "difference_high": high,
        "seeds": len(entry["seeds"]),
    }
    return {column: extra.get(column, entry.get(column)) for column in SUMMARY_COLUMNS}


def _reports(state: StudyState) -> list[tuple[TrialState, int]]:
    return [(trial, rung) for trial in state.trials.values() for rung in range(len(trial.reports))]


def _report_row(trial: TrialState, rung: int, inventory: Inventory) -> dict[str, Any]:
    return {
        **_identity(trial, inventory),
        "status": trial.status,
        "rung": rung,
        **asdict(trial.reports[rung]),
    }


def _front_row(trial: TrialState, inventory: Inventory) -> dict[str, Any]:
    return {
        **_identity(trial, inventory),
        **trial.reports[-1].to_json(),
        "modules": trial.allocation.to_json(),
    }


def _identity(trial: TrialState, inventory: Inventory) -> dict[str, Any]:
    allocation = trial.final
    return {
        "trial": trial.id,
        "role": trial.role,
        "origin": trial.origin,
        "seed": trial.seed,
        "allocation": allocation.encode(),
        "average_bits": average_bits(allocation, inventory),
        "average_rank": average_rank(allocation, inventory),
        "memory_bytes": trial.memory_bytes,
        "target_bytes": target_bytes(allocation, inventory),
    }
