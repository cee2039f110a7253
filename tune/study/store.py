"""Files in any file system that pyarrow reads, for machines that share no folder."""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from pyarrow import fs

from alrq_core.files import partial_path, replaced

# How long what fails is tried again: a network that is gone for a while, a store that is overrun.
PATIENCE_SECONDS = 120.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.25, 10.0
# They have no folders, and a file appears there once it is whole.
OBJECTS = frozenset({"s3", "gcs"})
T = TypeVar("T")


@dataclass(frozen=True)
class Store:
    """A folder of any file system.

    Attributes:
        uri: Such as `s3://bucket/folder`, `gs://bucket/folder`, or the path of a folder.
        patience: Seconds for which what fails is tried again.
    """

    uri: str
    patience: float = PATIENCE_SECONDS

    @property
    def above(self) -> "Store":
        """The store whose folder this one is."""
        head, mark, query = self.uri.partition("?")
        return replace(self, uri=head.rstrip("/").rpartition("/")[0] + mark + query)

    def below(self, name: str) -> "Store":
        """Return the store of a folder in this one."""
        head, mark, query = self.uri.partition("?")
        return replace(self, uri=f"{head.rstrip('/')}/{name}{mark}{query}")

    def send(self, path: Path, name: str) -> None:
        """Write a file of this machine there, whole or not at all.

        Raises:
            OSError: It can't be written, nor later.
        """
        self._tried(lambda: self._send(path, name))

    def fetch(self, name: str, path: Path) -> bool:
        """Write a file from there on this machine, whole or not at all; tell whether it is there.

        Raises:
            OSError: It can't be read, nor later.
        """

        def fetch() -> None:
            source = self._files.open_input_stream(self._path(name))
            with source, replaced(path) as partial, partial.open("wb") as file:
                shutil.copyfileobj(source, file, 2**20)

        try:
            self._tried(fetch)
        except FileNotFoundError:
            return False
        return True

    def write_text(self, name: str, text: str) -> None:
        """Write a small file, as `send` does."""
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / "text"
            path.write_text(text, encoding="utf-8")
            self.send(path, name)

    def read_text(self, name: str) -> str | None:
        """Return what a small file holds, None if there is none; see `fetch`."""
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / "text"
            return path.read_text(encoding="utf-8") if self.fetch(name, path) else None

    def names(self) -> list[str]:
        """Return the names of all files that are there, those in folders too.

        Raises:
            OSError: They can't be listed, nor later.
        """
        root = self._place[1].rstrip("/")
        selector = fs.FileSelector(root, allow_not_found=True, recursive=True)
        found = self._tried(lambda: self._files.get_file_info(selector))
        files = [info.path for info in found if info.type == fs.FileType.File]
        return sorted(path.removeprefix(f"{root}/") for path in files)

    def remove(self, name: str) -> None:
        """Delete a file, where there is one.

        Raises:
            OSError: It can't be deleted, nor later.
        """
        with suppress(FileNotFoundError):
            self._tried(lambda: self._files.delete_file(self._path(name)))

    def _send(self, path: Path, name: str) -> None:
        target = self._path(name)
        objects = self._files.type_name in OBJECTS
        partial = target if objects else str(partial_path(Path(target)))
        if not objects:
            self._files.create_dir(str(Path(target).parent), recursive=True)
        try:
            with path.open("rb") as file, self._files.open_output_stream(partial) as sink:
                shutil.copyfileobj(file, sink, 2**20)
            if not objects:
                self._files.move(partial, target)
        except BaseException:
            if not objects:
                with suppress(OSError):
                    self._files.delete_file(partial)
            raise

    def _path(self, name: str) -> str:
        return f"{self._place[1].rstrip('/')}/{name}"

    @property
    def _files(self) -> fs.FileSystem:
        return self._place[0]

    @cached_property
    def _place(self) -> tuple[fs.FileSystem, str]:
        found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(self.uri)
        return found

    def _tried(self, action: Callable[[], T]) -> T:
        until, wait = time.monotonic() + self.patience, FIRST_WAIT_SECONDS
        while True:
            try:
                return action()
            except FileNotFoundError:
                raise
            except OSError:
                if time.monotonic() + wait > until:
                    raise
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)


def short(error: Exception) -> str:
    """Return what an error says, in one line that is not too long."""
    return " ".join(str(error).split())[:200].removesuffix(".")


def unusable(flag: str, uri: str, error: Exception) -> ValueError:
    """Return what is said of a store that does not work."""
    return ValueError(
        f"`{flag}` must be a place that can be read and written, as pyarrow names it (such as "
        f"s3://bucket/folder, gs://bucket/folder or /a/folder), got {uri!r} ({short(error)}). "
        "Check its name, the keys (such as AWS_ACCESS_KEY_ID) and the network."
    )
