"""The questions that docs ask of Parquet files, on a study that was run."""

import re
from pathlib import Path

import polars
import pytest

from tests.simulated import drive, make_inventory, make_study
from tune.report.results import write_study_tables

DOCS = Path(__file__).parents[1] / "docs/results.md"


def test_the_questions_of_the_docs_have_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results/studies/NAME"
    folder.mkdir(parents=True)
    study = make_study(folder, budget=12, searcher="alrq", reference="B-FP")
    drive(study)
    write_study_tables(folder, study.state, make_inventory(), {})
    monkeypatch.chdir(tmp_path)
    found = re.search(r"<!-- queries -->\n```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert found is not None
    exec(compile(found.group(1), "docs/results.md", "exec"), {})
    said = capsys.readouterr().out
    rows = polars.read_parquet(folder / "trials.parquet").filter(role="search", rung=0)
    best = rows.sort("divergence")["trial"][0]

    assert best in said and "megabytes" in said
    assert "wrong" in said and "sequence" in said
    for role in ("baseline", "confirm", "control", "reference", "search"):
        assert role in said
