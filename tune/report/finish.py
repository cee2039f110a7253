"""Writes what a study found: tables, the front with its picture, the recommendation."""

from dataclasses import dataclass
from pathlib import Path

from alrq_core.files import write_json
from tune.report.confirmation import Confirmed, confirmed
from tune.report.controls import agreements, comparisons, evidence_json, evidence_lines
from tune.report.mcnemar import write_mcnemar
from tune.report.plots import draw_front
from tune.report.recommendation import Verdict, constant_answer, judge
from tune.report.results import write_results, write_study_tables
from tune.study.finalists import compared_finalist
from tune.study.prepare import Prepared
from tune.study.state import StudyState
from tune.study.study import StudyEnd, known_table


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """How a study ended.

    Attributes:
        state: All trials.
        confirmed: What was confirmed, from the smallest to the largest.
        verdict: The allocation to use, or why there is none.
        finished: Whether nothing is left to do.
        halted: The reason for which trials failed one after another, where that ended the run.
        files: The result files.
        skipped: Files among the results that are no results, in words.
        evidence: What was worth its cost, and what the search was compared to, in words.
    """

    state: StudyState
    confirmed: list[Confirmed]
    verdict: Verdict
    finished: bool
    halted: str | None
    files: list[Path]
    skipped: list[str]
    evidence: list[str]


def finish(prepared: Prepared, end: StudyEnd) -> StudyResult:
    """Write every result file that the study's state allows."""
    config, state = prepared.config, end.state
    comparator = prepared.fitting.comparator
    rows = confirmed(state, prepared.inventory, prepared.task.test.labels, comparator)
    verdict = judge(
        rows,
        sequences=len(prepared.task.test),
        constant=constant_answer(prepared.task),
        margin=config.margin,
        max_memory_bytes=config.max_memory_bytes,
        finished=end.finished,
    )
    write_study_tables(config.folder, state, prepared.inventory, end.expected)
    write_mcnemar(config.folder, state)
    table = known_table(config.folder, state)
    found = compared_finalist(state, end.expected)
    ordered, compared = agreements(state, table), comparisons(state, rows, found, comparator)
    write_json(config.folder / "evidence.json", evidence_json(ordered, compared))
    files, skipped = write_results(config, prepared.task.splits, state, rows, verdict)
    if any(trial.reports for trial in state.trials.values()):
        picture = config.folder / "front.png"
        draw_front(picture, state, rows, verdict.row, _caption(prepared, state))
        files.append(picture)
    return StudyResult(
        state=state,
        confirmed=rows,
        verdict=verdict,
        finished=end.finished,
        halted=end.halted,
        files=files,
        skipped=skipped,
        evidence=evidence_lines(ordered, compared),
    )


def _caption(prepared: Prepared, state: StudyState) -> str:
    config, recipe = prepared.config, prepared.config.recipe
    ended = sum(trial.status not in ("running", "paused") for trial in state.of_role("search"))
    searched = f"{ended} trials, {config.searcher} with {config.scheduler}; "
    return (
        f"{config.model} on {config.task}, space {config.space}: "
        f"{'' if prepared.space.fixed else searched}"
        f"{recipe.max_steps} steps of {recipe.batch_size} at learning rate "
        f"{recipe.learning_rate:g}{_started(prepared)}, at most {recipe.max_length} tokens; "
        f"{len(prepared.task.validation)} validation and {len(prepared.task.test)} test sequences"
    )


def _started(prepared: Prepared) -> str:
    if prepared.reference is None:
        return ""
    tuning = prepared.config.recipe.tuning
    return (
        f" from nothing, {tuning.max_steps} at {tuning.learning_rate:g} from {prepared.reference}"
    )
