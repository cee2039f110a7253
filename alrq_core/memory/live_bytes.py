"""Follows how many bytes live tensors hold, from the operations that make them."""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_SOFTMAX = (
    torch.ops.aten._softmax.default,
    torch.ops.aten._softmax_backward_data.default,
    torch.ops.aten._log_softmax.default,
    torch.ops.aten._log_softmax_backward_data.default,
)


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of all storages that are made under it, until they are freed.

    A view and the result of an operation in place have the storage of another tensor and add
    nothing.

    Attributes:
        live: Bytes that are held now.
        peak: The most that were held at once.
        largest: Bytes, shape and type of the largest tensor.
    """

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()
        self.live = self.peak = 0
        self.largest: tuple[int, tuple[int, ...], torch.dtype] = (0, (), torch.float32)
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count what it makes."""
        if func is torch.ops.aten._local_scalar_dense.default:
            # Fake tensors have no values: a model that asks for one is told yes, or one.
            return True if args[0].dtype == torch.bool else 1
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            # Tensors of the meta device have no memory anywhere.
            if tensor.device.type != "meta":
                self._add(tensor)
        self.peak = max(self.peak, self.live + _scratch_bytes(func, args))
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        if size > self.largest[0]:
            self.largest = (size, tuple(tensor.shape), tensor.dtype)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _scratch_bytes(func: Any, args: Iterable[Any]) -> int:
    """Return the bytes of tensors that the kernel of an operation makes and frees inside of it.

    torch's softmax copies inputs that are not contiguous (aten/src/ATen/native/SoftMax.cpp,
    `input_.contiguous()`): the logits of a language model, whose loss is over their middle axis.
    """
    if func not in _SOFTMAX:
        return 0
    copied = [tensor for tensor in _tensors(args) if not tensor.is_contiguous()]
    return sum(tensor.numel() * tensor.element_size() for tensor in copied)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]
