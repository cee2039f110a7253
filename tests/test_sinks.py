"""TensorBoard and W&B get what the log has; progress is readable on a terminal and in a file."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import (
    parse_experiment_plugin_data,
    parse_session_start_info_plugin_data,
)

from search_spaces.allocation import Allocation, Choice
from tests.simulated import (
    RUNGS,
    advance,
    bytes_help,
    drive,
    make_inventory,
    make_study,
    score,
)
from tests.waiting import HANGS_SECONDS, until
from tests.wandb_server import wandb_server
from tune.report.hparams import readable_parameters
from tune.report.picture import allocation_picture
from tune.report.sinks import TensorBoard, Wandb, send_report
from tune.study.config import StudyConfig
from tune.study.events import LOG_NAME, Completed, Event, EventLog, Paused, Stopped
from tune.study.state import UNENDED
from tune.study.study import Outcome

INVENTORY = make_inventory()


class FakeRun:
    """Stands in for a W&B run and records what it is given."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.summary: dict[str, Any] = {}
        self.finished = 0

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, dict(values)))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """What W&B was asked to begin."""
    begun: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        begun.append(FakeRun(**options))
        return begun[-1]

    monkeypatch.setattr("tune.report.sinks.wandb_init", lambda: init)
    return begun


@pytest.mark.parametrize(
    ("searcher", "reference"), [("random", None), ("alrq", None), ("alrq", "B-FP")]
)
def test_tensorboard_has_a_run_a_trial(
    tmp_path: Path, searcher: str, reference: str | None
) -> None:
    """Whose metrics it shows at first are those of the search's trials, in each run the same."""
    sink = TensorBoard(tmp_path / "tb", INVENTORY, reference is not None)
    study = make_study(
        tmp_path, budget=5, searcher=searcher, reference=reference, listeners=(sink,)
    )
    drive(study)
    sink.close()
    described = set()
    for trial in study.state.trials.values():
        run = EventAccumulator(str(tmp_path / "tb" / trial.id)).Reload()
        points = [(event.step, event.value) for event in run.Scalars("quality/validation_loss")]
        assert points == [(r.step, pytest.approx(r.loss)) for r in trial.reports]
        trained = [r.step for r in trial.reports if r.step]
        assert ("training/loss" in run.Tags()["scalars"]) == bool(trained)
        plugin = run.PluginTagToContent("hparams")
        assert "_hparams_/session_start_info" in plugin
        described.add(plugin["_hparams_/experiment"])
        metrics = parse_experiment_plugin_data(plugin["_hparams_/experiment"]).metric_infos
        tags = [metric.name.tag for metric in metrics]
        assert tags[5:] == ["final/test_accuracy"]
        found = set(run.Tags()["scalars"])
        if trial.searched:
            assert set(tags[:5]) <= found
        assert (tags[5] in found) == (trial.test is not None)
    assert len(described) == 1
    assert any(trial.promoted_step for trial in study.state.trials.values())


@pytest.mark.parametrize("cut", [Paused, Stopped, Completed])
def test_sinks_go_on_where_an_earlier_run_was_cut(
    tmp_path: Path, runs: list[FakeRun], cut: type[Event]
) -> None:
    """Any event may be the first that a resumed run hears of a trial: what a checkpoint repeats is
    not reported again.
    """
    drive(make_study(tmp_path, budget=5))
    log = tmp_path / LOG_NAME
    kind = f'{{"event":"{cut.__name__.lower()}"'
    lines = log.read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if line.startswith(kind))
    log.write_text("".join(lines[:at]))
    board = TensorBoard(tmp_path / "tb", INVENTORY, diverge=False)
    sinks = (board, Wandb("p", "s", tmp_path, INVENTORY))
    study = make_study(tmp_path, budget=5, listeners=sinks)
    resumed = [trial.id for trial in study.state.with_status("running")]
    ended = {trial.id for trial in study.state.trials.values() if trial.status not in UNENDED}
    for _ in resumed:
        trial = study.next_trial()
        assert trial is not None
        test = score(trial) if trial.role == "baseline" else None
        goes_on = study.take(trial.id, Outcome(report=trial.last, test=test)) == "continue"
        while goes_on:
            goes_on = advance(study, trial, bytes_help)
    drive(study)
    for sink in sinks:
        sink.close()

    assert study.finished
    assert cut.__name__ in {type(e).__name__ for e in EventLog(log).read()}
    # A test that the earlier run had logged is no event of this one.
    tested = {t.id for t in study.state.trials.values() if t.test is not None} - ended
    sent = {
        run.options["name"].removeprefix("s-") for run in runs if "test/accuracy" in run.summary
    }
    assert sent == tested
    assert (cut is not Completed) or any(trial in tested for trial in resumed)


def test_what_is_tried_again_is_described_anew(tmp_path: Path) -> None:
    for failing in (True, False):
        board = TensorBoard(tmp_path / "tb", INVENTORY, diverge=False)
        study = make_study(tmp_path, space="B-FP", listeners=(board,))
        if failing:
            trial = study.next_trial()
            assert trial is not None
            study.take(trial.id, Outcome(error="out of memory"))
            study.log.close()
        else:
            drive(study)
        board.close()
    run = EventAccumulator(str(tmp_path / "tb/B-FP")).Reload()
    content = run.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    told = parse_session_start_info_plugin_data(content).hparams
    steps = [event.step for event in run.Scalars("quality/validation_loss")]

    assert told["status"].string_value == "completed"
    assert steps == [RUNGS[-1]]


def test_tensorboard_shows_the_allocation(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path / "tb", INVENTORY, diverge=False)
    study = make_study(tmp_path, budget=2, listeners=(sink,))
    drive(study)
    sink.close()
    run = EventAccumulator(str(tmp_path / "tb/t001")).Reload()
    [image] = run.Images("allocation")
    [final] = run.Scalars("final/validation_loss")
    picture = allocation_picture(study.state.trials["t001"].allocation, INVENTORY)

    assert (image.height, image.width) == picture.shape[:2]
    assert final.value == pytest.approx(study.state.trials["t001"].reports[-1].loss)


def test_bits_and_ranks_have_their_colours() -> None:
    allocations = [
        Allocation(dict.fromkeys(INVENTORY.names, Choice(bits, rank)))
        for bits, rank in ((2, 0), (4, 0), (2, 32))
    ]
    low, more_bits, more_rank = (allocation_picture(one, INVENTORY) for one in allocations)
    half = low.shape[1] // 2

    assert (low[:, :half] != more_bits[:, :half]).any()
    assert (low[:, half:] == more_bits[:, half:]).all()
    assert (low[:, half + 30 :] != more_rank[:, half + 30 :]).any()


def test_parameters_are_few_and_readable(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=2)
    drive(study)
    parameters = readable_parameters(study.state.trials["B-FP"], INVENTORY)

    assert parameters["average_bits"] == 16
    assert parameters["average_rank"] == 8
    assert {k: v for k, v in parameters.items() if k.startswith("weight_bits_")} == {
        "weight_bits_early_blocks": 16,
        "weight_bits_middle_blocks": 16,
        "weight_bits_late_blocks": 16,
        "weight_bits_attention_query": 16,
        "weight_bits_output": 16,
    }
    assert len(parameters) <= 12


def test_a_server_of_wandb_that_fails_costs_a_study_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**_: Any) -> FakeRun:
        raise ConnectionError("nobody there")

    monkeypatch.setattr("tune.report.sinks.wandb_init", lambda: init)
    study = make_study(tmp_path, budget=2)
    drive(study)
    config = StudyConfig(name="s", output_dir=str(tmp_path), wandb="project")
    send_report(config, tmp_path / "report.html", INVENTORY, study.state)

    assert "W&B did not get the report: ConnectionError: nobody there" in capsys.readouterr().err


@pytest.mark.parametrize("key", [None, "0123456789"])
def test_wandb_gets_a_run_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[FakeRun], key: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    sink = Wandb("project", "s", tmp_path, INVENTORY)
    study = make_study(tmp_path, budget=5, listeners=(sink,))
    drive(study, lambda t, s: float("nan") if t.id == "t002" else bytes_help(t, s))
    sink.close()
    by_name = {run.options["name"].removeprefix("s-"): run for run in runs}

    assert set(by_name) == set(study.state.trials)
    assert {run.options["mode"] for run in runs} == {"offline" if key is None else "online"}
    assert {run.options["group"] for run in runs} == {"s"}
    for name, run in by_name.items():
        trial = study.state.trials[name]
        assert [step for step, _ in run.logged] == [report.step for report in trial.reports]
        assert run.summary["status"] == trial.status
        assert run.finished == 1
    assert "nan" in by_name["t002"].summary["reason"]


def test_real_wandb_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    sink = Wandb("project", "s", tmp_path, INVENTORY)
    study = make_study(tmp_path, space="B-FP", listeners=(sink,))
    drive(study, reports=3)
    sink.close()

    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) >= 1


def test_real_wandb_keeps_report_and_front_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (tmp_path / "studies/s").mkdir(parents=True)
    study = make_study(tmp_path / "studies/s", budget=5)
    drive(study)
    config = StudyConfig(name="s", output_dir=str(tmp_path), wandb="project")
    page = tmp_path / "studies/s/report.html"
    page.write_text("the page")
    send_report(config, page, INVENTORY, study.state)
    assert "did not get the report" not in capsys.readouterr().err
    # Its service may still write what it has taken over.
    wandb = tmp_path / "studies/s/wandb"
    until(lambda: any(b"report.html" in log.read_bytes() for log in wandb.glob("*/*.wandb")))
    [table] = wandb.glob("offline-run-*/files/media/table/front*.json")
    content = json.loads(table.read_text(encoding="utf-8"))

    assert content["columns"][:3] == ["trial", "status", "megabytes"]
    assert [row[0] for row in content["data"]] == [trial.id for trial in study.state.front()]
    [log] = wandb.glob("offline-run-*/*.wandb")
    assert b"s-report" in log.read_bytes()


KEY = "0123456789" * 4
STUDY = """
import sys
from pathlib import Path
from tests.simulated import drive, make_inventory, make_study
from tune.report.sinks import Wandb, send_report
from tune.study.config import StudyConfig

folder = Path(sys.argv[1])
sink = Wandb("project", "s", folder, make_inventory())
study = make_study(folder, space="B-FP", listeners=(sink,))
drive(study)
sink.close()
study = make_study(folder / "studies/s", budget=3)
drive(study)
page = folder / "studies/s/report.html"
page.write_text("the page")
config = StudyConfig(name="s", output_dir=str(folder), wandb="project")
send_report(config, page, make_inventory(), study.state)
"""


def test_a_server_of_wandb_gets_runs_front_and_report_and_nobody_the_key(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    (tmp_path / "studies/s").mkdir(parents=True)
    with wandb_server() as server:
        names = {"HOME": tmp_path, "WANDB_DATA_DIR": tmp_path, "WANDB_BASE_URL": server.uri}
        told = {name: str(value) for name, value in names.items()} | {"WANDB_API_KEY": KEY}
        process = subprocess.run(
            [sys.executable, "-c", STUDY, str(tmp_path)],
            env=os.environ | told,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=HANGS_SECONDS,
        )
    assert process.returncode == 0, process.stderr
    runs = {of["displayName"]: of for of in server.of("UpsertBucket") if of["displayName"]}

    assert set(runs) == {"s-B-FP", "s-B-FP-s2", "s-B-FP-s3", "s-report"}
    assert {run["groupName"] for run in runs.values()} == {"s"}
    assert {run["jobType"] for run in runs.values()} == {"baseline", "confirm", "report"}
    histories = str(server.streams)
    assert "quality/validation_loss" in histories and "training/loss" in histories
    assert server.files["report.html"] == b"the page"
    [table] = [content for name, content in server.files.items() if "table/front" in name]
    assert json.loads(table)["columns"][0] == "trial"
    assert server.keys == {KEY}
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert KEY.encode() not in path.read_bytes(), path
    assert KEY not in process.stdout + process.stderr
