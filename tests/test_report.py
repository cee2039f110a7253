"""What a report says of a study that ended, runs, failed, or recommends nothing."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import run_search
from alrq_core.files import write_json
from alrq_core.recipe import Recipe
from search_spaces.allocation import Allocation, Choice
from tests.simulated import LABELS, bytes_help, drive, make_inventory, make_study, save_study
from tests.test_confirmation import trial
from tune.flags import parse_flags
from tune.report.answer import answer
from tune.report.conditions import command
from tune.report.confirmation import Confirmed, confirmed
from tune.report.facts import Facts, read_facts
from tune.report.failing import OTHERWISE, failure_groups
from tune.report.finish import _page
from tune.report.learned import module_costs
from tune.report.model_card import evidence
from tune.report.page.compare import write_comparison
from tune.report.page.page import report_page, sections_of
from tune.report.recommendation import Verdict
from tune.report.results import write_results
from tune.report.tables import report_tables
from tune.report.ways_on import ways_on
from tune.study.config import StudyConfig
from tune.study.events import LOG_NAME, EventLog, Failed
from tune.study.state import StudyState


@pytest.fixture
def ended(tmp_path: Path) -> Facts:
    """A study that recommends the largest of what its search found."""
    study = make_study(tmp_path / "studies/s", budget=12, searcher="alrq", reference="B-FP")
    drive(study)
    folder = save_study(study)
    rows = confirmed(study.state, make_inventory(), LABELS)
    best = next(row for row in reversed(rows) if row.role == "search")
    config = StudyConfig(name="s", output_dir=str(tmp_path))
    verdict = Verdict(row=best, text=f"Recommended: {best.trial} *, whatever.")
    write_results(config, "made up", study.state, rows, verdict)
    return read_facts(folder)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path) -> None:
    (tmp_path / "studies/s").mkdir(parents=True)


def test_what_is_recommended_comes_first_with_its_evidence(ended: Facts) -> None:
    said = answer(ended)
    row, reference = ended.row(ended.recommended), ended.reference
    assert row is not None and reference is not None and row.difference_interval is not None

    assert said.headline.startswith(f"Use {row.trial}: {row.memory_bytes / 1e6:.2f} MB instead of ")
    assert f"about {abs(row.difference or 0.0):.1f} points " in said.headline
    for bound in row.difference_interval:
        assert f"{abs(bound):.1f} " in said.headline
    assert {"B-FP", "t...", "B-FP+"} <= {name for name, _ in said.names}
    evidence = " ".join(said.points)
    assert f"Over {len(row.seeds)} fresh seeds and 40 test sequences" in evidence
    assert said.ways_on == ()
    assert ended.runner_up is not None and ended.runner_up.allocation != row.allocation


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
def test_an_interval_that_rounds_to_the_margin_has_more_digits(ended: Facts, metric: str) -> None:
    rows = [
        replace(row, metric=metric, difference=-1.0, difference_interval=(-1.966, -0.04))
        if row.trial == ended.recommended
        else row
        for row in ended.rows
    ]
    better = "higher" if metric == "perplexity" else "lower"
    said = answer(replace(ended, rows=rows)).headline
    assert re.search(
        rf"\(0\.04 to 1\.97 (points|%) {better} at 95 % confidence\); the margin", said
    )


def test_the_card_of_an_export_has_what_the_study_measured(ended: Facts, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlibrary_name: peft\n---\n\n# Title\n")
    assert ended.recommended is not None
    found, row = evidence(ended, ended.recommended), ended.row(ended.recommended)
    assert found is not None and row is not None
    found.add_to(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    [result] = card.data.eval_results

    assert card.data.library_name == "peft" and card.data.pipeline_tag == "text-classification"
    assert (result.metric_type, result.dataset_split) == ("accuracy", "test")
    assert result.metric_value == pytest.approx(row.value, abs=1e-4)
    assert "# Title" in card.text and answer(ended).headline in card.text
    assert "![" in card.text and (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert evidence(ended, "t999") is None


def test_more_confirmed_runs_make_a_recommendation_old(ended: Facts) -> None:
    content = json.loads((ended.folder / "confirmation.json").read_text())
    content["confirmed"][0]["seeds"].pop()
    write_json(ended.folder / "confirmation.json", content)
    said = answer(read_facts(ended.folder))

    assert said.headline == "The study has not ended: what follows may change."


@pytest.mark.parametrize("reports", [0, 1, 5, 15, 30])
def test_a_running_study_says_what_there_is(tmp_path: Path, reports: int) -> None:
    study = make_study(tmp_path / "studies/s", budget=12, searcher="alrq", reference="B-FP")
    drive(study, reports=reports)
    found = read_facts(save_study(study))
    said = answer(found)

    assert found.recommended is None
    assert "not ended" in " ".join(said.points)
    assert bool(report_tables(found)) == bool(found.state.trials)


def test_tables_have_all_trials_and_matrices(ended: Facts) -> None:
    tables = {table.name: table for table in report_tables(ended)}

    assert len(tables["trials"].rows) == len(ended.state.trials)
    assert [row[0] for row in tables["confirmed"].rows] == [row.trial for row in ended.rows]
    assert [row[0] for row in tables["modules"].rows] == list(ended.inventory.names)
    for table in tables.values():
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_a_folder_without_a_study_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_search.main(["--report", str(tmp_path)]) == 2
    assert "`--report` must be the folder of a study" in capsys.readouterr().err
    assert run_search.main(["--report", str(tmp_path), "--budget", "3"]) == 2
    assert "`--report` must stand alone" in capsys.readouterr().err
    assert run_search.main(["--compare", str(tmp_path)]) == 2
    assert "`--compare` must name 2 to 6 studies, got 1" in capsys.readouterr().err


def test_an_older_study_can_be_looked_at(ended: Facts) -> None:
    path = ended.folder / "study.json"
    write_json(path, json.loads(path.read_text()) | {"version": 7})
    assert run_search.main(["--report", str(ended.folder)]) == 0
    assert (ended.folder / "report.html").is_file()
    assert (ended.folder / "figures/differences.png").read_bytes().startswith(b"\x89PNG")


def row(name: str, size: int, difference: float, half: float, role: str = "search") -> Confirmed:
    inventory = make_inventory()
    allocation = Allocation(dict.fromkeys(inventory.names, Choice(3, 4)))
    state = StudyState(inventory.names)
    state.add(trial("x", "search", "alrq", 0, allocation))
    made = Confirmed(
        **{field: None for field in Confirmed.__dataclass_fields__}  # type: ignore[arg-type]
    )
    return replace(
        made,
        trial=name,
        role=role,  # type: ignore[arg-type]
        memory_bytes=size,
        metric="accuracy",
        comparator="B-FP",
        difference=difference,
        difference_interval=(difference - half, difference + half),
    )


REFERENCE = row("B-FP", 46_000_000, 0.0, 0.0, "baseline")


def test_numbers_that_are_none_leave_the_page_whole(tmp_path: Path) -> None:
    """One sequence has no standard error, and a perplexity may be infinite."""
    study = make_study(tmp_path / "studies/s", budget=6)
    drive(study)
    folder = save_study(study)
    log = folder / "events.jsonl"
    text = log.read_text("utf-8").replace('"loss_standard_error":0.01', '"loss_standard_error":NaN')
    log.write_text(text, encoding="utf-8")
    facts = read_facts(folder)
    page = report_page(facts, sections_of(facts))
    data = page.partition('id="data">')[2].partition("</script>")[0]

    assert "NaN" not in data and json.loads(data)["figures"]["search-front"]


def test_what_takes_the_place_of_b_fp_is_called_so(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies/s", budget=12, searcher="alrq", reference="B-Q4")
    drive(study)
    said = answer(read_facts(save_study(study, comparator="B-Q4", reference="B-Q4")))
    text = str(said)

    assert "4-bit LoRA (B-Q4)" in text and "16-bit LoRA" not in text
    assert "B-Q4+" in dict(said.names)


@pytest.mark.parametrize("space", ["B-FP", "B-Ada", "matrix"])
def test_fixed_spaces_have_reports(tmp_path: Path, space: str) -> None:
    study = make_study(tmp_path / "studies/s", space=space)
    drive(study)
    found = read_facts(save_study(study, space=space))

    assert report_page(found, sections_of(found)) and report_tables(found)
    assert [type(event).__name__ for event in EventLog(found.folder / LOG_NAME).read()].count(
        "Planned"
    ) == 1


def test_the_command_of_a_report_begins_the_same_study(tmp_path: Path) -> None:
    (tmp_path / "my data").mkdir()
    study = make_study(tmp_path / "studies/s", budget=2)
    flags = {
        "searcher": "tpe",
        "scheduler": "none",
        "bits": (2, 3),
        "reference": "none",
        "task": "custom",
        "data": str(tmp_path / "my data"),
        "text_column": "the text",
        "max_memory_bytes": 9_000_000,
        "recipe": Recipe(max_steps=7, learning_rate=3e-4, gradient_checkpointing=True),
    }
    folder = save_study(study, **flags)
    given, _, _ = parse_flags(shlex.split(command(read_facts(folder)))[2:])
    recipe = {k: given.pop(k) for k in list(given) if k in Recipe.__dataclass_fields__}

    assert Recipe(**recipe) == flags["recipe"]
    assert {k: given[k] for k in flags if k != "recipe"} == {
        k: v for k, v in flags.items() if k != "recipe"
    }


def test_young_studies_can_be_compared(tmp_path: Path) -> None:
    folders = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        study = make_study(tmp_path / name, budget=6, searcher="alrq", reference="B-FP")
        drive(study, reports=4)
        folders.append(save_study(study))
    path = write_comparison(folders, tmp_path / "c.html")

    assert "2 studies, side by side" in path.read_text(encoding="utf-8")


def test_a_report_that_fails_costs_a_study_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Path) -> Path:
        raise KeyError("anything")

    monkeypatch.setattr("tune.report.finish.write_report", fail)
    assert _page(tmp_path) is None
    assert (
        f"the report was not written: KeyError: 'anything'. Try again with --report {tmp_path}"
        in (capsys.readouterr().err)
    )


def test_a_wide_interval_asks_for_more_sequences() -> None:
    # Half as wide is what the margin leaves, so four times as many.
    found = ways_on([row("t1", 9_000_000, -1.0, 2.0), REFERENCE], 2.0, None, 500)
    assert "at least 2,000 test sequences instead of 500" in found[0]
    assert "--margin 3.1, in a new study" in found[1]
    assert "--bits" in found[2]


def test_a_loss_beyond_the_margin_is_not_a_matter_of_sequences() -> None:
    found = ways_on([row("t1", 9_000_000, -4.0, 0.5), REFERENCE], 2.0, 10_000_000, 500)
    assert len(found) == 2
    assert "--margin 4.6" in found[0] and "10.00 MB (--max-memory)" in found[1]


def test_what_passes_or_was_not_compared_needs_no_way_on() -> None:
    assert ways_on([row("t1", 9_000_000, -1.0, 0.5), REFERENCE], 2.0, None, 500) == []
    assert ways_on([REFERENCE], 2.0, None, 500) == []
    assert ways_on([row("t1", 9_000_000, -4.0, 0.5)], 2.0, 1_000_000, 500) == []


def test_failures_are_grouped_by_reason_with_what_helps() -> None:
    inventory = make_inventory()
    state = StudyState(inventory.names)
    allocation = Allocation(dict.fromkeys(inventory.names, Choice(3, 4)))
    reasons = {
        "t001": "out of memory with micro-batches of 8, at a peak of 4.02 GB. CUDA says no",
        "t002": "out of memory with micro-batches of 4, at a peak of 3.98 GB. CUDA says no",
        "t003": "validation loss became nan at step 25",
        "t004": "KeyError: 'weight'",
    }
    for name, reason in reasons.items():
        state.add(replace(trial(name, "search", "alrq", 0, allocation), status="running"))
        state.apply(Failed(trial=name, reason=reason))
    memory, diverged, unknown = failure_groups(state)

    assert memory.trials == ("t001", "t002") and "--device-memory" in memory.advice
    assert diverged.trials == ("t003",) and "--learning-rate" in diverged.advice
    assert unknown.advice == OTHERWISE
    assert memory.line.startswith("failed: 2 (t001, t002): out of memory with micro-batches of 8")


def test_costs_of_modules_follow_what_trials_lost(tmp_path: Path) -> None:
    """Few bits of one module are made to cost much more than the table says."""
    folder = tmp_path / "studies/s"
    study = make_study(folder, budget=60, searcher="random", reference="B-FP")
    dear = make_inventory().names[0]
    drive(study, lambda t, step: bytes_help(t, step) + (t.allocation.choices[dear].bits == 2))
    found = read_facts(save_study(study))
    assert found.table is not None
    costs = module_costs(found.state, found.table)
    changes = {name: cost.learned / cost.predicted for name, cost in costs.items()}

    assert set(costs) == set(make_inventory().names)
    assert max(changes, key=lambda name: changes[name]) == dear
