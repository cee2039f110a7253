"""A study among what real machines have: its own files are used, and its end is an orderly one."""

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.test_ray_study import command
from tests.waiting import HANGS_SECONDS

# Takes the terminal and hears of its end, as a login shell does, whatever the tests were started
# with; takes few open files; then becomes the program.
SHELL = (
    "import fcntl, os, resource, signal, sys, termios; "
    "signal.signal(signal.SIGHUP, signal.SIG_DFL); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)); os.execv(sys.argv[1], sys.argv[1:])"
)
SURROUNDINGS = {
    "RAY_ADDRESS": "127.0.0.1:1",
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "PYTHONIOENCODING": "ascii",
    "TERM": "xterm",
}


def events(study: Path) -> list[dict[str, Any]]:
    log = study / "events.jsonl"
    # Its last line may not be whole yet.
    lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.is_file() else []
    return [json.loads(line) for line in lines]


def ended(study: Path) -> int:
    return sum(event["event"] in ("completed", "stopped", "paused") for event in events(study))


@pytest.fixture(scope="module")
def hung_up(
    bert_folder: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, str]:
    """A study whose terminal was closed: its folder, exit code, and what the terminal showed."""
    place = tmp_path_factory.mktemp("Prüfung 1")
    for name in ("tune", "search_spaces", "run_search", "datasets"):
        (place / f"{name}.py").write_text("raise RuntimeError('the file of somebody else')\n")
    data = shutil.copy(reviews, place / "Über Filme.csv")
    model = shutil.copytree(bert_folder, place / "Modell ü")
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SHELL, *command(model, Path(data), place / "Ergebnisse ä")],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=place,
        env=os.environ | SURROUNDINGS,
        start_new_session=True,
    )
    os.close(terminal)
    study, shown = place / "Ergebnisse ä/studies/s", b""
    deadline = time.monotonic() + HANGS_SECONDS
    while ended(study) < 2 and process.poll() is None and time.monotonic() < deadline:
        if select.select([master], [], [], 0.05)[0]:
            shown += os.read(master, 4096)
    os.close(master)
    reached = ended(study)
    try:
        code = process.wait(timeout=HANGS_SECONDS)
    finally:
        process.kill()
    assert reached >= 2, shown
    return study, code, shown.decode("ascii")


def test_a_closed_terminal_ends_a_study_as_ctrl_c_does(hung_up: tuple[Path, int, str]) -> None:
    study, code, shown = hung_up

    assert code == 130, shown
    assert (study / "trials.parquet").is_file() and (study / "report.html").is_file()


def test_nothing_around_a_study_reaches_its_trials(hung_up: tuple[Path, int, str]) -> None:
    """Files named like our packages, blanks and umlauts, few open files, an address of Ray's, a
    proxy, a terminal for ASCII only."""
    study, _, shown = hung_up
    kinds = [event["event"] for event in events(study)]

    assert "failed" not in kinds and kinds.count("realised") >= 1
    assert "Modell \\xfc" in shown and "running: reference" in shown
