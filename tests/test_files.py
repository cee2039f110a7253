"""Files are whole or absent, whoever else writes into their folder, and a cache may be absent."""

import errno
import os
from pathlib import Path

import pytest
from torch import ones

from alrq_core import files
from alrq_core.files import replaced, spared, unwritable, write_json
from alrq_core.weights.tensor_files import read_tensors, write_tensors


def test_two_hosts_with_one_process_id_do_not_share_a_partial_file(tmp_path: Path) -> None:
    """In a shared folder ids of processes, and in containers even the hosts' names, repeat."""
    path = tmp_path / "a.json"
    with replaced(path) as one:
        one.write_text("one")
        with replaced(path) as other:
            other.write_text("other")
            assert one != other
        assert path.read_text() == "other"

    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_partial_file_says_who_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.socket, "gethostname", lambda: "node-7." + 60 * "x")
    with replaced(tmp_path / "a.json") as partial:
        partial.touch()

        assert partial.name.startswith("a.json.node-7.")
        assert f"-{os.getpid()}-" in partial.name
        assert len(partial.name) < 80


def test_what_fails_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object())

    assert (tmp_path / "a.json").read_text() == "1\n"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cache_that_can_not_be_written_is_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"
    for name in ("a.json", "b.json"):
        with spared(folder, "tables"):
            write_json(folder / name, 1)
    said = capsys.readouterr().err

    assert said.count(f"tables can't be kept in {folder}: ") == 1
    assert len(said.splitlines()) == 1


def test_what_is_no_fault_of_the_cache_is_not_spared(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mistake"), spared(tmp_path, "tables"):
        raise ValueError("mistake")


def test_a_folder_is_tried_by_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()

    assert unwritable(tmp_path / "new" / "folder") is None
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    assert unwritable(tmp_path / "file" / "folder") == "Not a directory"

    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", full)
    assert unwritable(tmp_path) == "No space left on device"


@pytest.mark.parametrize("links", [True, False])
def test_a_whole_file_that_others_may_have_mapped_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Also where the file system knows no second names for a file."""
    if not links:

        def refuse(*_: object) -> None:
            raise PermissionError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": ones(3)}, {"of": "one"})
    first = path.stat().st_ino
    write_tensors(path, {"a": ones(3)}, {"of": "one"})
    assert path.stat().st_ino == first

    for tensors, about in (({"a": 2 * ones(3)}, "one"), ({"a": ones(3)}, "two")):
        write_tensors(path, tensors, {"of": about})
        read = read_tensors(path)
        assert read is not None
        assert read[0]["a"].tolist() == tensors["a"].tolist()
        assert read[1]["of"] == about
    path.write_bytes(path.read_bytes()[:-1])
    write_tensors(path, {"a": ones(3)}, {"of": "one"})
    assert read_tensors(path) is not None
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
