"""Tells what a model's files hold by a digest that a machine takes once."""

import hashlib
from functools import lru_cache
from pathlib import Path

from transformers.utils import CONFIG_NAME

from alrq_core.caches import DIGESTS, caches_folder, mark_used
from alrq_core.files import replaced, spared
from alrq_core.models.checks import weight_files


def digests_folder() -> Path:
    """Return where digests lie."""
    return caches_folder() / DIGESTS


def model_digest(folder: Path, name: str) -> str:
    """Return the SHA-256 of a model's configuration and weights.

    Args:
        folder: Of the model.
        name: As given to `--model`, for messages.

    Raises:
        ValueError: A file is missing.
    """
    files = (folder / CONFIG_NAME, *weight_files(folder, name))
    return hashlib.sha256("".join(map(file_digest, files)).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; one of this path, size and time is read once a machine."""
    status = path.stat()
    return _kept_digest(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _kept_digest(path: Path, size: int, time_ns: int) -> str:
    key = hashlib.sha256(f"{path} {size} {time_ns}".encode()).hexdigest()
    kept = digests_folder() / key
    with spared(digests_folder(), "digests of weights"):
        if kept.is_file():
            mark_used(kept)
            return kept.read_text(encoding="ascii")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    with spared(digests_folder(), "digests of weights"), replaced(kept) as partial:
        partial.write_text(found, encoding="ascii")
    return found
