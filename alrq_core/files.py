"""Writes files so that nobody ever reads half of one."""

import fcntl
import json
import os
import secrets
import socket
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

PROBE_BYTES = 2**20
_SAID: set[str] = set()


def partial_path(path: Path) -> Path:
    """Return a name beside `path`, for what is not whole yet, that nobody else will take.

    Neither another thread nor another host that shares the folder, where process ids repeat.
    """
    maker = f"{socket.gethostname()[:30]}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f"{path.name}.{maker}.partial")


@contextmanager
def partial_of(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, which is removed at the end if it is still there.

    Each call has its own; the folder is made where there is none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a path to write to, which takes the place of `path` at the end, or is removed."""
    with partial_of(path) as partial:
        yield partial
        partial.replace(path)


def placed(partial: Path, path: Path) -> bool:
    """Give a file its name unless that is taken; tell whether it was free.

    A file system without hard links says that it is taken.
    """
    try:
        os.link(partial, path)
    except OSError:
        return False
    return True


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Tell whether this process is the one that may make a file now; until the end, if so.

    The system lets go of the claim when the process ends, however it ends. The file may have been
    made by another process in the meantime. A file system without locks claims nothing, and
    several processes make the same.
    """
    lock = path.with_name(f"{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        try:
            yield True
        finally:
            lock.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with replaced(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextmanager
def spared(folder: Path, what: str) -> Iterator[None]:
    """Go on where a cache can't be read or written, after saying so once a process.

    Args:
        folder: Of the cache.
        what: It would keep, as the subject of the sentence.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        sentence = f"{what} can't be kept in {folder}"
        if sentence not in _SAID:
            _SAID.add(sentence)
            print(f"{sentence}: {error}", file=sys.stderr)


def unwritable(folder: Path) -> str | None:
    """Return why nothing can be written into a folder, which is made; None where it can be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # An empty file can be made on a full disk.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def unpack(archive: Path | IO[bytes], folder: Path) -> None:
    """Unpack a tar archive below a folder; nothing in it lands elsewhere, or is owned by others."""
    source = {"name": archive} if isinstance(archive, Path) else {"fileobj": archive}
    with tarfile.open(**source) as opened:
        # Python before 3.11.4 has no filters. Archives are our own.
        known: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        opened.extractall(folder, **known)
