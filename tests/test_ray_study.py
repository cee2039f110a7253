"""Whole studies on Ray with a tiny model: phases, failures, kills, a cluster of three nodes."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet
import pytest
import ray
from ray.cluster_utils import Cluster
from safetensors.torch import load_file, save_file

import alrq_core
import run_search
from tests.tiny import save_bert
from tests.waiting import HANGS_SECONDS

ROOT = Path(__file__).parents[1]
BUDGET = 5


def command(bert: Path, reviews: Path, output: Path, *more: str) -> list[str]:
    flags = {
        "--model": bert,
        "--data": reviews,
        "--text-column": "review",
        "--label-column": "verdict",
        "--budget": BUDGET,
        "--max-steps": 8,
        "--batch-size": 8,
        "--max-length": 16,
        "--output-dir": output,
        "--name": "s",
    }
    return [sys.executable, str(ROOT / "run_search.py"), *map(str, sum(flags.items(), ())), *more]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=HANGS_SECONDS, cwd=ROOT
    )


def events(output: Path) -> list[dict[str, Any]]:
    # The last line of a study that runs may not be whole yet.
    lines = (output / "studies/s/events.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def trials(output: Path, *kinds: str) -> list[str]:
    return [event["trial"] for event in events(output) if event["event"] in kinds]


def searched(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("t") and "-" not in name]


@pytest.fixture(scope="module")
def finished(
    bert_folder: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    output = tmp_path_factory.mktemp("finished")
    return output, run(command(bert_folder, reviews, output))


def test_a_study_ends_with_its_table(finished: tuple[Path, Any]) -> None:
    _, process = finished

    assert process.returncode == 0, process.stderr
    assert "Confirmed on the test split" in process.stdout
    assert "Recommended: " in process.stdout or "No recommendation: " in process.stdout
    assert process.stderr == ""


def test_every_trial_ended_once_and_none_failed(finished: tuple[Path, Any]) -> None:
    output, _ = finished
    ends = trials(output, "completed", "stopped", "failed")

    assert Counter(ends) == Counter(trials(output, "proposed"))
    assert len(searched(ends)) == BUDGET
    assert {"B-FP", "B-Q4", "B-FP-s2", "B-FP-s3"} <= set(ends)
    assert not trials(output, "failed")


def test_receipts_are_distinct_and_complete(finished: tuple[Path, Any]) -> None:
    output, _ = finished
    receipts = {
        path.stem: json.loads(path.read_text())
        for path in (output / "studies/s/receipts").glob("*.json")
    }
    built = {
        json.dumps({n: (m["bits"], m["rank"]) for n, m in receipts[name]["modules"].items()})
        for name in searched(list(receipts))
    }

    assert set(receipts) == set(trials(output, "proposed"))
    started = {e["trial"]: e["reference"] for e in events(output) if "reference" in e}
    assert started["t001"] == "reference"
    checksums = {name: receipt["start"] for name, receipt in receipts.items()}
    assert {name for name, start in checksums.items() if start} == set(started)
    seeds = {e["trial"]: e["seed"] for e in events(output) if e["event"] == "proposed"}
    assert all(start["seed"] == seeds[name] for name, start in checksums.items() if start)
    assert len(built) == BUDGET
    stopped = set(trials(output, "stopped"))
    for name, receipt in receipts.items():
        # What was stopped at its start was never trained, and doesn't say so.
        trained = 0 if name in stopped else receipt["lora_pairs"]
        assert receipt["lora_pairs_with_gradient"] == trained
    predicted = {e["trial"]: e["memory_bytes"] for e in events(output) if e["event"] == "proposed"}
    assert all(r["memory_bytes"] == predicted[name] for name, r in receipts.items())
    assert (output / "studies/s/visibility.json").is_file()


def test_result_files_agree_with_the_log(finished: tuple[Path, Any]) -> None:
    output, _ = finished
    study = output / "studies/s"
    rows = pyarrow.parquet.read_table(study / "trials.parquet").to_pylist()
    reported = [e for e in events(output) if e["event"] == "reported"]

    assert len(rows) == len(reported)
    assert {(r["trial"], r["step"], r["loss"]) for r in rows} == {
        (e["trial"], e["step"], e["loss"]) for e in reported
    }
    fronts = json.loads((study / "front.json").read_text())
    assert all(row["expected_objective"] > 0 for row in fronts["expected_front"])
    front = fronts["front"]
    assert {row["trial"] for row in front} <= set(searched(trials(output, "proposed")))
    # What all starts were judged by, also those that were trained.
    assert {row["step"] for row in front} == {0}
    trained = [event for event in reported if event["step"] == 4 and "divergence" in event]
    assert {event["trial"] for event in trained} <= set(trials(output, "completed"))
    assert {event["kept_step"] for event in trained} <= {0, 4}
    names = {path.name for path in output.iterdir()}
    assert {"results_B-FP_custom_s.json", "all_results.json", "experiment_summary.csv"} <= names
    assert (study / "report.html").stat().st_size > 9 * 10**5
    assert (study / "figures/differences.pdf").read_bytes().startswith(b"%PDF")
    runs = sum(e["event"] == "tested" for e in events(output))
    compared = (study / "mcnemar.csv").read_text(encoding="utf-8").splitlines()
    assert len(compared) == 1 + runs * (runs - 1) // 2
    for row in json.loads((study / "confirmation.json").read_text())["confirmed"]:
        low, high = row["f1_interval"]
        assert low - 1e-9 <= row["f1"] <= high + 1e-9
    kept = {path.stem for path in (study / "checkpoints").iterdir()}
    assert kept == set(trials(output, "tested")) | {"reference"}
    files = {path.name for path in (study / "references").iterdir()}
    names = ["reference", "B-FP", "B-FP-s2", "B-FP-s3"]
    assert files == {f"{name}.safetensors" for name in names}
    content = json.loads((study / "study.json").read_text())
    assert [run["versions"]["ray"] for run in content["runs"]] == [ray.__version__]
    assert content["splits"]["test"] == 40


def test_optuna_was_told_the_truth(finished: tuple[Path, Any]) -> None:
    output, _ = finished
    backend = optuna.storages.journal.JournalFileBackend(str(output / "studies/s/optuna.journal"))
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.load_study(study_name="alrq", storage=storage)
    told = {t.user_attrs["trial"]: t.values for t in study.trials if t.state.name == "COMPLETE"}
    sizes = {e["trial"]: e["memory_bytes"] for e in events(output) if e["event"] == "proposed"}
    starts = {
        event["trial"]: [event["divergence"], sizes[event["trial"]] / 1e6]
        for event in events(output)
        if event["event"] == "reported" and event["step"] == 0 and "divergence" in event
    }

    assert told == {name: starts[name] for name in searched(trials(output, "proposed"))}


def test_a_confirmed_trial_is_exported(
    finished: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, target = finished[0] / "studies/s", tmp_path / "model"
    export = ("--export", str(study), "--trial")
    assert run_search.main((*export, "B-Q4", "--to", str(target))) == 0
    assert "wrote B-Q4 to" in capsys.readouterr().out
    loaded = alrq_core.load(target)
    receipt = json.loads((study / "receipts/B-Q4.json").read_text())

    assert loaded.receipt.to_json() == receipt
    assert run_search.main((*export, "B-Q4", "--to", str(target))) == 2
    assert "`--to` must not exist yet" in capsys.readouterr().err
    other = ("--to", str(tmp_path / "other"), "--as")
    assert run_search.main((*export, "B-Q4", *other, "transformers")) == 2
    assert "must have every module in gptq or plain, got nf4-double" in capsys.readouterr().err
    assert run_search.main((*export, "B-Q4", *other, "gguf")) == 2
    assert "must be of a family that was compared with llama.cpp" in capsys.readouterr().err
    assert run_search.main((*export, "B-Q4", *other, "onnx")) == 2
    said = capsys.readouterr().err
    assert "`--as` must be one of alrq, transformers, gguf, got 'onnx'" in said
    plain = ("--to", str(tmp_path / "b-fp"), "--as", "transformers")
    assert run_search.main((*export, "B-FP", *plain)) == 0
    assert "Load it with: the lines in its README.md" in capsys.readouterr().out
    assert (tmp_path / "b-fp/adapter/adapter_model.safetensors").is_file()
    assert run_search.main((*export, "t999", "--to", str(tmp_path / "other"))) == 2
    said = capsys.readouterr().err
    assert "`--trial` must be a confirmed trial with its checkpoint, got 't999'" in said
    assert not (tmp_path / "other").exists()


def test_a_name_that_exists_is_refused_and_a_larger_budget_resumes(
    finished: tuple[Path, Any],
    bert_folder: Path,
    reviews: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = shutil.copytree(finished[0], tmp_path / "copy")
    before, study = events(output), str(output / "studies/s")
    assert run_search.main(command(bert_folder, reviews, output)[2:]) == 2
    assert "`--name` must be new, got 's'" in capsys.readouterr().err
    assert events(output) == before

    assert run_search.main(("--resume", study, "--budget", "2")) == 2
    assert "must not shrink" in capsys.readouterr().err
    script = [sys.executable, str(ROOT / "run_search.py"), "--resume", study]

    larger = run([*script, "--budget", str(BUDGET + 2)])
    assert larger.returncode == 0, larger.stderr
    assert events(output)[: len(before)] == before
    assert len(searched(trials(output, "completed", "stopped", "failed"))) == BUDGET + 2
    assert len(json.loads((output / "studies/s/study.json").read_text())["runs"]) == 2


@pytest.mark.parametrize(
    ("space", "said", "trials_failed"),
    [
        (
            "joint",
            "stopped after trials failed one after another for one reason: ValueError: `moment`",
            {"reference", "B-FP", "B-Q4"},
        ),
        ("B-FP", "every trial failed, the first because: training loss became nan at", {"B-FP"}),
    ],
)
def test_a_study_in_which_all_fails_says_why(
    space: str, said: str, trials_failed: set[str], reviews: Path, tmp_path: Path
) -> None:
    bert = save_bert(tmp_path / "bert")
    weights = load_file(bert / "model.safetensors")
    weights["bert.embeddings.LayerNorm.weight"].fill_(float("nan"))
    save_file(weights, bert / "model.safetensors", metadata={"format": "pt"})
    process = run(command(bert, reviews, tmp_path / "out", "--budget", "9", "--space", space))

    assert process.returncode == 1
    assert f"run_search: {said}" in process.stderr
    assert process.stderr.count("`moment` must be finite to make codes from") == (space == "joint")
    assert "Mend its cause, then go on with: " in process.stderr
    assert "--resume" in process.stderr
    assert set(trials(tmp_path / "out", "failed")) == trials_failed


@pytest.fixture
def three_nodes() -> Iterator[str]:
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


def test_a_cluster_of_three_nodes_runs_a_study(
    three_nodes: str, bert_folder: Path, reviews: Path, tmp_path: Path
) -> None:
    process = run(command(bert_folder, reviews, tmp_path, "--address", three_nodes))

    assert process.returncode == 0, process.stderr
    assert len(searched(trials(tmp_path, "completed", "stopped"))) == BUDGET
    assert os.environ.get("RAY_ADDRESS") is None
    export = ["--export", str(tmp_path / "studies/s"), "--trial", "B-FP"]
    for name, address in (("here", ()), ("there", ("--address", three_nodes))):
        wanted = [*export, "--to", str(tmp_path / name / "model"), *address]
        exported = run([sys.executable, str(ROOT / "run_search.py"), *wanted])
        assert exported.returncode == 0, exported.stderr
    here, there = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*") if path.is_file()}
        for name in ("here", "there")
    )
    assert len(here) > 5
    assert here.keys() == there.keys()
    assert {name for name in here if here[name] != there[name]} <= {"README.md", "manifest.json"}
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["model"]
