"""Writes what a study found: tables, the recommendation, the report with its figures."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from alrq_core.files import write_json
from tune.mistakes import said
from tune.report.confirmation import Confirmed, confirmed
from tune.report.controls import agreements, comparisons, evidence_json, evidence_lines
from tune.report.mcnemar import write_mcnemar
from tune.report.page.page import write_report
from tune.report.recommendation import LOST, Verdict, constant_answer, judge
from tune.report.results import write_results, write_study_tables
from tune.report.ways_on import ways_on
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
        ways_on: What would lead to a recommendation, where there is none.
        page: The report; None where it could not be written.
    """

    state: StudyState
    confirmed: list[Confirmed]
    verdict: Verdict
    finished: bool
    halted: str | None
    files: list[Path]
    skipped: list[str]
    evidence: list[str]
    ways_on: list[str]
    page: Path | None

    @property
    def line(self) -> str:
        """What ends the lines of `--json`, in the form of events."""
        row = self.verdict.row
        return json.dumps(
            {
                "event": "ended",
                "finished": self.finished,
                "recommendation": None if row is None else row.trial,
                "text": self.verdict.text,
                "ways_on": self.ways_on,
                "report": None if self.page is None else str(self.page),
                "files": [str(path) for path in self.files],
            }
        )


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
    sequences, limit = len(prepared.task.test), config.max_memory_bytes
    asked = verdict.row is None and LOST in verdict.text
    ways = ways_on(rows, config.margin, limit, sequences) if asked else []
    write_study_tables(config.folder, state, prepared.inventory, end.expected)
    write_mcnemar(config.folder, state)
    table = known_table(config.folder, state)
    found = compared_finalist(state, end.expected)
    ordered, compared = agreements(state, table), comparisons(state, rows, found, comparator)
    write_json(config.folder / "evidence.json", evidence_json(ordered, compared))
    files, skipped = write_results(config, prepared.task.splits, state, rows, verdict)
    page = _page(config.folder)
    return StudyResult(
        state=state,
        confirmed=rows,
        verdict=verdict,
        finished=end.finished,
        halted=end.halted,
        files=files if page is None else [*files, page],
        skipped=skipped,
        evidence=evidence_lines(ordered, compared),
        ways_on=ways,
        page=page,
    )


def _page(folder: Path) -> Path | None:
    """Write the report; say why where that fails, since the study is over all the same."""
    try:
        return write_report(folder)
    except Exception as error:
        print(
            f"the report was not written: {said(error)}. Try again with --report {folder}",
            file=sys.stderr,
        )
        return None
