"""Keeps a copy of a study's folder in a store, while the study runs and after it."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from tune.search.journal import STORAGE_NAME
from tune.study.checkpoints import CHECKPOINTS, REFERENCES
from tune.study.config import StudyConfig
from tune.study.events import LOG_NAME
from tune.study.lock import LOCK_FILE
from tune.study.owner import OWNER_FILE, SHORT_PATIENCE, Owner, check_silent
from tune.study.store import Store, short, unusable

PUSH_SECONDS = 5.0
# Small files cost a store's answers, not its bandwidth.
SENDERS = 8
# What starts need, packed, is made again in seconds where it is missed.
STARTS_END = ".tar"
# The log goes by itself, Optuna's journal is made from it, and Ray's files are of no use later.
LEFT_OUT = frozenset({"ray", LOG_NAME, STORAGE_NAME, "results"})
LEFT_OUT_ENDS = (".partial", ".lock", LOCK_FILE, STARTS_END)


class Mirror:
    """Sends what changes in a study's folder, every few seconds and at its end.

    The log is sent last, as it was before all else was: what its events speak of is there when it
    is. A store that fails is tried again, and the study goes on meanwhile.
    """

    def __init__(
        self, folder: Path, store: Store, tell: Callable[[str], None], by_nodes: bool = False
    ) -> None:
        """Send nothing yet.

        Args:
            folder: Of the study.
            store: The study's own.
            tell: Where it is said that a store fails or works again.
            by_nodes: Whether nodes of a cluster write checkpoints and references there, of which
                the folder then has older copies at most.
        """
        self.store = store
        self._by_nodes = by_nodes
        self._folder, self._tell = folder, tell
        self._hasty = replace(store, patience=SHORT_PATIENCE)
        self._sent: dict[str, tuple[int, int]] = {}
        self._forgotten: list[str] = []
        self._beside: list[Path] = []
        self._failing = False
        self._owner = Owner(store, self._lost)
        self._ended = threading.Event()
        self._one_at_a_time = threading.Lock()
        self._thread = threading.Thread(target=self._keep_on, daemon=True)

    def __enter__(self) -> Self:
        """Take the store over, and begin.

        Raises:
            ValueError: Another process works on the study there, or has gone on with it.
        """
        check_silent(self._hasty)
        try:
            self._check_newest()
            self._owner.start()
        except OSError as error:
            raise unusable("--storage", self.store.uri, error) from error
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Send what is left, as patiently as need be."""
        self._ended.set()
        self._thread.join()
        try:
            with self._one_at_a_time:
                self._push(self.store)
            self._owner.leave()
        except OSError as failed:
            self._owner.stop()
            self._tell(
                f"{self.store.uri} lacks what the study did last ({short(failed)}). All of it is "
                f"in {self._folder}: go on with it from there to send it"
            )

    def forget(self, name: str) -> None:
        """Delete a file of the store at the next push."""
        self._forgotten.append(name)

    def add(self, paths: Iterable[Path]) -> None:
        """Send files from beside the folder too, as `results/NAME`."""
        self._beside += [path for path in paths if not path.is_relative_to(self._folder)]

    def push(self) -> None:
        """Send what has changed since the last time, patiently.

        Raises:
            OSError: The store fails.
        """
        with self._one_at_a_time:
            self._push(self.store)

    def pull(self) -> None:
        """Bring here what only the store has: what workers on other nodes have left there."""
        try:
            for name in self.store.names():
                path = self._folder / name
                if name.endswith(STARTS_END):
                    self.forget(name)
                elif name in self._forgotten or name == OWNER_FILE:
                    continue
                elif (_of_nodes(name) or not path.is_file()) and self.store.fetch(name, path):
                    self._sent[name] = _version(path)
        except OSError as error:
            self._tell(f"{self._folder} lacks what only {self.store.uri} has ({short(error)})")

    def _keep_on(self) -> None:
        while not self._ended.wait(PUSH_SECONDS):
            try:
                with self._one_at_a_time:
                    self._push(self._hasty)
                if self._failing:
                    self._failing = False
                    self._tell(f"{self.store.uri} works again, and has all of the study")
            except OSError as error:
                if not self._failing:
                    self._failing = True
                    self._tell(
                        f"{self.store.uri} fails ({short(error)}). The study goes on, and it is "
                        "tried again"
                    )

    def _check_newest(self) -> None:
        """Check that nobody has gone on with the study since it was here.

        Raises:
            ValueError: The store's log is not the beginning of the one here.
            OSError: The store fails.
        """
        log = self._folder / LOG_NAME
        theirs = self._hasty.read_text(LOG_NAME) or ""
        # The end of it may have been half a line, which a crash cut short here.
        whole = theirs[: theirs.rfind("\n") + 1]
        if not (log.read_text(encoding="utf-8") if log.is_file() else "").startswith(whole):
            raise ValueError(
                f"`--storage` must have no other study of this name, nor more of this one, got "
                f"{self.store.uri!r}, whose log is not the beginning of {log}. Go on with "
                f"--resume {self.store.uri!r} and another --output-dir, or give another --storage."
            )

    def _lost(self, other: str) -> None:
        self._tell(
            f"{self.store.uri} belongs to {other} now: nothing more is sent there. What this "
            f"process does is in {self._folder} only"
        )

    def _push(self, store: Store) -> None:
        """Send what has changed, while the study is this process's."""
        if not self._owner.still_mine(store):
            return
        log = self._folder / LOG_NAME
        version = _version(log) if log.is_file() else None
        with TemporaryDirectory() as scratch:
            before = Path(scratch) / LOG_NAME
            if version is not None:
                before.write_bytes(log.read_bytes())
            with ThreadPoolExecutor(SENDERS) as pool:
                try:
                    deque(pool.map(partial(self._send, store), self._files()), maxlen=0)
                except OSError:
                    # The others would fail too.
                    pool.shutdown(cancel_futures=True)
                    raise
            if not self._owner.still_mine(store):
                return
            if version is not None:
                self._send(store, (LOG_NAME, before), version)
        # What is forgotten meanwhile comes behind it.
        while self._forgotten:
            store.remove(self._forgotten[0])
            self._sent.pop(self._forgotten.pop(0), None)

    def _send(
        self, store: Store, file: tuple[str, Path], version: tuple[int, int] | None = None
    ) -> None:
        name, path = file
        # What is removed meanwhile, such as a checkpoint, is needed no more.
        with suppress(FileNotFoundError):
            version = version or _version(path)
            if self._sent.get(name) != version:
                store.send(path, name)
                self._sent[name] = version

    def _files(self) -> Iterator[tuple[str, Path]]:
        """Yield what the store shall have, but for the log."""
        for place, folders, names in os.walk(self._folder):
            folder = Path(place)
            if folder == self._folder:
                folders[:] = [name for name in folders if name not in LEFT_OUT]
            elif folder.name == REFERENCES:
                # What starts need is made again in seconds.
                folders.clear()
            for path in (folder / name for name in names if not name.endswith(LEFT_OUT_ENDS)):
                name = path.relative_to(self._folder).as_posix()
                if name not in LEFT_OUT and not (self._by_nodes and _of_nodes(name)):
                    yield name, path
        for path in self._beside:
            yield f"results/{path.name}", path


@contextmanager
def mirrored(config: StudyConfig, tell: Callable[[str], None]) -> Iterator[Mirror | None]:
    """Keep a copy of a study where its configuration says; nothing where it says nothing.

    Raises:
        ValueError: Another process works on the study there.
    """
    if config.storage is None:
        yield None
        return
    store, by_nodes = Store(config.storage).below(config.name), config.address is not None
    with Mirror(config.folder, store, tell, by_nodes) as mirror:
        yield mirror


def _of_nodes(name: str) -> bool:
    return name.startswith((f"{CHECKPOINTS}/", f"{REFERENCES}/"))


def _version(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size
