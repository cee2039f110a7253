"""Keeps tensors in files of a folder, by a key, and checks what it reads."""

import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alrq_core.files import replaced, spared


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

    def get(self, key: str) -> tuple[dict[str, Tensor], int] | None:
        """Return the tensors of a key and their checksum; None if absent or damaged."""
        try:
            with safe_open(self.path(key), framework="pt") as file:
                names, metadata = file.keys(), file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError):
            return None
        found = int(metadata.get("crc32", -1))
        if checksum(tensors) != found:
            return None
        self.read += 1
        return tensors, found

    def keep(self, key: str, made: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
        """Write the tensors of a key; return what `get` would, or them where they can't be kept."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in made.items()}
        found = checksum(tensors)
        with spared(self._folder, self._what), replaced(self.path(key)) as partial:
            save_file(tensors, partial, metadata={"crc32": str(found)})
        # The map of the file takes the place of this process's own copy.
        return self.get(key) or (tensors, found)


def checksum(tensors: dict[str, Tensor]) -> int:
    """Return the CRC-32 of the tensors' bytes, in the order of their names."""
    found = 0
    for name in sorted(tensors):
        data = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data
        found = zlib.crc32(data, found)
    return found
