"""What is kept of models is shown, and kept small."""

import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import save_file
from torch import ones

import run_search
from alrq_core import caches
from alrq_core.caches import entries, keep_within, usual_limit
from alrq_core.weights.tensor_files import TensorFiles, write_tensors

DAY = 86_400


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of codes that were used 3 and 1 days ago, and of a model, 2 days ago."""
    monkeypatch.setattr(caches.constants, "HF_HOME", str(tmp_path))
    root = tmp_path / "alrq"
    for name, days in (("packed/old", 3), ("packed/new", 1)):
        path = root / f"{name}.safetensors"
        write_tensors(path, {"codes": ones(1000)})
        used(path, days)
    (root / "smol-1").mkdir()
    save_file({"weight": ones(3000)}, root / "smol-1" / "model.safetensors")
    used(root / "smol-1", 2)
    (root / "packed" / "new.safetensors.lock").touch()
    return root


def used(path: Path, days: float) -> None:
    at = time.time() - days * DAY
    os.utime(path, (at, at))


def test_all_that_is_kept_is_found_the_oldest_first(folder: Path) -> None:
    found = entries()

    assert [entry.path.name for entry in found] == ["old.safetensors", "smol-1", "new.safetensors"]
    assert [entry.kind for entry in found] == [
        "packed weights",
        "converted models",
        "packed weights",
    ]
    assert [round(entry.size_bytes, -3) for entry in found] == [4000, 12000, 4000]


def test_what_was_unused_longest_goes_until_the_rest_fits(folder: Path) -> None:
    assert keep_within(30_000) == []
    removed = keep_within(8_000)

    assert [entry.path.name for entry in removed] == ["old.safetensors", "smol-1"]
    assert not (folder / "smol-1").exists()
    assert [entry.path.name for entry in entries()] == ["new.safetensors"]


def test_to_read_is_to_use(folder: Path) -> None:
    assert TensorFiles(folder / "packed", "codes").get("old") is not None

    assert entries()[-1].path.name == "old.safetensors"


def test_a_small_disk_keeps_a_part(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert 0 < usual_limit() <= caches.LIMIT_BYTES
    monkeypatch.setattr(caches.shutil, "disk_usage", lambda _: SimpleNamespace(total=4000))

    assert usual_limit() == 1000


def test_the_command_shows_and_clears(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_search.main(["--caches"]) == 0
    shown = capsys.readouterr().out
    assert f"{folder} holds 0.02 MB" in shown
    assert re.search(r"packed weights +│ +2 │ 0.01 MB", shown)
    assert run_search.main(["--caches", "10KB"]) == 0
    assert "that were unused longest" in capsys.readouterr().out
    assert run_search.main(["--caches", "0"]) == 0
    assert entries() == []


def test_the_command_stands_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_search.main(["--caches", "--budget", "3"]) == 2
    assert "`--caches` must stand alone" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_search.main(["--caches", "many"])
    assert "`--caches` must be a positive number with a unit" in capsys.readouterr().err
