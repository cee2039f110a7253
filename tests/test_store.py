"""Files in a store: whole or not at all, in S3 and in a folder alike, whatever goes wrong."""

import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3 import Server, serving
from tune.study.store import PATIENCE_SECONDS, Store


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(monkeypatch) as found:
        yield found


@pytest.fixture(params=["s3", "folder"])
def store(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Store:
    return Store(server.uri if request.param == "s3" else str(tmp_path / "store"), patience=3)


def test_what_is_sent_comes_back_and_is_listed(store: Store, tmp_path: Path) -> None:
    for content in (b"", b"a" * 3 * 2**20, b"b"):
        (tmp_path / "here").write_bytes(content)
        store.send(tmp_path / "here", "deep/down/x.bin")

        assert store.fetch("deep/down/x.bin", tmp_path / "new/back")
        assert (tmp_path / "new/back").read_bytes() == content
    store.write_text("y", "text")
    assert store.names() == ["deep/down/x.bin", "y"]
    assert store.read_text("y") == "text"
    assert store.below("deep").names() == ["down/x.bin"]
    assert store.below("deep").below("down").above.names() == ["down/x.bin"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["back"]


def test_what_is_not_there_is_no_error(store: Store, tmp_path: Path) -> None:
    assert store.names() == []
    assert not store.fetch("x", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert store.read_text("x") is None
    store.remove("x")
    store.write_text("x", "")
    store.remove("x")
    assert store.names() == []


def test_it_goes_to_other_processes(store: Store) -> None:
    store.write_text("x", "1")

    assert pickle.loads(pickle.dumps(store)).read_text("x") == "1"


def test_a_slow_store_is_waited_for(server: Server) -> None:
    server.delay = 0.5
    Store(server.uri).write_text("x", "1")

    assert Store(server.uri).read_text("x") == "1"


def test_a_store_that_fails_for_a_while_is_tried_again(server: Server) -> None:
    server.failing = True
    threading.Timer(3.0, lambda: setattr(server, "failing", False)).start()
    Store(server.uri).write_text("x", "1")

    assert Store(server.uri).read_text("x") == "1"
    assert server.requests > 4


@pytest.mark.parametrize("fault", ["failing", "full"])
def test_a_store_that_stays_so_is_an_error_and_nothing_half(server: Server, fault: str) -> None:
    store = Store(server.uri, patience=1)
    store.write_text("x", "1")
    setattr(server, fault, True)
    started = time.monotonic()
    with pytest.raises(OSError, match=r"SLOW_DOWN|Full"):
        store.write_text("x", "2")

    assert time.monotonic() - started < PATIENCE_SECONDS
    setattr(server, fault, False)
    assert store.read_text("x") == "1"


def test_a_folder_keeps_what_it_had_where_writing_fails(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"), patience=0)
    store.write_text("x", "1")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        store.send(tmp_path / "folder", "x")

    assert store.read_text("x") == "1"
    assert store.names() == ["x"]
