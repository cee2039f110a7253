"""What is seen of a study while it runs: a screen, plain lines, JSON, nothing, from outside."""

import fcntl
import io
import json
import re
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import run_search
from tests.simulated import (
    RECIPE,
    advance,
    bytes_help,
    drive,
    make_inventory,
    make_report,
    make_study,
    save_study,
)
from tests.waiting import HANGS_SECONDS
from tune.flags import Form
from tune.report import watch as watching
from tune.report.metrics import metric_of
from tune.report.pace import Pace
from tune.report.progress import Progress, Subject
from tune.report.screen import duration, moment, plot, render
from tune.study.config import StudyConfig
from tune.study.events import LOG_NAME, Event, EventLog, Work, decode_event
from tune.study.state import StudyState, TrialState
from tune.study.study import Outcome, Study
from tune.study.study import Progress as Done

CONFIG = StudyConfig(name="s", recipe=RECIPE, budget=8, reference="none")
SUBJECT = Subject(config=CONFIG, size=8)


def follow(folder: Path, console: Console, loss_nan: str = "", form: Form = "shown") -> Study:
    progress = Progress(console, SUBJECT, form)
    study = make_study(folder, budget=8, listeners=(progress,))
    with progress:
        drive(study, lambda t, s: float("nan") if t.id == loss_nan else bytes_help(t, s))
    return study


def printed(folder: Path, **options: object) -> str:
    output = io.StringIO()
    terminal = bool(options.pop("terminal", False))
    console = Console(file=output, width=120, height=30, force_terminal=terminal)
    follow(folder, console, **options)  # type: ignore[arg-type]
    return output.getvalue()


def test_a_file_gets_plain_lines(tmp_path: Path) -> None:
    text = printed(tmp_path, loss_nan="t002")

    assert "\x1b" not in text
    assert re.search(r"t001  step     2  loss \d\.\d{4}  accuracy 0\.8000  \d\.\d\d MB", text)
    assert "t002  failed: validation loss became nan at step 2" in text
    counts = r"8 of 8 trials: 0 running, 0 paused, \d stopped, 1 failed, \d completed"
    assert re.search(counts, text)
    assert re.search(r"confirming: \d+ of \d+ runs", text)
    assert max(len(line) for line in text.splitlines()) < 200


def test_quiet_prints_failures_alone(tmp_path: Path) -> None:
    [line] = printed(tmp_path, loss_nan="t002", form="quiet").splitlines()
    assert "t002  failed: validation loss became nan at step 2" in line


def test_json_is_an_event_a_line_as_in_the_log(tmp_path: Path) -> None:
    lines = printed(tmp_path, form="json").splitlines()
    logged = (tmp_path / LOG_NAME).read_text(encoding="utf-8").splitlines()
    found = [decode_event(line) for line in lines]

    # The first says that the run began, before anybody listens.
    assert found == [decode_event(line) for line in logged[1:]]
    assert all("logged" in json.loads(line) for line in lines)


def test_a_terminal_gets_a_screen_of_100_columns(tmp_path: Path) -> None:
    text = printed(tmp_path, terminal=True)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)

    assert "\x1b" in text and "Best front so far" in text and "running: " in text
    assert max(len(line) for line in plain.splitlines()) <= 100


def shown(folder: Path, reports: int, width: int = 100) -> str:
    study = make_study(folder, budget=12, searcher="alrq", reference="B-FP")
    drive(study, reports=reports)
    config = replace(CONFIG, budget=12, reference="B-FP")
    pace, state = Pace(config, 12, fixed=False), StudyState(study.state.names)
    for logged, event in EventLog(folder / LOG_NAME).timed():
        assert logged is not None
        state.apply(event)
        pace.take(logged, event, state)
    output = io.StringIO()
    seen = moment(config, pace, state, logged, 12.0)
    Console(file=output, width=width).print(render(seen, logged))
    return output.getvalue()


def test_the_screen_says_what_happens_now(tmp_path: Path) -> None:
    parts = {reports: shown(tmp_path / str(reports), reports) for reports in (1, 12, 10**6)}

    assert "trials" in parts[12] and "of 12 trials" in parts[12]
    assert "step     0" in parts[12] and "step     4" in parts[12]
    assert "confirming" not in parts[12]
    assert re.search(r"confirming .* (\d+) of \1 runs", parts[10**6])
    assert "12.0 reports a minute; running: nothing" in parts[10**6]
    for text in parts.values():
        assert len(text.splitlines()) < 30


@pytest.fixture(autouse=True)
def folders(tmp_path: Path) -> None:
    for name in ("1", "12", str(10**6), "studies/s"):
        (tmp_path / name).mkdir(parents=True)


@pytest.mark.parametrize(
    ("work", "points", "lines"),
    [
        (
            "codes",
            [(0, 40), (6, 70), (12, 100)],
            [
                "calibrating: 40 of 200 codes",
                "calibrating: 70 of 200 codes, about 26 s left",
                "calibrating: 100 of 200 codes, about 20 s left",
            ],
        ),
        (
            "starts",
            [(0, 0), (11, 20), (13, 60), (14, 80)],
            [
                "making starts: 0 of 200 matrices",
                "making starts: 20 of 200 matrices",
                "making starts: 60 of 200 matrices, about 7 s left",
                "making starts: 80 of 200 matrices, about 6 s left",
            ],
        ),
    ],
)
def test_work_that_no_report_tells_of_has_its_end(
    work: Work, points: list[tuple[int, int]], lines: list[str], tmp_path: Path
) -> None:
    now, output = [0.0], io.StringIO()
    console = Console(file=output, width=120)
    progress = Progress(console, SUBJECT, clock=lambda: now[0])
    study = make_study(tmp_path, budget=8, reference="B-FP", listeners=(progress,))
    with closing(study.log), progress:
        trial = study.next_trial()
        assert trial is not None
        for at, made in points:
            now[0] = float(at)
            study.take(trial.id, Outcome(progress=Done(work, made, 200)))
        study.take(trial.id, Outcome(report=make_report(8, 0.5)))

    assert [line for line in output.getvalue().splitlines() if " of 200 " in line] == lines


def test_a_plot_has_its_corners(tmp_path: Path) -> None:
    points = [(10**7, 0.1, True), (2 * 10**7, 0.01, True), (2 * 10**7, 0.1, False)]
    lines = plot(points, "divergence", 20, 5).splitlines()

    assert lines[0] == "       0.1 |o                  ."
    assert lines[2].startswith("divergence |") and lines[4].startswith("      0.01 |")
    assert lines[4].endswith("o")
    assert lines[6].split() == ["10.00", "MB", "20.00", "MB"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(90.4, "90 s"), (600, "10 min"), (3 * 3600 + 120, "3 h 2 min")]
)
def test_times_are_told_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("scheduler", "reference", "scale"),
    [
        ("front-asha", None, 1.0),
        ("front-asha", None, 7.0),
        ("asha", None, 1.0),
        ("median", None, 1.0),
        ("none", None, 1.0),
        ("front-asha", "B-FP", 1.0),
        ("none", "B-FP", 1.0),
    ],
)
def test_what_is_left_is_right_within_a_third(
    scheduler: str,
    reference: str | None,
    scale: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two workers, and trials that all take what their kind does."""
    taken = {0: 0.0, 2: 2.0, 4: 8.0, 8: 8.0} if reference else {2: 2.0, 4: 2.0, 8: 4.0}
    monkeypatch.setattr(
        "tests.simulated.make_report",
        lambda step, *of: replace(
            make_report(step, *of), train_seconds=scale * taken[step], eval_seconds=0.0
        ),
    )
    study = make_study(
        tmp_path, budget=40, searcher="random", scheduler=scheduler, reference=reference
    )
    config = replace(CONFIG, budget=40, scheduler=scheduler, reference=reference)
    pace, now = Pace(config, 40, fixed=False), 0.0
    study.listeners = (lambda event, state: pace.take(now, event, state),)
    running: list[tuple[float, TrialState]] = []
    told: dict[str, list[tuple[float, float | None]]] = {"trials": [], "confirming": []}

    def until_report(trial: TrialState) -> float:
        before = trial.last.step if trial.last else None
        if trial.reference is not None:
            seconds = 1.0 if before is None else 8.0
        else:
            seconds = max(2, before or 0) if trial.searched else RECIPE.max_steps
        return now + scale * seconds

    with closing(study.log):
        while True:
            while len(running) < 2 and (trial := study.next_trial()) is not None:
                running.append((until_report(trial), trial))
            if not running:
                break
            running.sort(key=lambda pair: pair[0])
            now, trial = running.pop(0)
            if advance(study, trial, bytes_help):
                running.append((until_report(trial), trial))
            for phase in pace.phases(now, study.state)[-1:]:
                if phase.title in told:
                    told[phase.title].append((now, phase.seconds_left))
    for title, found in told.items():
        end = found[-1][0]
        # Once something of each kind has ended, and but for the time of two trials at the end.
        judged = [
            (left, end - at) for at, left in found[len(found) // 4 :] if end - at > 16 * scale
        ]
        close = [left is not None and abs(left - truth) <= truth / 3 for left, truth in judged]
        wrong = [pair for pair, right in zip(judged, close, strict=True) if not right]
        assert len(judged) > 3 and not wrong, (title, wrong)


def test_a_larger_budget_is_searched_before_it_is_confirmed(tmp_path: Path) -> None:
    """What the first run confirmed is not taken for what the second has to."""
    drive(make_study(tmp_path, budget=8))
    config, state = replace(CONFIG, budget=20), StudyState(make_inventory().names)
    study = make_study(tmp_path, budget=20)
    pace = Pace(config, 20, fixed=False)
    for logged, event in EventLog(tmp_path / LOG_NAME).timed():
        state.apply(event)
        pace.take(logged or 0.0, event, state)
    titles: list[str] = []
    seen: list[tuple[int, int]] = []

    def follow(event: Event, state: StudyState) -> None:
        pace.take(0.0, event, state)
        phase = pace.phases(0.0, state)[-1]
        titles.append(phase.title)
        if phase.title == "confirming" and phase.total:
            seen.append((phase.done, phase.total))

    study.listeners = (follow,)
    drive(study)
    searching = titles.index("trials")
    confirming = len(titles) - titles[::-1].index("trials")

    assert searching < 3 and confirming > 20
    assert seen[-1][0] == seen[-1][1] and (0, seen[-1][1]) in seen
    assert all(done < total for done, total in seen[:-1])


def test_answers_that_must_match_are_told_by_that() -> None:
    """Their perplexity is known too."""
    report = replace(make_report(8, 0.5), accuracy=None, f1=None, perplexity=2.0, exact_match=0.5)
    assert metric_of(report) == "exact_match"


@pytest.mark.parametrize("metric", ["perplexity", "exact_match", "accuracy"])
def test_any_metric_can_be_watched(
    tmp_path: Path, metric: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = io.StringIO()
    study = make_study(tmp_path, budget=2)
    progress = Progress(Console(file=output, width=120), SUBJECT)
    study.listeners = (progress,)
    trial = study.next_trial()
    assert trial is not None
    values = {"accuracy": None, "f1": None} | {metric: 0.25}
    report = replace(make_report(8, 0.5), **values)
    with closing(study.log):
        study.take(trial.id, Outcome(report=report))

    assert f"{metric} 0.2500" in output.getvalue()


def test_a_study_that_ended_is_shown_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "studies/s", budget=8)
    drive(study)
    folder = save_study(study)
    assert run_search.main(["--watch", str(folder)]) == 0
    said = capsys.readouterr().out

    assert "of 8 trials" in said and "left" not in said
    assert f"Nobody works on {folder} now. Its report: --report {folder}" in said
    assert run_search.main(["--watch", str(folder), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == (folder / LOG_NAME).read_text(encoding="utf-8").splitlines()


def test_what_is_no_study_can_not_be_watched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_search.main(["--watch", str(tmp_path)]) == 2
    assert "`--watch` must be the folder of a study" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_search.main(["--quiet", "--json"])
    assert "`--quiet` and `--json` exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    "others",
    [
        ["--report", "nowhere"],
        ["--compare", "nowhere", "there"],
        ["--export", "nowhere", "--trial", "t001", "--to", "there"],
        ["--caches"],
        ["--dry-run", "--watch", "nowhere"],
        ["--dry-run"],
    ],
)
def test_what_has_no_events_prints_none(
    others: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_search.main(["--json", *others]) == 2
    said = capsys.readouterr()
    assert "`--json` must go with a study that runs, or --watch" in said.err
    assert f"got it with {others[0]}." in said.err
    assert not said.out


def test_a_study_that_runs_is_followed_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process holds it, and writes on."""
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watching, "IDLE_SECONDS", 0.05)
    study = make_study(tmp_path / "studies/s", budget=8)
    drive(study, reports=4)
    folder, output = save_study(study), io.StringIO()
    worked: list[bool] = []
    with (folder / "lock").open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        console = Console(file=output, width=120)
        thread = threading.Thread(
            target=lambda: worked.append(watching.watch(folder, console, "shown"))
        )
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive()
        drive(make_study(folder, budget=8))
        time.sleep(0.3)
        assert thread.is_alive()
    thread.join(timeout=HANGS_SECONDS)

    assert worked == [True]
    assert output.getvalue().count("completed  [") >= 1
