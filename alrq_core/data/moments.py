"""The second moments of what enters each module, on calibration text."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from alrq_core.data.encode import Batch
from alrq_core.models.streamed import streamed

# Module name -> mean of x x^T over the tokens x that enter the module, in x in, float32. Modules
# that read the same input share one tensor.
Moments = Mapping[str, Tensor]


class InputMoments(Moments):
    """The moments of a model's modules, computed when they are asked for, a part at a time.

    Attributes:
        key: Digest of the model and of the text: what the moments follow from.
    """

    def __init__(
        self,
        base: nn.Module,
        source: str,
        modules: Mapping[str, str],
        batches: Callable[[], Sequence[Batch]],
        device: torch.device,
        held_bytes: int,
    ) -> None:
        """Compute nothing yet.

        Args:
            base: The pretrained model; it is left as it was.
            source: Digest of its files.
            modules: Name to the linear layer of `base` whose inputs are meant, in the order of the
                forward pass. They differ for an embedding and the output head that shares it.
            batches: Returns the calibration data.
            device: Where the model runs and the moments stay.
            held_bytes: How much may be held; a single module may take more.
        """
        self._base, self._modules, self._batches = base, modules, batches
        self._device, self._source, self._held_bytes = device, source, held_bytes
        self._held: Moments = {}

    @cached_property
    def key(self) -> str:
        """Digest of the model's files and of the calibration data."""
        digest = hashlib.sha256(self._source.encode())
        for batch in self._batches():
            _add(digest, batch.input_ids)
            _add(digest, batch.attention_mask)
        return digest.hexdigest()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._modules:
            raise KeyError(name)
        if name not in self._held:
            part = self._part(name)
            # The part before goes first.
            self._held = {}
            layers = dict.fromkeys(self._modules[other] for other in part)
            found = second_moments(self._base, layers, self._batches(), self._device)
            self._held = {other: found[self._modules[other]] for other in part}
        return self._held[name]

    def forget(self) -> None:
        """Let go of what is held; it is computed again when it is asked for."""
        self._held = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def _part(self, name: str) -> list[str]:
        """Return the modules that are computed along with one, itself included."""
        parts: list[list[str]] = [[]]
        size = 0
        for other, layer in self._modules.items():
            own = 4 * self._base.get_submodule(layer).get_parameter("weight").shape[1] ** 2
            if size + own > self._held_bytes and parts[-1]:
                parts.append([])
                size = 0
            size += own
            parts[-1].append(other)
        return next(part for part in parts if name in part)


def _add(digest: "hashlib._Hash", tensor: Tensor) -> None:
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(data.numpy().data)


@dataclass(frozen=True, eq=False)
class _Sum:
    outer: Tensor
    tokens: int


class _AllSeenError(Exception):
    """Ends a forward pass in which nothing more is wanted."""


class _InputSums:
    """Sums x x^T over the inputs of modules, from hooks on them.

    Attributes:
        mask: Attention mask of the batch that runs.
        of: Sum of each module so far. Modules with the same inputs hold the same object.
    """

    def __init__(self) -> None:
        self.of: dict[str, _Sum] = {}
        # Modules that ran in this batch. The first batch goes to its end, and tells the last one.
        self._ran: list[str] = []
        self._end: tuple[str, int] | None = None

    def start(self, batch: Batch) -> None:
        """Expect the inputs of a batch."""
        if self._ran and self._end is None:
            self._end = self._ran[-1], self._ran.count(self._ran[-1])
        self._ran = []
        self.mask = batch.attention_mask.flatten().bool()
        self._last: tuple[Tensor | None, _Sum | None, _Sum | None] = (None, None, None)

    def add(self, name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Add the input of a module; called before its forward pass.

        Raises:
            _AllSeenError: It was the last one of the batch.
        """
        x, before = args[0], self.of.get(name)
        seen, earlier, after = self._last
        # Query, key and value get one tensor, one after the other, batch after batch.
        if after is None or x is not seen or before is not earlier:
            after = self._extended(before, x)
            self._last = (x, before, after)
        self.of[name] = after
        self._ran.append(name)
        if self._end == (name, self._ran.count(name)):
            raise _AllSeenError

    def _extended(self, before: _Sum | None, x: Tensor) -> _Sum:
        rows = x.reshape(-1, x.shape[-1]).float()
        if len(rows) == len(self.mask):
            rows = rows[self.mask]
        outer = rows.T @ rows
        if before is None:
            return _Sum(outer, len(rows))
        return _Sum(before.outer + outer, before.tokens + len(rows))


def second_moments(
    base: nn.Module, names: Iterable[str], batches: Iterable[Batch], device: torch.device
) -> Moments:
    """Return the uncentred second moment of the input of each named module, X^T X / tokens.

    Padding is left out. A module whose input has no row for each token of the batch, such as a
    pooled vector, counts all its rows. What comes after the last of the modules is not computed.

    Args:
        base: The pretrained model; it is left as it was.
        names: Linear layers of `base`.
        batches: Calibration data.
        device: Where the model runs and the moments stay.

    Raises:
        ValueError: A module is no linear layer, or got no input.
    """
    model = streamed(base, device).eval()
    modules = {name: model.get_submodule(name) for name in names}
    sums = _InputSums()
    for name, module in modules.items():
        module.register_forward_pre_hook(partial(sums.add, name))
    for batch in batches:
        moved = batch.to(device)
        sums.start(moved)
        with torch.no_grad(), suppress(_AllSeenError):
            model(input_ids=moved.input_ids, attention_mask=moved.attention_mask)
    for name, module in modules.items():
        if name not in sums.of or not isinstance(module, nn.Linear):
            raise ValueError(
                f"`names` must be linear layers that run on `batches`, got {name} "
                f"({type(module).__name__}). Leave it out."
            )
    # In place: they take as much memory as is held.
    totals = {id(total): total for total in sums.of.values()}
    means = {key: total.outer.div_(total.tokens) for key, total in totals.items()}
    return {name: means[id(sums.of[name])] for name in modules}
