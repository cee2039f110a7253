"""Keeps what a quantiser made of each weight, in this process and on disk, keyed by content."""

import hashlib
import importlib.metadata
import zlib
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alrq_core.files import replaced, spared
from alrq_core.weights.quantise import quantise
from search_spaces.formats import Format

# What these make of a weight may differ from release to release.
LIBRARIES = ("torch", "bitsandbytes", "hqq")
# Change it when `quantise` makes other tensors of the same weight.
STORED_AS = "2"


def cache_folder() -> Path:
    """Return where packed weights lie: in the hub's cache, safe to delete."""
    return Path(constants.HF_HOME) / "alrq" / "packed"


class PackedCache:
    """A quantiser that makes the tensors of each weight and format once a machine.

    Read tensors are maps of their file: all processes of a machine share their memory, and the
    system may drop it. They must not be written; should that happen all the same, their checksum
    no longer fits and they are read anew.

    Attributes:
        made: Weights that were quantised by this object.
        read: Files that were read by it.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Keep files in `folder`, which need not exist, and return tensors on `device`."""
        self.made = self.read = 0
        self._folder = folder
        self._device = device
        self._known: dict[str, tuple[dict[str, Tensor], int]] = {}
        # Each with its weight, without which another could get its id.
        self._digests: dict[int, tuple[Tensor, str]] = {}

    def __call__(self, weight: Tensor, stored: Format) -> dict[str, Tensor]:
        """Return what `quantise` returns, on this cache's device; the weight is on the CPU."""
        key = self._key(weight, stored)
        known = self._known.get(key)
        if known is None or _checksum(known[0]) != known[1]:
            known = self._read(key) or self._make(key, weight, stored)
            self._known[key] = known
        return {name: tensor.to(self._device) for name, tensor in known[0].items()}

    def _key(self, weight: Tensor, stored: Format) -> str:
        if id(weight) not in self._digests:
            content = weight.detach().contiguous().view(torch.uint8).numpy()
            self._digests[id(weight)] = (weight, hashlib.sha256(content.data).hexdigest())
        what = (self._digests[id(weight)][1], *map(str, weight.shape), self._device.type)
        how = " ".join((*what, STORED_AS, *_versions()))
        digest = hashlib.sha256(how.encode()).hexdigest()[:40]
        return f"{digest}-{stored.bits}-{stored.method}-{stored.group_size}"

    def _make(self, key: str, weight: Tensor, stored: Format) -> tuple[dict[str, Tensor], int]:
        made = quantise(weight.to(self._device), stored)
        self.made += 1
        tensors = {name: tensor.cpu().contiguous() for name, tensor in made.items()}
        checksum = _checksum(tensors)
        with spared(self._folder, "packed weights"), replaced(self._path(key)) as partial:
            save_file(tensors, partial, metadata={"crc32": str(checksum)})
        # The map of the file takes the place of this process's own copy.
        return self._read(key) or (tensors, checksum)

    def _read(self, key: str) -> tuple[dict[str, Tensor], int] | None:
        """Return the tensors of a file and their checksum; None if it is absent or damaged."""
        try:
            with safe_open(self._path(key), framework="pt") as file:
                names, metadata = file.keys(), file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError):
            return None
        checksum = int(metadata.get("crc32", -1))
        if _checksum(tensors) != checksum:
            return None
        self.read += 1
        return tensors, checksum

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"


@lru_cache(maxsize=1)
def _versions() -> tuple[str, ...]:
    return tuple(map(importlib.metadata.version, LIBRARIES))


def _checksum(tensors: dict[str, Tensor]) -> int:
    checksum = 0
    for name in sorted(tensors):
        data = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data
        checksum = zlib.crc32(data, checksum)
    return checksum
