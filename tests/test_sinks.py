"""TensorBoard and W&B get what the log has; progress is readable on a terminal and in a file."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.simulated import (
    advance,
    bytes_help,
    drive,
    make_inventory,
    make_study,
    score,
)
from tune.report.sinks import TensorBoard, Wandb, readable_parameters
from tune.study.events import LOG_NAME, Completed, Event, EventLog, Paused, Stopped
from tune.study.study import Outcome

INVENTORY = make_inventory()


def test_tensorboard_has_a_run_a_trial(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path / "tb", INVENTORY)
    study = make_study(tmp_path, budget=5, listeners=(sink,))
    drive(study)
    sink.close()
    for trial in study.state.trials.values():
        run = EventAccumulator(str(tmp_path / "tb" / trial.id)).Reload()
        points = [(event.step, event.value) for event in run.Scalars("loss")]
        assert points == [(r.step, pytest.approx(r.loss)) for r in trial.reports]
        assert "train_loss" in run.Tags()["scalars"]
        if trial.role == "confirm":
            assert run.Scalars("test_accuracy")
        plugin = run.PluginTagToContent("hparams")
        assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(plugin)
    assert any(trial.promoted_step for trial in study.state.trials.values())


@pytest.mark.parametrize("cut", [Paused, Stopped, Completed])
def test_sinks_go_on_where_an_earlier_run_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: type[Event]
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
    monkeypatch.setattr("tune.report.sinks.wandb_init", lambda: FakeRun)
    sinks = (TensorBoard(tmp_path / "tb", INVENTORY), Wandb("p", "s", tmp_path, INVENTORY))
    study = make_study(tmp_path, budget=5, listeners=sinks)
    for _ in study.state.with_status("running"):
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


def test_parameters_are_few_and_readable(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=2)
    drive(study)
    parameters = readable_parameters(study.state.trials["B-FP"], INVENTORY)

    assert parameters["average_bits"] == 16
    assert parameters["average_rank"] == 8
    assert len(parameters) <= 6


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


@pytest.mark.parametrize("key", [None, "0123456789"])
def test_wandb_gets_a_run_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    runs: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        runs.append(FakeRun(**options))
        return runs[-1]

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setattr("tune.report.sinks.wandb_init", lambda: init)
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

    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
