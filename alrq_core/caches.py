"""What this machine keeps of models for later studies: how much it is, and what of it may go.

All of it lies in `alrq/` of the hub's cache, is made again when it is missed, and may be deleted at
any time: what a process has mapped stays in its memory.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

PACKED, WEIGHTS, DIGESTS, STORED = "packed", "weights", "digests", "stored"
# Folder -> what lies there; beside them are models that were converted from GGUF.
KINDS = {
    PACKED: "packed weights",
    WEIGHTS: "converted weights",
    DIGESTS: "digests of files",
    STORED: "copies from stores",
}
CONVERTED = "converted models"
# What is kept when a study starts, and of a small disk a quarter of it. Codes of all widths of a
# model of 7 billion parameters take 16 GB.
LIMIT_BYTES, DISK_PART = 50 * 10**9, 0.25


def caches_folder() -> Path:
    """Return the folder of all caches."""
    return Path(constants.HF_HOME) / "alrq"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Something that goes as a whole.

    Attributes:
        path: File or folder.
        kind: What it is, for people.
        size_bytes: On the disk.
        used: When it was last made or read, in seconds since 1970.
    """

    path: Path
    kind: str
    size_bytes: int
    used: float


def entries(folder: Path | None = None) -> list[Entry]:
    """Return all that is kept, what was unused longest first."""
    root = caches_folder() if folder is None else folder
    found = [
        _entry(path, kind)
        for name, kind in KINDS.items()
        for path in _children(root / name)
        # A claim on something that is being made.
        if path.suffix != ".lock"
    ]
    others = (path for path in _children(root) if path.name not in KINDS)
    found += [_entry(path, CONVERTED) for path in others]
    return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.used)


def keep_within(limit_bytes: int, folder: Path | None = None) -> list[Entry]:
    """Remove what was unused longest until the rest fits; return what was removed."""
    removed = []
    kept = entries(folder)
    size = sum(entry.size_bytes for entry in kept)
    for entry in kept:
        if size <= limit_bytes:
            break
        # Windows keeps what a process has mapped.
        with suppress(OSError):
            _remove(entry.path)
            removed.append(entry)
            size -= entry.size_bytes
    return removed


def usual_limit() -> int:
    """Return how many bytes are kept when a study starts."""
    place = next(path for path in (caches_folder(), *caches_folder().parents) if path.exists())
    return min(LIMIT_BYTES, int(DISK_PART * shutil.disk_usage(place).total))


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _entry(path: Path, kind: str) -> Entry | None:
    try:
        parts = [path, *path.rglob("*")] if path.is_dir() else [path]
        size = sum(part.stat().st_size for part in parts if part.is_file())
        return Entry(path=path, kind=kind, size_bytes=size, used=path.stat().st_mtime)
    except OSError:
        # Another process has removed it.
        return None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def mark_used(path: Path) -> None:
    """Note that something was read; without effect where that can't be written."""
    with suppress(OSError):
        os.utime(path)
