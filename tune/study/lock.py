"""Keeps two runs of the program from working on one study at once."""

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

from tune.study.events import LOG_NAME

LOCK_FILE = "lock"
LOOKS, LOOK_SECONDS = 5, 0.1
# Where nothing else tells: most studies say more often how far they are.
LATELY_SECONDS = 600.0
# What file systems answer that have no locks, such as some that are mounted over a network.
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a study's folder; the system lets go of it when the process ends, however it ends.

    Among the hosts of a shared folder it holds as far as the file system keeps locks for all of
    them (NFS does). Where it keeps none, that is said, and nothing is held.

    Raises:
        ValueError: Another process holds it.
    """
    with (folder / LOCK_FILE).open("a+", encoding="utf-8") as file:
        try:
            _take(file)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "a process that has just begun"
            raise ValueError(
                f"`--resume` must be a study that nobody works on, got {str(folder)!r}, held by "
                f"{holder}. Wait until it has ended, or end it: nothing is lost."
            ) from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            print(
                f"{folder} can't be locked ({error.strerror}): run the study nowhere else until it "
                "has ended",
                file=sys.stderr,
            )
        file.truncate(0)
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
        file.flush()
        yield


def _take(file: IO[str]) -> None:
    """Take the lock; who only looks whether it is held has it for a moment."""
    for _ in range(LOOKS):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOOK_SECONDS)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(folder: Path) -> bool:
    """Tell whether a process works on a study; where its file system has no locks, whether its log
    has grown of late.
    """
    try:
        with (folder / LOCK_FILE).open("rb") as file:
            # Shared, so that two who ask don't take each other for one who works; and for a moment.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        log = folder / LOG_NAME
        lately = log.is_file() and time.time() - log.stat().st_mtime < LATELY_SECONDS
        return error.errno in UNSUPPORTED and lately
    return False
