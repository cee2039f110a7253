"""The six fixed configurations on Ray, side by side, with a tiny model."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import alrq_core
from search_spaces.fixed import FIXED
from tests.test_ray_study import ROOT, command, events, run, trials

ADAPTIVE = {"B-Ada", "Joint-1", "Joint-2"}


@pytest.fixture(scope="module")
def finished(
    bert_folder: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    output = tmp_path_factory.mktemp("matrix")
    flags = ("--space", "matrix", "--eval-sequences", "20", "--execution", "dequantized")
    return output, run(command(bert_folder, reviews, output, *flags))


def receipts(output: Path) -> dict[str, dict[str, Any]]:
    folder = output / "studies/s/receipts"
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_all_six_are_confirmed_with_different_receipts(finished: tuple[Path, Any]) -> None:
    output, process = finished
    assert process.returncode == 0, process.stderr + process.stdout
    built = {name: json.dumps(receipts(output)[name]["modules"]) for name in FIXED}

    assert len(set(built.values())) == 6
    assert sorted(trials(output, "completed")) == sorted(
        [*FIXED, *(f"{name}-s{seed}" for name in FIXED for seed in (2, 3))]
    )
    assert "Training, mean of the seeds" in process.stdout
    for name in FIXED:
        assert f" {name}" in process.stdout


def test_results_have_what_the_receipts_say(finished: tuple[Path, Any]) -> None:
    output, _ = finished
    kept = receipts(output)
    with (output / "experiment_summary.csv").open(encoding="utf-8") as file:
        rows = {row["experiment"]: row for row in csv.DictReader(file)}

    assert set(FIXED) <= set(rows)
    for name in FIXED:
        runs = [kept[name], *(kept[f"{name}-s{seed}"] for seed in (2, 3))]
        mean = sum(receipt["memory_bytes"] for receipt in runs) / 3
        assert int(rows[name]["memory_bytes"]) == round(mean)
        assert int(rows[name]["peak_memory_bytes"]) > 10**8
        assert float(rows[name]["train_seconds"]) > 0
        content = json.loads((output / f"results_{name}_custom_s.json").read_text())
        assert len(content["final_ranks"]) == (3 if name in ADAPTIVE else 0)
        assert "the first 20 sequences" in content["splits"]
    realised = {e["trial"]: e for e in events(output) if e["event"] == "realised"}
    assert set(realised) == set(kept)
    assert {name for name in FIXED if "allocation" in realised[name]} == ADAPTIVE


def test_an_adalora_run_is_exported_at_its_final_ranks(
    finished: tuple[Path, Any], tmp_path: Path
) -> None:
    output, _ = finished
    target = tmp_path / "model"
    study = output / "studies/s"
    flags = ("--export", study, "--trial", "Joint-2", "--to", target)
    process = run([sys.executable, str(ROOT / "run_search.py"), *map(str, flags)])

    assert process.returncode == 0, process.stderr
    receipt = receipts(output)["Joint-2"]
    loaded = alrq_core.load(target)
    assert loaded.receipt.to_json() == receipt
    assert loaded.allocation.rank_pattern == {
        name: module["rank"] for name, module in receipt["modules"].items() if module["rank"]
    }
