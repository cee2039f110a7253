"""Gradients of a loss with respect to frozen, packed weights, from hooks on their layers."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from alrq_core.data.encode import Batch
from alrq_core.data.losses import sequence_losses
from alrq_core.memory.machine import autocast

# Module name -> out x in, float32.
Gradients = dict[str, Tensor]


class Collector(Protocol):
    """Takes inputs and gradients of modules, module by module, from the last to the first."""

    def add(self, name: str, x: Tensor, gradient: Tensor) -> None:
        """Take those of a linear layer, see `SquaredGradients.add`."""
        ...

    def add_lookup(self, name: str, shape: tuple[int, int], ids: Tensor, gradient: Tensor) -> None:
        """Take those of an embedding, see `SquaredGradients.add_lookup`."""
        ...


def own_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean loss of each sequence."""
    return sequence_losses(model, batch)[0]


class SquaredGradients:
    """Sums the squares of the gradients of single sequences.

    A packed weight has no gradient of its own, but dL/dW = (dL/dY)^T X. Backward through the sum
    of all losses of a batch leaves each sequence's own gradient in its rows of dL/dY, so that one
    pass serves the whole batch and only the products are made sequence by sequence: one matrix of
    the size of a weight at a time.

    A lookup of embeddings touches the rows of its tokens alone. Where an output head shares its
    matrix, the squares of both uses are added and the product of the two is left out.

    Attributes:
        sums: Of each module so far.
    """

    def __init__(self) -> None:
        self.sums: Gradients = {}

    def add(self, name: str, x: Tensor, gradient: Tensor) -> None:
        """Add a linear layer's gradients.

        Args:
            name: Of the module.
            x: Its input, sequences x tokens x in.
            gradient: Of its output, sequences x tokens x out.
        """
        total = self._total(name, (gradient.shape[-1], x.shape[-1]), x)
        product = torch.empty_like(total)
        for rows, errors in zip(x.float(), gradient.float(), strict=True):
            torch.mm(errors.T, rows, out=product)
            total.addcmul_(product, product)

    def add_lookup(self, name: str, shape: tuple[int, int], ids: Tensor, gradient: Tensor) -> None:
        """Add an embedding's gradients.

        Args:
            name: Of the module.
            shape: Vocabulary and width.
            ids: Tokens, sequences x tokens.
            gradient: Of the rows, sequences x tokens x width.
        """
        total = self._total(name, shape, gradient)
        for tokens, errors in zip(ids, gradient.float(), strict=True):
            found, place = tokens.unique(return_inverse=True)
            rows = errors.new_zeros(len(found), shape[1]).index_add_(0, place, errors)
            total.index_add_(0, found, rows.square_())

    def _total(self, name: str, shape: tuple[int, int], like: Tensor) -> Tensor:
        if name not in self.sums:
            self.sums[name] = torch.zeros(shape, device=like.device)
        return self.sums[name]


class SummedGradients(SquaredGradients):
    """Sums the gradients themselves, of linear layers only."""

    def add(self, name: str, x: Tensor, gradient: Tensor) -> None:
        """Add a linear layer's gradients; see `SquaredGradients.add`."""
        total = self._total(name, (gradient.shape[-1], x.shape[-1]), x)
        total.addmm_(gradient.float().flatten(0, 1).T, x.float().flatten(0, 1))

    def add_lookup(self, name: str, shape: tuple[int, int], ids: Tensor, gradient: Tensor) -> None:
        """Leave an embedding out."""


def collect_gradients(
    model: nn.Module,
    names: dict[str, str],
    batches: Iterable[Batch],
    into: Collector,
    compute_dtype: torch.dtype,
    losses_of: Callable[[nn.Module, Batch], Tensor] = own_losses,
) -> list[float]:
    """Add the gradients of each sequence's loss to `into`; return these losses.

    The model runs without dropout and is left in eval mode; no parameter gets a gradient.

    Args:
        model: As built, with packed weights and adapters.
        names: Module of the model to the name that its gradients go by: the same, but for a
            tied output head.
        batches: On the model's device.
        into: What becomes of the gradients.
        compute_dtype: Type of the matrix products.
        losses_of: Model and batch to what is differentiated, a number a sequence.
    """
    model.eval()
    losses: list[float] = []
    with _frozen(model), _hooks(model, names, into) as expected:
        for batch in batches:
            expected["sequences"] = len(batch.input_ids)
            with autocast(compute_dtype, batch.input_ids.device):
                found = losses_of(model, batch)
            found.sum().backward()
            losses.extend(found.tolist())
    return losses


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _hooks(model: nn.Module, names: dict[str, str], into: Collector) -> Iterator[dict[str, int]]:
    """Watch the named modules; the caller writes how many sequences a batch has."""
    expected = {"sequences": 1}

    def start(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        # Nothing else asks for gradients while all parameters are frozen.
        return output.detach().requires_grad_()

    def watch(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(partial(seen, name, module, args[0].detach()))

    def seen(name: str, module: nn.Module, x: Tensor, gradient: Tensor) -> None:
        count = expected["sequences"]
        if isinstance(x, Tensor) and not x.is_floating_point():
            scale = float(getattr(module, "scale", 1.0))
            rows, columns = _shape(module)
            into.add_lookup(name, (rows, columns), x.expand(count, -1), gradient * scale)
        else:
            into.add(name, _by_sequence(x, count), _by_sequence(gradient, count))

    embedding = model.get_input_embeddings()  # type: ignore[operator]
    # The first hook of the embedding, so that its output asks for gradients when it is watched.
    handles = [embedding.register_forward_hook(start)]
    for name, goes_by in names.items():
        module = model.get_submodule(name)
        handles.append(module.register_forward_hook(partial(watch, goes_by)))
    try:
        yield expected
    finally:
        for handle in handles:
            handle.remove()


def _shape(embedding: nn.Module) -> tuple[int, int]:
    packed: Any = getattr(embedding, "packed", None)
    if packed is not None:
        return packed.out_features, packed.in_features
    plain: Any = embedding
    return plain.num_embeddings, plain.embedding_dim


def _by_sequence(rows: Tensor, count: int) -> Tensor:
    """Return rows as sequences x tokens x width.

    Rows that can't be told apart by sequence, such as an expert's, count as one sequence.
    """
    width = rows.shape[-1]
    if rows.dim() == 3 and len(rows) == count:
        return rows
    if rows.numel() % (count * width) == 0:
        return rows.reshape(count, -1, width)
    return rows.reshape(1, -1, width)
