"""Keeps what a quantiser made of each weight, in this process and on disk, keyed by content."""

import hashlib
import importlib.metadata
import time
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alrq_core.files import claimed, replaced, spared
from alrq_core.weights.packing import Quantiser
from alrq_core.weights.quantise import quantise
from search_spaces.formats import Format

# What these make of a weight may differ from release to release.
LIBRARIES = ("torch", "bitsandbytes", "hqq")
# Change it when `quantise` makes other tensors of the same weight.
STORED_AS = "2"


def cache_folder() -> Path:
    """Return where packed weights lie: in the hub's cache, safe to delete."""
    return Path(constants.HF_HOME) / "alrq" / "packed"


# Between looks at what another process is making.
WAIT_SECONDS = 0.05


class KeyedMoments(Protocol):
    """Moments of the inputs of modules, with a key of all that they follow from."""

    @property
    def key(self) -> str:
        """Digest of model and text."""
        ...

    def __contains__(self, name: object) -> bool: ...

    def get(self, name: str, /) -> Tensor | None:
        """Return a module's moment; None if it has none."""
        ...


class PackedCache:
    """A quantiser that makes the tensors of each weight and format once a machine.

    Read tensors are maps of their file: all processes of a machine share their memory, and the
    system may drop it. They must not be written; should that happen all the same, their checksum
    no longer fits and they are read anew.

    Attributes:
        made: Weights that were quantised by this object.
        read: Files that were read by it.
    """

    def __init__(
        self, folder: Path, device: torch.device, moments: KeyedMoments | None = None
    ) -> None:
        """Keep files in `folder`, which need not exist, and return tensors on `device`.

        Args:
            folder: Where files lie.
            device: Where tensors are wanted.
            moments: Of the inputs of modules, for formats that are made for them.
        """
        self.made = self.read = 0
        self._moments = moments
        self._folder = folder
        self._device = device
        self._known: dict[str, tuple[dict[str, Tensor], int]] = {}
        # Each with its weight, without which another could get its id.
        self._digests: dict[int, tuple[Tensor, str]] = {}

    def of(self, name: str) -> Quantiser:
        """Return the quantiser of a module's weight, which knows what enters the module."""
        return partial(self, name=name)

    def __call__(self, weight: Tensor, stored: Format, name: str = "") -> dict[str, Tensor]:
        """Return what `quantise` returns, on this cache's device.

        Args:
            weight: On the CPU.
            stored: The format.
            name: Of the module, where its moment matters.
        """
        key = self._key(weight, stored, name)
        known = self._known.get(key)
        if known is None or _checksum(known[0]) != known[1]:
            known = self._read(key) or self._make(key, weight, stored, name)
            self._known[key] = known
        return {name: tensor.to(self._device) for name, tensor in known[0].items()}

    def fill(self, wanted: Iterable[tuple[str, Tensor, Format]]) -> Iterator[tuple[int, int]]:
        """Make all that is not there yet, each once among the processes that do this now.

        Yields how many are there, of how many, before each that is missing: nothing where none is.

        Args:
            wanted: Module, weight and format.
        """
        left = [(self._key(w, stored, name), name, w, stored) for name, w, stored in wanted]
        count = len(left)
        while left:
            busy: list[tuple[str, str, Tensor, Format]] = []
            for place, (key, name, weight, stored) in enumerate(left):
                if self._path(key).is_file():
                    continue
                yield count - len(left) + place - len(busy), count
                with spared(self._folder, "packed weights"), claimed(self._path(key)) as mine:
                    if not mine:
                        busy.append((key, name, weight, stored))
                    elif not self._path(key).is_file():
                        self._known[key] = self._make(key, weight, stored, name)
            left = busy
            time.sleep(WAIT_SECONDS if busy else 0)

    def _key(self, weight: Tensor, stored: Format, name: str) -> str:
        if id(weight) not in self._digests:
            content = weight.detach().contiguous().view(torch.uint8).numpy()
            self._digests[id(weight)] = (weight, hashlib.sha256(content.data).hexdigest())
        what = (self._digests[id(weight)][1], *map(str, weight.shape), self._device.type)
        if stored.method == "gptq" and self._moments is not None and name in self._moments:
            what = (*what, name, self._moments.key)
        how = " ".join((*what, STORED_AS, *_versions()))
        digest = hashlib.sha256(how.encode()).hexdigest()[:40]
        return f"{digest}-{stored.bits}-{stored.method}-{stored.group_size}"

    def _make(
        self, key: str, weight: Tensor, stored: Format, name: str
    ) -> tuple[dict[str, Tensor], int]:
        moment = None
        if stored.method == "gptq" and self._moments is not None:
            moment = self._moments.get(name)
        made = quantise(weight.to(self._device), stored, moment)
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
