"""Keeps what a quantiser made of each weight, in this process and on disk, keyed by content."""

import hashlib
import importlib.metadata
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from alrq_core.caches import PACKED, caches_folder
from alrq_core.files import claimed, spared
from alrq_core.weights.layers import STORAGE_DTYPE
from alrq_core.weights.packing import Quantiser
from alrq_core.weights.quantise import quantise
from alrq_core.weights.tensor_files import TensorFiles
from search_spaces.formats import Format

# What these make of a weight may differ from release to release.
LIBRARIES = ("torch", "bitsandbytes", "hqq")
# Change it when `quantise` makes other tensors of the same weight.
STORED_AS = "3"


def cache_folder() -> Path:
    """Return where packed weights lie."""
    return caches_folder() / PACKED


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

    Weights are told apart by the model's files and by their name in it: none is read for that.

    Attributes:
        made: Weights that were quantised by this object.
        files: Where they lie.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        source: str,
        moments: KeyedMoments | None = None,
    ) -> None:
        """Keep files in `folder`, which need not exist, and return tensors on `device`.

        Args:
            folder: Where files lie.
            device: Where tensors are wanted.
            source: Digest of the files of the model whose weights these are.
            moments: Of the inputs of modules, for formats that are made for them.
        """
        self.made = 0
        self.files = TensorFiles(folder, "packed weights")
        self._source, self._moments = source, moments
        self._folder = folder
        self._device = device
        self._known: dict[str, dict[str, Tensor]] = {}

    def of(self, name: str) -> Quantiser:
        """Return the quantiser of a module's weight, which knows what enters the module."""
        return partial(self, name=name)

    def __call__(self, weight: Tensor, stored: Format, name: str) -> dict[str, Tensor]:
        """Return what `quantise` returns, on this cache's device.

        Args:
            weight: On the CPU.
            stored: The format.
            name: Of the module.
        """
        if stored.method == "plain" and weight.dtype == STORAGE_DTYPE:
            # The model's own file holds it as it is stored.
            return {"codes": weight.detach().to(self._device)}
        key = self.key(weight, stored, name)
        if key not in self._known:
            self._known[key] = self.files.get(key) or self._make(key, weight, stored, name)
        return {name: tensor.to(self._device) for name, tensor in self._known[key].items()}

    def fill(self, wanted: Iterable[tuple[str, Tensor, Format]]) -> Iterator[tuple[int, int]]:
        """Make all that is not there yet, each once among the processes that do this now.

        Yields how many are there, of how many, before each that is missing: nothing where none is.

        Args:
            wanted: Module, weight and format.
        """
        left = [(self.key(w, stored, name), name, w, stored) for name, w, stored in wanted]
        count = len(left)
        while left:
            busy: list[tuple[str, str, Tensor, Format]] = []
            for place, (key, name, weight, stored) in enumerate(left):
                if self.files.path(key).is_file():
                    continue
                yield count - len(left) + place - len(busy), count
                with spared(self._folder, "packed weights"), claimed(self.files.path(key)) as mine:
                    if not mine:
                        busy.append((key, name, weight, stored))
                    elif not self.files.path(key).is_file():
                        self._known[key] = self._make(key, weight, stored, name)
            left = busy
            time.sleep(WAIT_SECONDS if busy else 0)

    def key(self, weight: Tensor, stored: Format, name: str) -> str:
        """Return what the tensors of a weight are known by: all that they follow from."""
        what = (self._source, name, *map(str, weight.shape), self._device.type)
        if stored.method == "gptq" and self._moments is not None and name in self._moments:
            what = (*what, self._moments.key)
        how = " ".join((*what, STORED_AS, *_versions()))
        digest = hashlib.sha256(how.encode()).hexdigest()[:40]
        return f"{digest}-{stored.bits}-{stored.method}-{stored.group_size}"

    def _make(self, key: str, weight: Tensor, stored: Format, name: str) -> dict[str, Tensor]:
        moment = None
        if stored.method == "gptq" and self._moments is not None:
            moment = self._moments.get(name)
        made = quantise(weight.to(self._device), stored, moment)
        self.made += 1
        return self.files.keep(key, made)


@lru_cache(maxsize=1)
def _versions() -> tuple[str, ...]:
    return tuple(map(importlib.metadata.version, LIBRARIES))
