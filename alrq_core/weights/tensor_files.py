"""Keeps tensors in files of a folder, by a key, and checks what it reads."""

import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alrq_core.caches import mark_used
from alrq_core.files import partial_of, placed, spared

CHECKSUM = "crc32"
NOTHING: Mapping[str, str] = {}


class TensorFiles:
    """A folder with one file a key.

    Read tensors are maps of their file: all processes of a machine share their memory, and the
    system may drop it. They must not be written.

    Attributes:
        read: Files that were read.
    """

    def __init__(self, folder: Path, what: str) -> None:
        """Keep files in `folder`, which need not exist.

        Args:
            folder: Where they lie.
            what: They hold, as the subject of a sentence.
        """
        self.read = 0
        self._folder, self._what = folder, what

    def path(self, key: str) -> Path:
        """Return the file of a key."""
        return self._folder / f"{key}.safetensors"

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Return the tensors of a key; None if absent or damaged."""
        read = read_tensors(self.path(key))
        if read is None:
            return None
        self.read += 1
        mark_used(self.path(key))
        return read[0]

    def keep(self, key: str, made: dict[str, Tensor]) -> dict[str, Tensor]:
        """Write the tensors of a key; return what `get` would, or them where they can't be kept."""
        with spared(self._folder, self._what):
            write_tensors(self.path(key), made)
        # The map of the file takes the place of this process's own copy.
        return self.get(key) or made


def write_tensors(
    path: Path, tensors: dict[str, Tensor], about: Mapping[str, str] = NOTHING
) -> None:
    """Write tensors with what is to be known about them into a file, whole or not at all.

    A file that is there and says the same stays: on a network's file system, hosts that have mapped
    it lose what it held once it is replaced.
    """
    plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    told = {**about, CHECKSUM: str(checksum(plain))}
    with partial_of(path) as partial:
        save_file(plain, partial, told)
        if not placed(partial, path) and (read_tensors(path) or ({}, {}))[1] != told:
            partial.replace(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return what `write_tensors` wrote, with the checksum; None if absent or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            names, about = file.keys(), file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError):
        return None
    return (tensors, about) if about.get(CHECKSUM) == str(checksum(tensors)) else None


def checksum(tensors: dict[str, Tensor]) -> int:
    """Return the CRC-32 of the tensors' bytes, in the order of their names."""
    found = 0
    for name in sorted(tensors):
        data = tensors[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        found = zlib.crc32(data, found)
    return found
