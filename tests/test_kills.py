"""Workers and drivers that end in the middle, at every stage: the study is as if they hadn't."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import output_of, until

ROOT = Path(__file__).parents[1]
BUDGET = 3
# While moments are computed, in the reference's training, between the rungs of a trial, in a start,
# and between two trials, where a process ends whose device has failed. Of each process the n-th
# call counts, and each place kills once. The first starts are those of the table, whose trial has
# died twice by then.
STAGES = (
    "alrq_core.data.moments:second_moments:1",
    "alrq_core.training:Training.train_step:5",
    "alrq_core.data.answers:Answers.of:2",
    "alrq_core.adapters.reference:Reference.start:9",
    # Not the third: the reference, which died twice before, may be the third of a process.
    "tune.on_ray.workers:AllocationTrainable.reset_config:5",
)
Event = dict[str, Any]


def command(bert: Path, reviews: Path, output: Path) -> list[str]:
    flags = (
        f"--model {bert} --data {reviews} --text-column review --label-column verdict "
        f"--budget {BUDGET} --max-steps 8 --batch-size 8 --max-length 16 --output-dir {output} "
        "--name s --eval-sequences 8 --searcher random --scheduler none"
    )
    return [sys.executable, str(ROOT / "run_search.py"), *flags.split()]


def started(arguments: list[str], cache: Path, **more: str) -> subprocess.Popen[str]:
    """Start a run with one worker, so that the order of trials is always the same."""
    cores = sorted(os.sched_getaffinity(0))
    core = cores[int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % len(cores)]
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        env={**os.environ, "HF_HOME": str(cache), **more},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )


def events(output: Path) -> list[Event]:
    path = output / "studies/s/events.jsonl"
    if not path.is_file():
        return []
    # The last line of a study that runs may not be whole yet.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def story(output: Path) -> list[tuple[Any, ...]]:
    """All that was measured, without times, in any order.

    Tune puts a trial whose worker died behind those that wait. So that nothing depends on the
    order, no trial is stopped and proposals know of none.
    """
    left_out = {"logged", "time", "train_seconds", "eval_seconds", "peak_memory_bytes"}
    kinds = {"proposed", "reported", "completed", "tested", "failed"}
    return sorted(
        tuple(sorted((k, str(v)) for k, v in event.items() if k not in left_out))
        for event in events(output)
        if event["event"] in kinds
    )


def finished(process: subprocess.Popen[str]) -> None:
    _, stderr = output_of(process)
    assert process.returncode == 0, stderr


@pytest.fixture(scope="module")
def undisturbed(
    bert_folder: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Any, ...]]:
    output = tmp_path_factory.mktemp("undisturbed")
    finished(started(command(bert_folder, reviews, output), output / "cache"))
    told = story(output)
    assert not [event for event in told if ("event", "failed") in event]
    return told


def test_killed_workers_change_nothing(
    bert_folder: Path, reviews: Path, tmp_path: Path, undisturbed: list[tuple[Any, ...]]
) -> None:
    places = {"KILL_AT": " ".join(STAGES), "KILL_MARKS": str(tmp_path)}
    path = f"{Path(__file__).parent / 'killing'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    arguments = command(bert_folder, reviews, tmp_path)
    finished(started(arguments, tmp_path / "cache", PYTHONPATH=path, **places))

    assert story(tmp_path) == undisturbed
    for stage in STAGES:
        assert (tmp_path / "-".join(stage.split(":")[:2])).exists(), stage


def reached(output: Path, since: int, *wanted: str) -> bool:
    """Tell whether there was such an event since there were so many."""
    parts = ("event", "trial", "step")
    lines = [" ".join(str(e[p]) for p in parts if p in e) for e in events(output)[since:]]
    return any(line.startswith(wanted) for line in lines)


def test_ended_drivers_change_nothing(
    bert_folder: Path, reviews: Path, tmp_path: Path, undisturbed: list[tuple[Any, ...]]
) -> None:
    """While codes are made and the reference trains, between rung 0 and rung 1, and in the
    confirmation; by all that ends programs."""
    study = tmp_path / "studies/s"
    resume = [sys.executable, str(ROOT / "run_search.py"), "--resume", str(study)]
    resume += ["--budget", str(BUDGET)]
    arguments, cache = command(bert_folder, reviews, tmp_path), tmp_path / "cache"
    for event, sent in (
        ("progressed", signal.SIGKILL),
        ("reported t001 0", signal.SIGKILL),
        ("reported", signal.SIGTERM),
        ("tested B-FP-s2", signal.SIGINT),
    ):
        before = len(events(tmp_path))
        process = started(arguments, cache)
        until(lambda since=before, of=event: reached(tmp_path, since, of), process)
        process.send_signal(sent)
        stdout, stderr = output_of(process)
        assert process.returncode == (-sent if sent == signal.SIGKILL else 130), stderr
        if sent != signal.SIGKILL:
            assert f"--resume {study} --budget {BUDGET}" in stdout
            assert (study / "trials.parquet").is_file()
        arguments = resume
    finished(started(resume, cache))

    assert story(tmp_path) == undisturbed
