"""Pretends that a machine has an accelerator: values on the CPU under the label of another device.

Fake tensors of torch have no values, and its autograd ends a process that shows it one of a device
that torch was built without. Here every storage has a label. Mixed devices, types and functions
that a device lacks raise as they do there, and whoever asks a tensor for its device gets its label.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchgen
from torch import Tensor
from torch.autograd import Variable
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torchgen.gen import parse_native_yaml
from torchgen.model import DispatchKey, NativeFunction

from alrq_core.memory import machine

CPU = torch.device("cpu")
TO_NUMPY = (Tensor.numpy, Tensor.__array__)
MOVES = (Tensor.to, Tensor.cpu)
READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
GROUPER = "_group_tensors_by_device_and_dtype"
# What torch calls on a CPU where each accelerator has a function of its own.
OF_THE_CPU = "_for_cpu"


class Labels:
    """Where each storage pretends to be; those without a label are on the CPU.

    Attributes:
        kind: Type of the accelerator.
        random_state: Of its generator of random numbers.
        waits: What made the processor wait until the accelerator had done all its work.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.random_state = torch.get_rng_state()
        self.waits: list[str] = []
        self._of: dict[int, torch.device] = {}

    def __len__(self) -> int:
        """Number of storages on the accelerator."""
        return len(self._of)

    def of(self, tensor: Tensor) -> torch.device:
        if tensor.device.type == "meta":
            return tensor.device
        return self._of.get(tensor.untyped_storage()._cdata, CPU)

    def seed(self, seed: int) -> torch.Generator:
        generator = torch.Generator().manual_seed(seed)
        self.random_state = generator.get_state()
        return torch.default_generator.manual_seed(seed)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw from the accelerator's generator."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.random_state)
        yield
        self.random_state = torch.get_rng_state()
        torch.set_rng_state(before)

    @contextmanager
    def without_waits(self) -> Iterator[None]:
        """Fail where the processor waits for the accelerator."""
        self.waits.clear()
        yield
        assert not self.waits, self.waits

    def put(self, tensor: Tensor, device: torch.device) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if device == CPU:
            self._of.pop(key, None)
        elif tensor.device.type != "meta" and key not in self._of:
            # What is made on `cuda` says that it lies on `cuda:0`.
            self._of[key] = torch.device(self.kind, 0)
            weakref.finalize(storage, self._of.pop, key, None)


class _Calls(TorchFunctionMode):
    """Moves tensors by their labels, and answers where they are."""

    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self._labels = labels

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return self._labels.of(args[0])
        if func in TO_NUMPY and self._labels.of(args[0]) != CPU:
            raise TypeError(f"can't convert a tensor of {self._labels.of(args[0])} to numpy")
        if func is Tensor.pin_memory:
            return args[0]
        if func in MOVES:
            return self._moved(func, *args, **options)
        if func is Tensor.backward:
            return self._backward(args[0])
        device = options.get("device")
        if device is None or torch.device(device).type != self._labels.kind:
            return func(*args, **options)
        made = func(*args, **options | {"device": CPU})
        for tensor in _tensors(made):
            self._labels.put(tensor, torch.device(device))
        return made

    def _backward(self, loss: Tensor) -> None:
        """Go backward within this mode, for what is written in Python; torch would leave it."""
        with self:
            Variable._execution_engine.run_backward(
                (loss,),
                (torch.ones_like(loss),),
                keep_graph=False,
                create_graph=False,
                inputs=(),
                allow_unreachable=True,
                accumulate_grad=True,
            )

    def _moved(self, func: Any, tensor: Tensor, *args: Any, **options: Any) -> Tensor:
        target, others = self._target(func, tensor, args, options)
        if target is None or target.type == "meta" or tensor.device.type == "meta":
            return func(tensor, *args, **options)  # type: ignore[no-any-return]
        if target.type == self._labels.of(tensor).type:
            return Tensor.to(tensor, **others)
        if not options.get("non_blocking"):
            self._labels.waits.append(f"{self._labels.of(tensor)} to {target}")
        # A storage of its own.
        moved = Tensor.to(tensor, **others).clone()
        self._labels.put(moved, target)
        return moved

    def _target(
        self, func: Any, tensor: Tensor, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[torch.device | None, dict[str, Any]]:
        """Return where a tensor shall move, and what else `to` shall do."""
        if func is Tensor.cpu:
            return CPU, {"dtype": tensor.dtype}
        for like in (*args, *options.values()):
            if isinstance(like, Tensor):
                return self._labels.of(like), {"dtype": like.dtype}
        parsed = {name: value for name, value in options.items() if name != "copy"}
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **parsed)
        return device, {"dtype": dtype or tensor.dtype, "copy": options.get("copy", False)}


class _Operations(TorchDispatchMode):
    """Checks the labels of each operation, and gives its results theirs."""

    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self._labels = labels

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        with torch._C.DisableTorchFunction():
            inputs = _tensors((args, options))
            place = self._place(func, inputs)
            known = {tensor.untyped_storage()._cdata for tensor in inputs}
            draws = place != CPU and torch.Tag.nondeterministic_seeded in func.tags
            if place != CPU and func in READS:
                self._labels.waits.append(str(func))
            with self._labels.drawing() if draws else nullcontext():
                result = func(*args, **options)
            for tensor in _tensors(result):
                if tensor.untyped_storage()._cdata not in known:
                    self._labels.put(tensor, place)
                if self._labels.of(tensor).type == "mps" and tensor.dtype == torch.float64:
                    raise TypeError(f"{func} made a float64 tensor, which MPS doesn't have")
        return result

    def _place(self, func: Any, inputs: list[Tensor]) -> torch.device:
        """Return where an operation runs."""
        places = [self._labels.of(tensor) for tensor in inputs]
        # A single number on the CPU goes with everything.
        found = {p for p, x in zip(places, inputs, strict=True) if x.dim() or p != CPU}
        if func is torch.ops.aten.copy_.default:
            return places[0]
        if len(found) > 1:
            where = ", ".join(sorted(map(str, found)))
            raise RuntimeError(f"{func} got tensors on several devices: {where}")
        place = found.pop() if found else CPU
        if place.type == "mps" and func.namespace == "aten" and not _on_mps(func):
            raise NotImplementedError(f"{func} is not implemented for MPS")
        return place


@cache
def _on_mps(func: Any) -> bool:
    """Tell whether torch has a function for MPS, by its own list."""
    functions, names = _native()
    known = functions.get(f"{func._schema.name}.{func._schema.overload_name}".rstrip("."))
    return OF_THE_CPU in func._schema.name or known is None or names(known)


@cache
def _native() -> tuple[dict[str, NativeFunction], Callable[[NativeFunction], bool]]:
    folder = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native"
    parsed = parse_native_yaml(str(folder / "native_functions.yaml"), str(folder / "tags.yaml"))
    functions = {f"aten::{function.func.name}": function for function in parsed.native_functions}
    kernels = parsed.backend_indices[DispatchKey.MPS]

    def has_kernel(function: NativeFunction) -> bool:
        delegate = function.structured_delegate
        return (
            function.has_composite_explicit_autograd_kernel
            or function.has_composite_implicit_autograd_kernel
            or function.has_composite_explicit_autograd_non_functional_kernel
            or kernels.has_kernel(function)
            or (delegate is not None and has_kernel(functions[f"aten::{delegate}"]))
        )

    return functions, has_kernel


@contextmanager
def pretended(kind: str) -> Iterator[Labels]:
    """Let torch and this project find an accelerator of type `cuda` or `mps`."""
    labels, module = Labels(kind), getattr(torch, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "found_devices", lambda: (kind, "cpu"))
        patch.setattr(torch, "autocast", _on_cpu(torch.autocast))
        patch.setattr(torch, "is_autocast_enabled", _on_cpu(torch.is_autocast_enabled))
        patch.setattr(torch, "load", _loader(torch.load))
        patch.setattr(torch, "manual_seed", labels.seed)
        patch.setattr(clip_grad, GROUPER, _grouped(labels, getattr(clip_grad, GROUPER)))
        patch.setattr(module, "get_rng_state", lambda *_: labels.random_state)
        patch.setattr(
            module,
            "set_rng_state",
            lambda state, *_, **__: setattr(labels, "random_state", state),
        )
        if kind == "cuda":
            patch.setattr(module, "is_bf16_supported", lambda _: True)
            patch.setattr(module, "reset_peak_memory_stats", lambda _: None)
            patch.setattr(module, "max_memory_allocated", lambda _: 0)
        else:
            patch.setattr(module, "empty_cache", lambda: None)
            patch.setattr(module, "driver_allocated_memory", lambda: 0)
        with _Calls(labels), _Operations(labels):
            yield labels


def _on_cpu(function: Any) -> Any:
    """Return a function of autocast for where everything really runs."""

    def call(device_type: str = "cpu", *args: Any, **options: Any) -> Any:
        return function("cpu", *args, **options)

    return call


def _grouped(labels: Labels, group: Callable[..., Any]) -> Any:
    """Return what groups tensors by where they pretend to be."""

    def call(lists: list[list[Tensor]]) -> Any:
        found = group(lists)
        return {(labels.of(of[0][0][0]), dtype): of for (_, dtype), of in found.items()}

    return call


def _loader(load: Callable[..., Any]) -> Callable[..., Any]:
    def call(path: Any, *, map_location: Any, **options: Any) -> Any:
        loaded = load(path, map_location=CPU, **options)
        return tree_map_only(Tensor, lambda tensor: tensor.to(map_location), loaded)

    return call


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]
