"""One study, one run at a time; a run that was killed keeps nobody out."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

import run_search
from tune.study.config import STUDY_VERSION, StudyConfig
from tune.study.events import LOG_NAME
from tune.study.lock import LOCK_FILE, is_held, locked

HOLD = "import sys; from pathlib import Path; from tune.study.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_second_run_is_refused_and_told_who_holds_the_study(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refusal = rf"nobody works on.*held by process {holder.pid} on .+ since 20.*Wait until"
        with pytest.raises(ValueError, match=refusal), locked(tmp_path):
            raise AssertionError
        holder.kill()

    with locked(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text().count("process") == 1


def test_it_can_be_held_again_after_its_end(tmp_path: Path) -> None:
    for _ in range(2):
        refused = pytest.raises(ValueError, match="nobody works on")
        with locked(tmp_path), refused, locked(tmp_path):
            raise AssertionError


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without_locks)
    with locked(tmp_path):
        assert not is_held(tmp_path)
        (tmp_path / LOG_NAME).touch()
        assert is_held(tmp_path)
        os.utime(tmp_path / LOG_NAME, (0, 0))
        assert not is_held(tmp_path)

    assert "can't be locked (No locks available): run the study nowhere" in capsys.readouterr().err


def test_a_study_that_runs_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known at once: Ray isn't started for it."""
    monkeypatch.delattr("tune.on_ray.cluster.ray_started")
    folder = StudyConfig(output_dir=str(tmp_path), name="s").folder
    folder.mkdir(parents=True)
    config = StudyConfig(output_dir=str(tmp_path), name="s").to_json()
    (folder / "study.json").write_text(json.dumps({"version": STUDY_VERSION, "config": config}))
    with locked(folder):
        assert run_search.main(["--resume", str(folder)]) == 2

    assert "`--resume` must be a study that nobody works on" in capsys.readouterr().err


def test_a_new_study_is_held_until_its_results_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "studies/s"

    def held(*_: object) -> int:
        with pytest.raises(ValueError, match="nobody works on"), locked(folder):
            raise AssertionError
        return 7

    monkeypatch.setattr("tune.on_ray.cluster.ray_started", lambda *_: nullcontext())
    monkeypatch.setattr("tune.on_ray.run.run_study", held)
    monkeypatch.setattr("tune.report.finish.finish", held)
    monkeypatch.setattr(run_search, "_prepared", lambda config, *_: SimpleNamespace(config=config))
    monkeypatch.setattr(run_search, "_report", held)

    assert run_search.main(["--output-dir", str(tmp_path), "--name", "s"]) == 7
    with locked(folder):
        pass
