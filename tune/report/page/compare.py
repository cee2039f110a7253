"""Writes a page that shows several studies on the same axes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tune.report.answer import answer
from tune.report.facts import Facts, read_facts
from tune.report.figures.compared import STUDY_COLOURS, alike, compared_figures
from tune.report.page.page import page, write_page
from tune.report.tables import Table, confirmed_table

# In what studies may differ without a word.
UNTOLD = ("name", "output_dir", "comparator", "device_memory_bytes", "held_bytes")


def write_comparison(folders: Sequence[Path], path: Path = Path("comparison.html")) -> Path:
    """Write a page that compares studies; return its path.

    Raises:
        ValueError: Too few, too many, or of different metrics; no studies.
    """
    if not 2 <= len(folders) <= len(STUDY_COLOURS):
        raise ValueError(
            f"`--compare` must name 2 to {len(STUDY_COLOURS)} studies, got {len(folders)}. More "
            "lines than that nobody tells apart; for one, use --report."
        )
    studies = [read_facts(folder) for folder in folders]
    names = [study.config.name for study in studies]
    if len(set(names)) < len(names):
        raise ValueError(
            f"`--compare` must name studies of different names, got {', '.join(names)}. "
            "Give each once."
        )
    metrics = {row.metric: study.config.name for study in studies for row in study.rows}
    if len(metrics) > 1:
        told = ", ".join(f"{metric} of {name}" for metric, name in metrics.items())
        raise ValueError(
            f"`--compare` must name studies with one metric, got {told}. They have no axis in "
            "common; compare those with the same."
        )
    figures = compared_figures(studies)
    made = page(
        "compare.html.jinja",
        figures,
        [asdict(table) for table in [_table(studies)] if table.rows],
        studies=[(study, answer(study)) for study in studies],
        differing=_differing(studies),
        alike=alike(studies),
    )
    return write_page(path, made)


def _table(studies: Sequence[Facts]) -> Table:
    tables = {study.config.name: confirmed_table(study) for study in studies if study.rows}
    columns = next((table.columns for table in tables.values()), ())
    rows = [[name, *row] for name, table in tables.items() for row in table.rows]
    title = "Confirmed on the test split"
    return Table(name="compared", title=title, columns=("study", *columns), rows=rows)


def _differing(studies: Sequence[Facts]) -> Mapping[str, list[str]]:
    """Return the flags that are not the same in all studies, with the value of each."""
    flags: list[dict[str, Any]] = []
    for study in studies:
        content = study.config.to_json()
        flags.append(content | content.pop("recipe"))
    return {
        name: [str(one[name]) for one in flags]
        for name in flags[0]
        if name not in UNTOLD and len({str(one[name]) for one in flags}) > 1
    }
