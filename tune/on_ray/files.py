"""A study's files as a worker sees them: in a folder that all share, or in a store."""

import tarfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import ray

from alrq_core.caches import STORED, caches_folder
from alrq_core.files import partial_path, spared, unpack
from tune.study.store import Store


@dataclass(frozen=True)
class StudyFiles:
    """A folder, and where else its files are written to and read from.

    Attributes:
        folder: Here.
        store: Of the study; None where all workers share the folder.
    """

    folder: Path
    store: Store | None = None

    @staticmethod
    def on_this_node(folder: Path, store: Store | None, began: float) -> "StudyFiles":
        """Return a study's files for a worker: with a store, in a folder of its node's own.

        Args:
            folder: That all share, if they do.
            store: Of the study.
            began: When the study did, by which it is told from others that had its name.
        """
        if store is None:
            return StudyFiles(folder)
        node = ray.get_runtime_context().get_node_id()
        study = sha256(f"{store.uri} {began}".encode()).hexdigest()
        return StudyFiles(caches_folder() / STORED / f"{study[:16]}-{node[:16]}", store)

    def path(self, name: str) -> Path:
        """Return where a file lies here, if it does."""
        return self.folder / name

    def fetch(self, name: str) -> bool:
        """Bring the newest of a file here; tell whether the store has it.

        Raises:
            OSError: It can't be read.
        """
        return self.store is not None and self.store.fetch(name, self.path(name))

    def newest(self, name: str) -> Path | None:
        """Return the newest of a file, here; None if there is none.

        What the store has counts, or while it fails, after saying so, what is here.
        """
        with spared(self.folder, "what a store has that fails"):
            if self.store is not None and not self.fetch(name):
                return None
        return self.path(name) if self.path(name).is_file() else None

    def let_go(self, name: str) -> None:
        """Remove the copy that is here of what a store has."""
        if self.store is not None:
            self.path(name).unlink(missing_ok=True)

    def send(self, name: str) -> None:
        """Hand a file on to other nodes.

        Raises:
            OSError: It can't be written.
        """
        if self.store is not None:
            self.store.send(self.path(name), name)

    def fetch_folder(self, name: str) -> None:
        """Bring a folder here that another node has handed on, where it has.

        Raises:
            OSError: It can't be read.
        """
        if self.fetch(f"{name}.tar"):
            unpack(self.path(f"{name}.tar"), self.path(name).parent)
            self.path(f"{name}.tar").unlink()

    def send_folder(self, name: str) -> None:
        """Hand a folder on, as one file.

        Raises:
            OSError: It can't be written.
        """
        if self.store is None or not self.path(name).is_dir():
            return
        packed = partial_path(self.path(f"{name}.tar"))
        try:
            with tarfile.open(packed, "w") as archive:
                archive.add(self.path(name), arcname=Path(name).name)
            self.store.send(packed, f"{name}.tar")
        finally:
            packed.unlink(missing_ok=True)
