"""TensorBoard and W&B get what the log has; progress is readable on a terminal and in a file."""

import io
import itertools
import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from search_spaces.spaces import make_space
from tests.simulated import (
    advance,
    bytes_help,
    drive,
    make_inventory,
    make_report,
    make_study,
    score,
)
from tune.report.progress import Progress
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


def follow(folder: Path, console: Console, loss_nan: str = "") -> None:
    progress = Progress(console, make_space("joint", make_inventory()), 8, "accuracy")
    study = make_study(folder, budget=8, listeners=(progress,))
    with progress:
        drive(study, lambda t, s: float("nan") if t.id == loss_nan else bytes_help(t, s))


def test_the_end_is_estimated_from_paused_trials_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = itertools.chain([0.0], itertools.repeat(3600.0))
    monkeypatch.setattr("tune.report.progress.time.monotonic", lambda: next(times))
    output = io.StringIO()
    follow(tmp_path, Console(file=output, width=120))
    counts = r"(\d) completed, (\d) stopped, (\d) failed, (\d) paused.*about (\d+) min"
    found = [[int(n) for n in line] for line in re.findall(counts, output.getvalue())]

    assert any(paused for *_, paused, _ in found)
    for *settled, minutes in found:
        assert minutes == round(60 / sum(settled) * (8 - sum(settled)))


def test_a_file_gets_plain_lines(tmp_path: Path) -> None:
    output = io.StringIO()
    follow(tmp_path, Console(file=output, width=120), loss_nan="t002")
    text = output.getvalue()

    assert "\x1b" not in text
    assert re.search(r"t001  step     2  loss \d\.\d{4}  accuracy 0\.8000  \d\.\d\d MB", text)
    assert "t002  failed: validation loss became nan at step 2" in text
    counts = r"8 of 8 trials: \d completed, \d stopped, 1 failed, 0 paused, 0 running"
    assert re.search(counts, text)
    assert "search ends in about" in text
    assert "confirmation: " in text
    assert max(len(line) for line in text.splitlines()) < 200


@pytest.mark.parametrize("terminal", [True, False])
def test_the_making_of_codes_is_shown_with_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    now = [0.0]
    monkeypatch.setattr("tune.report.progress.time.monotonic", lambda: now[0])
    output = io.StringIO()
    console = Console(file=output, width=120, force_terminal=terminal)
    progress = Progress(console, make_space("joint", make_inventory()), 8, "accuracy")
    study = make_study(tmp_path, budget=8, listeners=(progress,))
    with closing(study.log), progress:
        trial = study.next_trial()
        assert trial is not None
        for made in (40, 70, 100):
            study.take(trial.id, Outcome(codes=(made, 200)))
            now[0] += 6.0
        study.take(trial.id, Outcome(report=make_report(8, 0.5)))
    text = output.getvalue()

    assert "calibrating: 40 of 200 codes" in text
    assert "calibrating: 70 of 200 codes, ready in about 26 s" in text
    assert "calibrating: 100 of 200 codes, ready in about 20 s" in text
    assert text.rfind("calibrating") < text.rfind("step")


def test_a_terminal_gets_a_live_view(tmp_path: Path) -> None:
    output = io.StringIO()
    follow(tmp_path, Console(file=output, width=120, force_terminal=True))
    text = output.getvalue()

    assert "Best front so far" in text
    assert "running: " in text
    assert json.dumps("\x1b")[1:-1] not in text
    assert "\x1b" in text
