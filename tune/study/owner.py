"""Which process works on a study in a store, which has no locks."""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from tune.study.store import Store, unusable

OWNER_FILE = "owner.json"
# An owner says that it is there, and one that has not been heard of for so long is gone.
BEAT_SECONDS = 5.0
SILENT_SECONDS = 3 * BEAT_SECONDS
# What is tried again soon needs no patience, and a mistake is told soon.
SHORT_PATIENCE = 5.0


class Owner:
    """Says every few seconds, also while files are sent, that this process works on a study."""

    def __init__(self, store: Store, tell: Callable[[str], None]) -> None:
        """Say nothing yet.

        Args:
            store: Of the study.
            tell: Told once who works on it instead, after others took this process for dead.
        """
        self._store, self._tell = replace(store, patience=SHORT_PATIENCE), tell
        self._name = f"process {os.getpid()} on {socket.gethostname()}"
        self._token, self._beat = secrets.token_hex(8), 0
        self._lost = self._claimed = False
        self._claiming, self._gone = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._live_on, daemon=True)

    def start(self) -> None:
        """Say so from now on.

        Raises:
            OSError: It can't be said now.
        """
        self.still_mine(self._store)
        self._thread.start()

    def stop(self) -> None:
        """Say so no more."""
        self._gone.set()
        if self._thread.is_alive():
            self._thread.join()

    def leave(self) -> None:
        """Say that nobody works on the study."""
        self.stop()
        if not self._lost:
            self._store.remove(OWNER_FILE)

    def still_mine(self, store: Store) -> bool:
        """Say that this process works on the study, unless another one has said so since."""
        with self._claiming:
            if self._lost:
                return False
            found = owner_of(store)
            if self._claimed and (found is None or found["token"] != self._token):
                self._lost = True
                self._tell("nobody" if found is None else found["owner"])
                return False
            self._beat += 1
            content = {"owner": self._name, "token": self._token, "beat": self._beat}
            store.write_text(OWNER_FILE, json.dumps(content))
            self._claimed = True
            return True

    def _live_on(self) -> None:
        while not self._gone.wait(BEAT_SECONDS):
            with suppress(OSError):
                self.still_mine(self._store)


def check_silent(store: Store) -> dict[str, str] | None:
    """Return what was said last, once it is sure that nobody works on the study of a store.

    Clocks of machines differ: what counts is whether its owner is heard of while one waits.

    Raises:
        ValueError: Somebody does.
    """
    try:
        first = owner_of(store)
        until = time.monotonic() + SILENT_SECONDS
        while first is not None and time.monotonic() < until:
            time.sleep(BEAT_SECONDS / 5)
            now = owner_of(store)
            if now is not None and now != first:
                raise held(store, now)
            first = now
        return first
    except OSError as error:
        raise unusable("--storage", store.uri, error) from error


def held(store: Store, owner: dict[str, str]) -> ValueError:
    """Return what is said of a study that somebody works on."""
    return ValueError(
        f"`--resume` must be a study that nobody works on, got {store.uri!r}, held by "
        f"{owner['owner']}. Wait until it has ended, or end it: nothing is lost."
    )


def owner_of(store: Store) -> dict[str, str] | None:
    """Return what the process that works on a study says of itself; None where none does."""
    try:
        found: dict[str, str] = json.loads(store.read_text(OWNER_FILE) or "null")
    except ValueError:
        return None
    return found
