"""A study's copy in a store: whole up to some event, whatever becomes of driver and store."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from search_spaces.allocation import Allocation
from tests.s3 import Server, serving
from tests.simulated import advance, bytes_help, drive, make_study
from tests.waiting import until
from tune.study import mirror, owner
from tune.study.config import STUDY_FILE, StudyConfig
from tune.study.events import LOG_NAME, EventLog
from tune.study.mirror import Mirror
from tune.study.owner import OWNER_FILE, check_silent
from tune.study.store import PATIENCE_SECONDS, Store
from tune.study.stored import check_storage, fetched_study

Tell = Callable[[str], None]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(mirror, "PUSH_SECONDS", 0.1)
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(owner, "SILENT_SECONDS", 3.0)
    monkeypatch.setattr(mirror, "SHORT_PATIENCE", 0.0)
    with serving(monkeypatch) as found:
        yield found


def folder_of_study(tmp_path: Path) -> Path:
    folder = tmp_path / "studies/s"
    folder.mkdir(parents=True)
    (folder / STUDY_FILE).write_text("{}")
    return folder


def store_of(server: Server, patience: float = 5) -> Store:
    return Store(server.uri, patience).below("s")


def front(folder: Path) -> list[Allocation]:
    return [trial.allocation for trial in make_study(folder).state.front()]


def test_a_study_that_is_brought_back_is_the_study(server: Server, tmp_path: Path) -> None:
    folder = folder_of_study(tmp_path)
    (folder / "ray").mkdir()
    for name in ("lock", "ray/log", "x.1.partial", "y.lock"):
        (folder / name).write_text("")
    with Mirror(folder, store_of(server), print) as copied:
        drive(make_study(folder))
        (tmp_path / "results.json").write_text("1")
        copied.add([tmp_path / "results.json", folder / LOG_NAME])
    back = fetched_study(store_of(server).uri, tmp_path / "elsewhere")

    assert back == tmp_path / "elsewhere/studies/s"
    mine = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    theirs = {p.relative_to(back) for p in back.rglob("*") if p.is_file()}
    names = ("lock", "ray/log", "x.1.partial", "y.lock", "optuna.journal")
    left_out = {Path(name) for name in names}
    assert theirs == (mine - left_out) | {Path("results/results.json")}
    for name in mine - left_out:
        assert (back / name).read_bytes() == (folder / name).read_bytes()
    assert front(back) == front(folder)


def test_what_is_copied_in_the_middle_can_be_gone_on_with(server: Server, tmp_path: Path) -> None:
    """Of a driver that is killed no file is left, and its last seconds are not in the store."""
    whole = tmp_path / "whole"
    whole.mkdir()
    drive(make_study(whole), workers=1)
    folder = folder_of_study(tmp_path)
    study, copied = make_study(folder), Mirror(folder, store_of(server), print)
    copied.__enter__()
    drive(study, workers=1, reports=9)
    copied.push()
    drive(study, workers=1, reports=4)
    # Killed: nothing is sent any more.
    copied._ended.set()
    copied._thread.join()
    copied._owner.stop()
    store = store_of(server)
    assert store.read_text(OWNER_FILE) is not None
    shutil.rmtree(folder)
    back = fetched_study(store.uri, tmp_path)
    sent = list(EventLog(back / LOG_NAME).read())
    with Mirror(back, store, print):
        drive(make_study(back), workers=1)

    assert len(sent) >= 9
    assert list(make_study(back).state.trials) == list(make_study(whole).state.trials)
    assert front(back) == front(whole)
    assert store.read_text(OWNER_FILE) is None


def test_every_copy_has_what_its_events_speak_of(server: Server, tmp_path: Path) -> None:
    """Predictions of runs that were scored lie in files of their own."""
    folder = folder_of_study(tmp_path)
    study = make_study(folder, budget=3)
    copies = 0
    with Mirror(folder, store_of(server), print) as copied, closing(study.log):
        while (trial := study.next_trial()) is not None:
            while advance(study, trial, bytes_help):
                pass
            copied.push()
            back = tmp_path / f"back{copies}"
            for name in store_of(server).names():
                store_of(server).fetch(name, back / name)
            list(EventLog(back / LOG_NAME).read())
            copies += 1
    assert copies > 5


@pytest.mark.parametrize("fault", ["failing", "full"])
def test_a_store_that_fails_for_a_while_holds_nothing_up(
    server: Server, tmp_path: Path, fault: str
) -> None:
    folder, told = folder_of_study(tmp_path), []
    with Mirror(folder, store_of(server), told.append):
        study = make_study(folder)
        drive(study, reports=5)
        setattr(server, fault, True)
        until(lambda: len(told) == 1)
        drive(study)
        setattr(server, fault, False)
        until(lambda: len(told) == 2)
    back = fetched_study(store_of(server).uri, tmp_path / "elsewhere")

    assert "fails" in told[0]
    assert "The study goes on, and it is tried again" in told[0]
    assert "works again" in told[1]
    assert front(back) == front(folder)


def test_a_store_that_fails_at_the_end_is_said_with_what_to_do(
    server: Server, tmp_path: Path
) -> None:
    folder, told = folder_of_study(tmp_path), []
    with Mirror(folder, store_of(server, patience=0), told.append):
        drive(make_study(folder))
        server.failing = True
    server.failing = False

    assert f"All of it is in {folder}: go on with it from there to send it" in told[-1]
    with Mirror(folder, store_of(server), told.append):
        pass
    assert front(fetched_study(store_of(server).uri, tmp_path / "b")) == front(folder)


def test_what_is_forgotten_goes_and_what_others_left_comes(server: Server, tmp_path: Path) -> None:
    folder, store = folder_of_study(tmp_path), store_of(server)
    store.write_text("checkpoints/a.pt", "1")
    store.write_text("checkpoints/b.pt", "1")
    store.write_text("references/B-FP-1.tar", "1")
    with Mirror(folder, store, print) as copied:
        copied.forget("checkpoints/a.pt")
        copied.push()
        copied.pull()

    assert store.names() == ["checkpoints/b.pt", STUDY_FILE]
    assert (folder / "checkpoints/b.pt").read_text() == "1"
    assert not (folder / "references").exists()


def test_what_nodes_write_is_newer_than_what_the_driver_has(server: Server, tmp_path: Path) -> None:
    folder, store = folder_of_study(tmp_path), store_of(server)
    store.write_text("checkpoints/a.pt", "new")
    store.write_text("checkpoints/b.pt", "failed")
    store.write_text("receipts/a.json", "old")
    for name in ("checkpoints/a.pt", "receipts/a.json", "references/r/start"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("here")
    with Mirror(folder, store, print, by_nodes=True) as copied:
        copied.push()
        copied.forget("checkpoints/b.pt")
        copied.pull()

    assert (folder / "checkpoints/a.pt").read_text() == "new"
    assert not (folder / "checkpoints/b.pt").exists()
    assert store.names() == ["checkpoints/a.pt", "receipts/a.json", STUDY_FILE]
    assert store.read_text("receipts/a.json") == "here"


@pytest.mark.parametrize("ended", [True, False])
def test_a_study_that_went_on_elsewhere_is_not_overwritten(
    server: Server, tmp_path: Path, ended: bool
) -> None:
    folder = folder_of_study(tmp_path)
    with Mirror(folder, store_of(server), print):
        drive(make_study(folder), reports=6)
    back = fetched_study(store_of(server).uri, tmp_path / "elsewhere")
    with Mirror(back, store_of(server), print):
        drive(make_study(back), reports=10**6 if ended else 2)
    theirs = store_of(server).read_text(LOG_NAME)
    with pytest.raises(ValueError, match="whose log is not the beginning of"):
        Mirror(folder, store_of(server), print).__enter__()

    assert store_of(server).read_text(LOG_NAME) == theirs
    with Mirror(back, store_of(server), print):
        pass


def test_who_sends_for_long_is_not_taken_for_dead(server: Server, tmp_path: Path) -> None:
    folder = folder_of_study(tmp_path)
    for number in range(60):
        (folder / f"{number}").write_text("x")
    with Mirror(folder, store_of(server, patience=60), print) as copied:
        server.delay = 0.3
        pushing = threading.Thread(target=copied.push)
        pushing.start()
        with pytest.raises(ValueError, match="held by process"):
            check_silent(store_of(server))
        assert pushing.is_alive()
        pushing.join()
        server.delay = 0.0


def test_starts_of_other_nodes_do_not_come_with_a_study(server: Server, tmp_path: Path) -> None:
    store = store_of(server)
    store.write_text(STUDY_FILE, "{}")
    store.write_text("references/B-FP-1.tar", "1")
    back = fetched_study(store.uri, tmp_path)

    assert [path.name for path in back.iterdir()] == [STUDY_FILE]


def test_a_study_that_somebody_works_on_is_refused(server: Server, tmp_path: Path) -> None:
    folder = folder_of_study(tmp_path)
    with Mirror(folder, store_of(server), print) as copied:
        copied.push()
        with pytest.raises(ValueError, match="`--resume` must be a study that nobody works on"):
            fetched_study(store_of(server).uri, tmp_path / "elsewhere")
        with pytest.raises(ValueError, match=r"held by process \d+ on"):
            Mirror(folder, store_of(server), print).__enter__()
    assert not (tmp_path / "elsewhere").exists()


def test_who_was_taken_for_dead_sends_nothing_more(server: Server, tmp_path: Path) -> None:
    """As after its network was gone for longer than others waited."""
    folder, told = folder_of_study(tmp_path), []
    first = Mirror(folder, store_of(server), told.append)
    first.push()
    back = fetched_study(store_of(server).uri, tmp_path / "elsewhere")
    second = Mirror(back, store_of(server), print)
    second.push()
    (folder / STUDY_FILE).write_text("old")
    first.push()
    first.push()

    assert store_of(server).read_text(STUDY_FILE) == "{}"
    assert len(told) == 1
    assert "belongs to process" in told[0]


@pytest.mark.parametrize(
    "uri", ["s3://nowhere-at-all/x?endpoint_override={}&scheme=http", "foo://x", "relative/folder"]
)
def test_a_store_that_does_not_work_is_refused_at_once(server: Server, uri: str) -> None:
    config = StudyConfig(name="s", storage=uri.format(server.address))
    started = time.monotonic()
    with pytest.raises(ValueError, match="`--storage` must be a place that can be read and writ"):
        check_storage(config)
    assert time.monotonic() - started < PATIENCE_SECONDS


def test_a_name_that_the_store_has_is_refused(server: Server) -> None:
    check_storage(StudyConfig(name="s", storage=server.uri))
    store_of(server).write_text(STUDY_FILE, "{}")
    with pytest.raises(ValueError, match=r"`--name` must be new, got 's'.*/all/s\?endpoint"):
        check_storage(StudyConfig(name="s", storage=server.uri))
    assert store_of(server).above.names() == [f"s/{STUDY_FILE}"]


def test_what_is_no_study_or_is_here_is_not_brought(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"without study\.json\. Give --storage and --name"):
        fetched_study(store_of(server).uri, tmp_path)
    store_of(server).write_text(STUDY_FILE, "{}")
    folder_of_study(tmp_path)
    with pytest.raises(ValueError, match="must name a study that is not here yet"):
        fetched_study(store_of(server).uri, tmp_path)


def test_pushes_come_one_at_a_time(server: Server, tmp_path: Path) -> None:
    server.delay = 0.05
    folder = folder_of_study(tmp_path)
    with Mirror(folder, store_of(server), print) as copied:
        threads = [threading.Thread(target=copied.push) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        said = store_of(server).read_text(OWNER_FILE) or ""
    assert '"beat"' in said
