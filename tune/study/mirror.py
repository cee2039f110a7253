"""Keeps a copy of a study's folder in a store, while the study runs and after it."""

import json
import os
import secrets
import socket
import threading
import time
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

from tune.study.config import StudyConfig
from tune.study.events import LOG_NAME
from tune.study.lock import LOCK_FILE
from tune.study.store import Store, short, unusable

PUSH_SECONDS = 5.0
# Small files cost a store's answers, not its bandwidth.
SENDERS = 8
# An owner that has not been heard of for so long is gone: it says so at every push.
SILENT_SECONDS = 3 * PUSH_SECONDS
# What is tried again at the next push needs no patience, and a mistake is told soon.
SHORT_PATIENCE = 5.0
OWNER_FILE = "owner.json"
# What starts need, packed, is made again in seconds where it is missed.
STARTS_END = ".tar"
# Of Ray's own files in a study's folder nothing is needed later.
LEFT_OUT = frozenset({"ray"})
LEFT_OUT_ENDS = (".partial", ".lock", LOCK_FILE, STARTS_END)


class Mirror:
    """Sends what changes in a study's folder, every few seconds and at its end.

    The log is sent last, as it was before all else was: what its events speak of is there when it
    is. A store that fails is tried again, and the study goes on meanwhile.
    """

    def __init__(self, folder: Path, store: Store, tell: Callable[[str], None]) -> None:
        """Send nothing yet.

        Args:
            folder: Of the study.
            store: The study's own.
            tell: Where it is said that a store fails or works again.
        """
        self.store = store
        self._folder, self._tell = folder, tell
        self._hasty = replace(store, patience=SHORT_PATIENCE)
        self._sent: dict[str, tuple[int, int]] = {}
        self._forgotten: list[str] = []
        self._beside: list[Path] = []
        self._failing = self._lost = self._claimed = False
        self._owner = f"process {os.getpid()} on {socket.gethostname()}"
        self._token, self._beat = secrets.token_hex(8), 0
        self._ended = threading.Event()
        self._one_at_a_time = threading.Lock()
        self._thread = threading.Thread(target=self._keep_on, daemon=True)

    def __enter__(self) -> Self:
        """Take the store over, and begin.

        Raises:
            ValueError: Another process works on the study there.
        """
        check_silent(self._hasty)
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
                if self._push(self.store):
                    self.store.remove(OWNER_FILE)
        except OSError as failed:
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
                elif name != OWNER_FILE and not path.is_file() and self.store.fetch(name, path):
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

    def _push(self, store: Store) -> bool:
        """Send what has changed; tell whether the study is still this process's."""
        if self._lost or not self._still_mine(store):
            return False
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
            if version is not None:
                self._send(store, (LOG_NAME, before), version)
        # What is forgotten meanwhile comes behind it.
        while self._forgotten:
            store.remove(self._forgotten[0])
            self._sent.pop(self._forgotten.pop(0), None)
        return True

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

    def _still_mine(self, store: Store) -> bool:
        """Say that this process works on the study, unless another one has said so since."""
        found = owner_of(store)
        if self._claimed and (found is None or found["token"] != self._token):
            self._lost = True
            other = "nobody" if found is None else found["owner"]
            self._tell(
                f"{self.store.uri} belongs to {other} now: nothing more is sent there. What this "
                f"process does is in {self._folder} only"
            )
            return False
        self._beat += 1
        content = {"owner": self._owner, "token": self._token, "beat": self._beat}
        store.write_text(OWNER_FILE, json.dumps(content))
        self._claimed = True
        return True

    def _files(self) -> Iterator[tuple[str, Path]]:
        for path in sorted(self._folder.rglob("*")):
            name = path.relative_to(self._folder)
            made_again = len(name.parts) > 2 and name.parts[0] == "references"
            if name.parts[0] in LEFT_OUT or made_again or str(name) == LOG_NAME:
                continue
            if path.is_file() and not path.name.endswith(LEFT_OUT_ENDS):
                yield name.as_posix(), path
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
    with Mirror(config.folder, Store(config.storage).below(config.name), tell) as mirror:
        yield mirror


def check_silent(store: Store) -> None:
    """Return once it is sure that nobody works on the study of a store.

    Clocks of machines differ: what counts is whether its owner is heard of while one waits.

    Raises:
        ValueError: Somebody does.
    """
    try:
        first = owner_of(store)
        until = time.monotonic() + SILENT_SECONDS
        while first is not None and time.monotonic() < until:
            time.sleep(PUSH_SECONDS / 5)
            now = owner_of(store)
            if now is not None and now != first:
                raise ValueError(
                    f"`--resume` must be a study that nobody works on, got {store.uri!r}, held by "
                    f"{now['owner']}. Wait until it has ended, or end it: nothing is lost."
                )
            first = now
    except OSError as error:
        raise unusable("--storage", store.uri, error) from error


def owner_of(store: Store) -> dict[str, str] | None:
    """Return what the process that works on a study says of itself; None where none does."""
    try:
        found: dict[str, str] = json.loads(store.read_text(OWNER_FILE) or "null")
    except ValueError:
        return None
    return found


def _version(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size
