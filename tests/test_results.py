"""The result files and the closing table, from a simulated study."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
from rich.console import Console

from alrq_core.files import write_json
from alrq_core.recipe import Recipe
from search_spaces.allocation import from_json
from tests.simulated import LABELS, drive, make_inventory, make_study
from tune.report.confirmation import Confirmed, confirmed
from tune.report.recommendation import Verdict, recommend, recommendation_line
from tune.report.results import write_results, write_study_tables
from tune.report.summary import SUMMARY_COLUMNS
from tune.report.table import closing_table, difference_text
from tune.study.config import StudyConfig
from tune.study.state import StudyState

INVENTORY = make_inventory()
NONE = Verdict(row=None, text="No recommendation: whatever.")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> StudyState:
    study = make_study(tmp_path_factory.mktemp("study"), budget=12)
    drive(study)
    return study.state


def config(folder: Path, **changes: object) -> StudyConfig:
    made = StudyConfig(output_dir=str(folder), name="s", recipe=Recipe(max_steps=8))
    made = replace(made, **changes)  # type: ignore[arg-type]
    made.folder.mkdir(parents=True, exist_ok=True)
    return made


def test_parquet_has_a_row_a_report(tmp_path: Path, state: StudyState) -> None:
    write_study_tables(tmp_path, state, INVENTORY, {})
    rows = pyarrow.parquet.read_table(tmp_path / "trials.parquet").to_pylist()

    assert len(rows) == sum(len(trial.reports) for trial in state.trials.values())
    for row in rows:
        trial = state.trials[row["trial"]]
        assert row["loss"] == trial.reports[row["rung"]].loss
        assert row["memory_bytes"] == trial.memory_bytes
        assert row["status"] == trial.status


def test_front_file_holds_allocations_that_can_be_read(tmp_path: Path, state: StudyState) -> None:
    write_study_tables(tmp_path, state, INVENTORY, {})
    rows = json.loads((tmp_path / "front.json").read_text())["front"]

    assert [row["trial"] for row in rows] == [trial.id for trial in state.front()]
    for row in rows:
        assert from_json(row["modules"]) == state.trials[row["trial"]].allocation


def test_front_file_tells_expected_losses_from_observed(tmp_path: Path, state: StudyState) -> None:
    best = min(state.front(), key=lambda trial: trial.reports[-1].loss)
    write_study_tables(tmp_path, state, INVENTORY, {best.id: 99.0})
    content = json.loads((tmp_path / "front.json").read_text())

    assert best.id in {row["trial"] for row in content["front"]}
    assert best.id not in {row["trial"] for row in content["expected_front"]}
    losses = {row["trial"]: row["expected_objective"] for row in content["front"]}
    assert losses.pop(best.id) == 99.0
    assert set(losses.values()) <= {None}


def test_a_search_writes_its_baselines_and_its_recommendation(
    tmp_path: Path, state: StudyState
) -> None:
    study = config(tmp_path)
    rows = confirmed(state, INVENTORY, LABELS)
    chosen = recommend(rows, 100.0, None)
    assert chosen is not None
    write_results(study, "made up", state, rows, Verdict(row=chosen, text="because"))
    names = {path.name for path in tmp_path.glob("results_*.json")}
    best = json.loads((tmp_path / "results_joint_rotten_tomatoes.json").read_text())

    assert names == {
        "results_B-FP_rotten_tomatoes.json",
        "results_B-Q4_rotten_tomatoes.json",
        "results_joint_rotten_tomatoes.json",
    }
    assert best["trial"] == chosen.trial
    assert best["recommended"] is True
    assert best["splits"] == "made up"
    assert best["recipe"]["max_steps"] == 8
    everything = json.loads((tmp_path / "all_results.json").read_text())["results"]
    with (tmp_path / "experiment_summary.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(everything) == len(lines) == 3
    assert tuple(lines[0]) == SUMMARY_COLUMNS
    assert {line["experiment"] for line in lines} == {"B-FP", "B-Q4", "joint"}
    for line in lines:
        assert float(line["f1_low"]) <= float(line["f1"]) <= float(line["f1_high"])
        assert line["context_tokens"] == line["stride_tokens"] == ""
    kept = json.loads((study.folder / "confirmation.json").read_text())
    assert (kept["recommendation"], kept["reason"]) == (chosen.trial, "because")
    assert len(kept["confirmed"]) == len(rows)


def test_the_protocol_of_language_modelling_stands_in_every_result(
    tmp_path: Path, state: StudyState
) -> None:
    rows = [language_modelling(row) for row in confirmed(state, INVENTORY, LABELS)]
    write_results(config(tmp_path, task="wikitext2"), "made up", state, rows, NONE)
    result = json.loads((tmp_path / "results_B-FP_wikitext2.json").read_text())
    with (tmp_path / "experiment_summary.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))

    assert (result["context_tokens"], result["stride_tokens"]) == (128, 128)
    assert {(line["context_tokens"], line["stride_tokens"]) for line in lines} == {("128", "128")}
    assert {line["f1_low"] for line in lines} == {""}


def test_a_result_file_without_an_interval_of_f1_is_summarised(
    tmp_path: Path, state: StudyState
) -> None:
    rows = confirmed(state, INVENTORY, LABELS)
    write_results(config(tmp_path), "made up", state, rows, NONE)
    path = tmp_path / "results_B-Q4_rotten_tomatoes.json"
    content = json.loads(path.read_text())
    for name in ("f1_interval", "context_tokens", "stride_tokens"):
        del content[name]
    path.rename(tmp_path / "results_B-Q4_other.json").write_text(json.dumps(content))
    write_results(config(tmp_path), "made up", state, rows, NONE)
    with (tmp_path / "experiment_summary.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))

    assert [line["f1_low"] == "" for line in lines].count(True) == 1


def results(folder: Path) -> dict[str, str]:
    """File name to study, as `all_results.json` has them too."""
    files = {path.name: json.loads(path.read_text()) for path in folder.glob("results_*.json")}
    everything = json.loads((folder / "all_results.json").read_text())["results"]
    assert sorted(everything, key=str) == sorted(files.values(), key=str)
    return {name: content["study"] for name, content in files.items()}


def test_no_study_overwrites_the_results_of_another(tmp_path: Path, state: StudyState) -> None:
    """Of another model, seed or limit, or of the same flags once more."""
    rows = [row for row in confirmed(state, INVENTORY, LABELS) if row.trial == "B-FP"]
    others: dict[str, dict[str, object]] = {
        "m": {"model": "smollm2"},
        "s": {"seed": 1},
        "l": {"max_memory_bytes": 10**9},
        "first": {},
        "second": {},
    }
    for name, changes in others.items():
        write_results(config(tmp_path, name=name, **changes), "made up", state, rows, NONE)
    expected = {f"results_B-FP_rotten_tomatoes_{name}.json": name for name in "msl"}
    expected |= {
        "results_B-FP_rotten_tomatoes.json": "first",
        "results_B-FP_rotten_tomatoes_second.json": "second",
    }
    assert results(tmp_path) == expected

    for name, changes in reversed(others.items()):
        write_results(config(tmp_path, name=name, **changes), "made up", state, rows, NONE)
    assert results(tmp_path) == expected
    with (tmp_path / "experiment_summary.csv").open(encoding="utf-8") as file:
        lines = {line["study"]: line for line in csv.DictReader(file)}
    assert lines.keys() == others.keys()
    assert lines["m"]["model"] == "smollm2"
    assert (lines["s"]["seed"], lines["l"]["max_memory_bytes"]) == ("1", "1000000000")


def test_a_recommendation_that_no_longer_holds_is_removed(
    tmp_path: Path, state: StudyState
) -> None:
    rows = confirmed(state, INVENTORY, LABELS)
    chosen = Verdict(row=rows[0], text="for now")
    write_results(config(tmp_path, name="other"), "made up", state, rows, chosen)
    write_results(config(tmp_path), "made up", state, rows, chosen)
    assert "results_joint_rotten_tomatoes_s.json" in results(tmp_path)
    write_results(config(tmp_path), "made up", state, rows, NONE)

    assert "results_joint_rotten_tomatoes_s.json" not in results(tmp_path)
    assert results(tmp_path)["results_joint_rotten_tomatoes.json"] == "other"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", "7", "{}", '{"version": 99}', '{"version": 1, "study": "x"}', "\udcff", None],
)
def test_what_is_no_result_is_named_and_left_alone(
    tmp_path: Path, state: StudyState, content: str | None
) -> None:
    rows = confirmed(state, INVENTORY, LABELS)
    foreign = tmp_path / "results_of_mine.json"
    short = tmp_path / "results_B-FP_rotten_tomatoes.json"
    for path in (foreign, short):
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content.encode("utf-8", "surrogateescape"))
    written, skipped = write_results(config(tmp_path), "made up", state, rows, NONE)

    assert {path.name for path in written} == {
        "results_B-FP_rotten_tomatoes_s.json",
        "results_B-Q4_rotten_tomatoes.json",
    }
    assert [line.split(": no result of this release (")[0] for line in skipped] == [
        str(short),
        str(foreign),
    ]
    everything = json.loads((tmp_path / "all_results.json").read_text())["results"]
    assert {entry["study"] for entry in everything} == {"s"}
    assert content is None or short.read_bytes() == foreign.read_bytes()


def test_a_fixed_space_gets_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    study = make_study(tmp_path / "study", space="Joint-3")
    drive(study)
    rows = confirmed(study.state, INVENTORY, LABELS)
    write_results(config(tmp_path, space="Joint-3"), "made up", study.state, rows, NONE)

    assert (tmp_path / "results_Joint-3_rotten_tomatoes.json").is_file()
    assert len(list(tmp_path.glob("results_*.json"))) == 1


def test_nothing_confirmed_still_writes_files(tmp_path: Path, state: StudyState) -> None:
    study = config(tmp_path)
    write_results(study, "made up", StudyState(INVENTORY.names), [], NONE)
    write_study_tables(study.folder, StudyState(INVENTORY.names), INVENTORY, {})

    assert json.loads((study.folder / "front.json").read_text())["front"] == []
    assert json.loads((tmp_path / "all_results.json").read_text())["results"] == []


def test_files_are_written_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a/b.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a/b.json", {"x": object()})

    assert json.loads((tmp_path / "a/b.json").read_text()) == {"x": 1}


def language_modelling(row: Confirmed) -> Confirmed:
    return replace(
        row,
        metric="perplexity",
        value=9.5,
        interval=(9.25, 9.75),
        f1=None,
        f1_interval=None,
        context_tokens=128,
        stride_tokens=128,
    )


def text_of(rows: list[Confirmed], margin: float) -> str:
    output = io.StringIO()
    Console(width=120, file=output).print(
        closing_table(rows, recommend(rows, margin, None), margin)
    )
    return output.getvalue()


def test_the_table_marks_the_recommendation(state: StudyState) -> None:
    rows = confirmed(state, INVENTORY, LABELS)
    chosen = recommend(rows, 100.0, None)
    assert chosen is not None
    text = text_of(rows, 100.0)

    assert f"{chosen.trial} *" in text
    for row in rows:
        assert row.trial in text
    assert "to B-FP (points)" in text
    assert f"Recommended: {chosen.trial} *" in recommendation_line(rows, chosen, 100.0, None)


@pytest.mark.parametrize(
    ("low", "told"),
    [
        (-1.966, "-1.00 [-1.97, +0.04]"),
        (-1.9996, "-1.0000 [-1.9996, +0.0400]"),
        (-2.03, "-1.00 [-2.03, +0.04]"),
        (-1.9, "-1.0 [-1.9, +0.0]"),
        (-2.0, "-1.0 [-2.0, +0.0]"),
    ],
)
def test_an_interval_that_rounds_to_the_margin_is_told_with_more_digits(
    state: StudyState, low: float, told: str
) -> None:
    row = confirmed(state, INVENTORY, LABELS)[0]
    assert row.trial != row.comparator
    row = replace(row, difference=-1.0, difference_interval=(low, 0.04))
    assert difference_text(row, 2.0) == told


def test_exact_match_is_a_share_without_f1(state: StudyState) -> None:
    rows = confirmed(state, INVENTORY, LABELS)
    shares = [replace(row, metric="exact_match", f1=None, f1_interval=None) for row in rows]
    text = text_of(shares, 100.0)

    assert "match (%)" in text and "F1" not in text
    assert f"{100 * rows[0].value:.1f} [{100 * rows[0].interval[0]:.1f}" in text
    assert "to B-FP (points)" in text


def test_what_takes_the_place_of_b_fp_is_named(state: StudyState) -> None:
    rows = confirmed(state, INVENTORY, LABELS, "B-Q4")
    chosen = recommend(rows, 100.0, None)
    assert chosen is not None

    assert {row.trial for row in rows if row.difference == 0.0} >= {"B-Q4"}
    assert "to B-Q4 (points)" in text_of(rows, 100.0)
    assert "interval against B-Q4 stays" in recommendation_line(rows, chosen, 100.0, None)
    assert "no interval against B-Q4 stays above" in recommendation_line(rows, None, -1.0, None)


def test_the_table_shows_a_row_in_one_line(state: StudyState) -> None:
    row = replace(
        confirmed(state, INVENTORY, LABELS)[0],
        trial="uniform-t001",
        value=0.8154,
        interval=(0.797, 0.831),
        f1=0.8123,
        f1_interval=(0.795, 0.829),
        difference=-1.71,
        difference_interval=(-3.02, -0.41),
        memory_bytes=46_090_000,
        target_bytes=21_900_000,
    )
    text = text_of([row], 2.0)

    assert "macro" in text
    assert "81.5 [79.7, 83.1] │   81.2 │ -1.7 [-3.0, -0.4]" in text
    assert "context" not in text


def test_the_table_of_language_modelling_says_context_and_stride(state: StudyState) -> None:
    rows = [language_modelling(row) for row in confirmed(state, INVENTORY, LABELS)]
    text = text_of(rows, 2.0)

    assert "Confirmed on the test split, context 128, stride 128, fresh seeds" in text
    assert "9.50 [9.25, 9.75]" in text
    assert "macro F1" not in text


def test_no_recommendation_is_said_with_its_reason(state: StudyState) -> None:
    rows = confirmed(state, INVENTORY, LABELS)

    assert "no interval against B-FP stays above -2" in recommendation_line(rows, None, 2.0, None)
    assert "nothing was confirmed" in recommendation_line([], None, 2.0, None)


def test_under_a_limit_the_best_that_fits_is_named(state: StudyState) -> None:
    small, large = (
        replace(
            confirmed(state, INVENTORY, LABELS)[0],
            trial=trial,
            role="search",
            memory_bytes=size,
            difference=difference,
            difference_interval=(difference - 1, difference + 1),
        )
        for trial, size, difference in (("t001", 10_000_000, -4.0), ("B-Q4", 30_000_000, 0.0))
    )

    assert recommendation_line([small, large], None, 2.0, 12_000_000) == (
        "No recommendation: of what fits in 12.00 MB, no interval against B-FP stays above -2. "
        "From the largest down, t001 fails first; smaller ones are not tested. "
        "The best that fits: t001, 10.00 MB, -4.0 [-5.0, -3.0] to B-FP."
    )
    nothing = recommendation_line([large], None, 2.0, 12_000_000)
    assert nothing.endswith("no interval against B-FP stays above -2.")
