"""What cards could run is planned from a model's configuration alone."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import run_search
from alrq_core.memory.cores import usable_cores
from alrq_core.memory.host import CONTEXT_BYTES, PROCESS_BASELINE_BYTES, USED_PART
from tests.test_cli import small
from tune.report import cards
from tune.report.cards import cards_table
from tune.study.config import StudyConfig
from tune.study.prepare import Read, fit, read


@pytest.fixture
def outlined(bert_folder: Path, tmp_path: Path) -> Path:
    """A model's folder without its weights."""
    folder = shutil.copytree(bert_folder, tmp_path / "outlined")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture
def found(request: pytest.FixtureRequest, outlined: Path, reviews: Path) -> Read:
    columns = {"text_column": "review", "label_column": "verdict"}
    space = getattr(request, "param", "joint")
    config = StudyConfig(
        space=space, model=str(outlined), task="custom", data=str(reviews), **columns
    )
    recipe = replace(config.recipe, batch_size=8, max_length=16)
    return read(replace(config, recipe=recipe), weights=False)


def rows(found: Read) -> list[tuple[str, ...]]:
    columns = [list(column.cells) for column in cards_table(found).columns]
    return list(zip(*map(lambda cells: map(str, cells), columns), strict=True))


def test_a_large_card_runs_everything_and_a_small_one_what_fits(
    found: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = fit(found).batch.memory.peak_bytes

    def card(usable: float) -> float:
        return (usable + CONTEXT_BYTES) / USED_PART / 1e9

    monkeypatch.setattr(cards, "GIGABYTES", (8, card(1.2 * enough), card(0.05 * enough)))
    large, fitting, none = rows(found)

    assert large[1:4] == ("B-FP", "2, 3, 4, 8, 16", "8 of 8")
    assert fitting[1] in ("B-FP", "B-Q4")
    assert none[1] == "does not fit"
    assert none[5].startswith("`--model` must leave memory")


@pytest.mark.parametrize(
    ("found", "bits"),
    [("B-FP", "16"), ("B-Q4", "4"), ("matrix", "4, 8, 16")],
    indirect=["found"],
)
def test_fixed_spaces_have_the_bits_of_their_points(found: Read, bits: str) -> None:
    row = rows(found)[-1]

    assert row[1:4] == ("nothing", bits, "8 of 8")


def test_the_plan_needs_no_weights_and_a_study_does(
    found: Read, outlined: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = small(outlined, reviews, tmp_path / "out")

    assert run_search.main([*flags, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "On one CUDA card of" in shown
    assert "24 GB" in shown
    assert "smallest" in shown
    with pytest.raises(ValueError, match="`--model` must have its weights in safetensors"):
        read(found.config)


def test_cards_are_shown_where_nothing_fits_here(
    outlined: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = usable_cores() * (PROCESS_BASELINE_BYTES + 100_000)
    flags = small(outlined, reviews, tmp_path / "out", "--device-memory", f"{memory}B")

    assert run_search.main([*flags, "--dry-run"]) == 2
    shown = capsys.readouterr()
    assert "On one CUDA card of" in shown.out
    assert "must leave" in shown.err
