"""Gradients with respect to frozen, packed weights, from hooks on their layers."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from alrq_core.data.encode import Batch


class Collector(Protocol):
    """Takes inputs and gradients of modules, module by module, from the last to the first.

    A packed weight has no gradient of its own, but dL/dW = (dL/dY)^T X. Backward through the sum
    over a batch leaves each sequence's own gradient in its rows of dL/dY, so that one pass serves
    the whole batch.
    """

    def add(self, name: str, x: Tensor, gradient: Tensor) -> None:
        """Take those of a linear layer.

        Args:
            name: Of the module.
            x: Its input, sequences x tokens x in.
            gradient: Of its output, sequences x tokens x out.
        """
        ...

    def add_lookup(self, name: str, ids: Tensor, gradient: Tensor) -> None:
        """Take those of an embedding.

        Args:
            name: Of the module.
            ids: Tokens, sequences x tokens.
            gradient: Of the rows, sequences x tokens x width.
        """
        ...


def collect_gradients(
    model: nn.Module,
    names: dict[str, str],
    batches: Iterable[Batch],
    into: Collector,
    score: Callable[[nn.Module, Batch], Tensor],
) -> None:
    """Hand the gradients of each sequence's score to `into`.

    The model runs without dropout and is left in eval mode; no parameter gets a gradient.

    Args:
        model: As built, with packed weights and adapters.
        names: Module of the model to the name that its gradients go by: the same, but for a
            tied output head.
        batches: On the model's device.
        into: What becomes of the gradients.
        score: Model and batch to what is differentiated, a number a sequence.
    """
    model.eval()
    with torch.enable_grad(), _frozen(model), _hooks(model, names, into) as running:
        for batch in batches:
            running[:] = [batch]
            score(model, batch).sum().backward()


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
def _hooks(model: nn.Module, names: dict[str, str], into: Collector) -> Iterator[list[Batch]]:
    """Watch the named modules; the caller writes which batch runs."""
    running: list[Batch] = []

    def start(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        # Nothing else asks for gradients while all parameters are frozen.
        return output.detach().requires_grad_()

    def watch(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        # Not so what is computed again later.
        if output.requires_grad:
            output.register_hook(partial(seen, name, module, args[0].detach()))

    def seen(name: str, module: nn.Module, x: Tensor, gradient: Tensor) -> None:
        [batch] = running
        if isinstance(x, Tensor) and not x.is_floating_point():
            scale = float(getattr(module, "scale", 1.0))
            into.add_lookup(name, x.expand(len(batch.input_ids), -1), gradient * scale)
        else:
            into.add(name, _by_sequence(x, batch), _by_sequence(gradient, batch))

    embedding = model.get_input_embeddings()  # type: ignore[operator]
    # The first hook of the embedding, so that its output asks for gradients when it is watched.
    handles = [embedding.register_forward_hook(start)]
    for name, goes_by in names.items():
        module = model.get_submodule(name)
        handles.append(module.register_forward_hook(partial(watch, goes_by)))
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


def _by_sequence(rows: Tensor, batch: Batch) -> Tensor:
    """Return rows as sequences x tokens x width.

    Those of an output head are the answers, padded with zeros. Rows that can't be told apart by
    sequence, such as an expert's, count as one sequence.
    """
    width, count = rows.shape[-1], len(batch.input_ids)
    if count > 1 and batch.places is not None and rows.shape[:-1] == (1, len(batch.places)):
        owners = batch.places // batch.input_ids.shape[1]
        counts = torch.bincount(owners, minlength=count).tolist()
        return nn.utils.rnn.pad_sequence(list(rows[0].split(counts)), batch_first=True)
    if rows.dim() == 3 and len(rows) == count:
        return rows
    if rows.numel() % (count * width) == 0:
        return rows.reshape(count, -1, width)
    return rows.reshape(1, -1, width)
