"""Writes all result files of a study from its state, at any time."""

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
from tune.report.summary import RESULTS_VERSION, Entry, read_results, write_summary
from tune.study.config import StudyConfig
from tune.study.state import StudyState, TrialState


def write_study_tables(
    folder: Path, state: StudyState, inventory: Inventory, expected: Mapping[str, float]
) -> None:
    """Write `trials.parquet` (a row a report) and `front.json` into the study's folder.

    The latter has the front by the objectives observed, and by those that the searcher's model
    expects, of which finalists are chosen; each trial with the report that it is judged by.

    Args:
        folder: Of the study.
        state: All trials.
        inventory: The model's modules.
        expected: Trial id to the objective that the model expects; empty without a model.
    """
    rows = [_report_row(trial, rung, inventory) for trial, rung in _reports(state)]
    if rows:
        with replaced(folder / "trials.parquet") as partial:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), partial)
    content: dict[str, Any] = {"version": RESULTS_VERSION}
    for name, trials in (("front", state.front()), ("expected_front", state.front(expected))):
        content[name] = [
            _front_row(trial, inventory) | {"expected_objective": expected.get(trial.id)}
            for trial in trials
        ]
    write_json(folder / "front.json", content)


def write_results(
    config: StudyConfig,
    splits: str,
    state: StudyState,
    rows: list[Confirmed],
    verdict: Verdict,
) -> tuple[list[Path], list[str]]:
    """Write the files of `results/`; return this study's, and in words which others were skipped.

    Each fixed configuration gets a file of its own, as does the recommendation of a search; one
    that this study made before and that no longer holds is removed.
    """
    folder, recommendation = Path(config.output_dir), verdict.row
    before, _ = read_results(folder)
    written = []
    for experiment, row in _experiments(config, rows, recommendation):
        path = _file(config, experiment, before)
        content = {
            "version": RESULTS_VERSION,
            "experiment": experiment,
            "task": config.task,
            "model": config.model,
            "study": config.name,
            "seed": config.seed,
            "max_memory_bytes": config.max_memory_bytes,
            "splits": splits,
            "recipe": asdict(config.recipe),
            "recommended": recommendation is not None and row.trial == recommendation.trial,
            **row.to_json(),
        }
        write_json(path, content)
        written.append(path)
    former = _file(config, config.space, before)
    if former not in written and before.get(former, {}).get("study") == config.name:
        former.unlink()
    _write_confirmation(config, state, rows, verdict)
    entries, skipped = read_results(folder)
    write_summary(folder, list(entries.values()))
    return written, skipped


def _write_confirmation(
    config: StudyConfig, state: StudyState, rows: list[Confirmed], verdict: Verdict
) -> None:
    """Write what was confirmed, and what follows from it, into the study's folder."""
    write_json(
        config.folder / "confirmation.json",
        {
            "version": RESULTS_VERSION,
            "margin": config.margin,
            "max_memory_bytes": config.max_memory_bytes,
            "recommendation": verdict.row.trial if verdict.row else None,
            "reason": verdict.text,
            "confirmed": [row.to_json() for row in rows],
            "failed": [
                {"trial": trial.id, "reason": trial.reason} for trial in state.with_status("failed")
            ],
        },
    )


def _experiments(
    config: StudyConfig, rows: list[Confirmed], recommendation: Confirmed | None
) -> list[tuple[str, Confirmed]]:
    found = [(row.trial, row) for row in rows if row.trial in FIXED]
    if recommendation is None or config.space in FIXED:
        return found
    return [*found, (config.space, recommendation)]


def _file(config: StudyConfig, experiment: str, entries: Mapping[Path, Entry]) -> Path:
    """Return where a result goes: never over one of another study, or a file that isn't ours.

    The short name is for the default model and seed without a limit, so that it always means these.
    """
    folder, stem = Path(config.output_dir), f"results_{experiment}_{config.task}"
    short = folder / f"{stem}.json"
    usual = (config.model, config.seed) == (StudyConfig.model, StudyConfig.seed)
    ours = not short.exists() or entries.get(short, {}).get("study") == config.name
    if usual and config.max_memory_bytes is None and ours:
        return short
    return folder / f"{stem}_{config.name}.json"


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
    assert trial.judged is not None
    return {
        **_identity(trial, inventory),
        **trial.judged.to_json(),
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
