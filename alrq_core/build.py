"""Builds a model for one allocation: packed base weights, adapters, a trainable head."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from alrq_core.adapters.lora import attach_adapters
from alrq_core.models.first_token import keep_first_token
from alrq_core.models.heads import cast_head_inputs
from alrq_core.models.structure import tied_head
from alrq_core.precision import stream_dtype
from alrq_core.weights.layers import STORAGE_DTYPE
from alrq_core.weights.packing import Quantiser, pack, place
from alrq_core.weights.quantise import quantise
from search_spaces.allocation import Allocation, Choice
from search_spaces.costs import packable
from search_spaces.fixed import check_rank
from search_spaces.formats import Format
from search_spaces.inventory import TargetModule


def build_model(
    base: nn.Module,
    allocation: Allocation,
    head: tuple[str, ...],
    alpha_over_rank: float,
    compute_dtype: torch.dtype,
    device: torch.device,
    make: Callable[[str], Quantiser] | None = None,
) -> nn.Module:
    """Return a new model with packed target modules and adapters; `base` stays untouched.

    All that stays unquantised is rounded to 16 bits, as a deployed model keeps it. The new
    adapters are drawn from torch's generator: seed it first.

    Args:
        base: The pretrained model.
        allocation: Format and rank of each target module and embedding of `base`. With AdaLoRA
            no adapter is attached.
        head: Children that are trained in full.
        alpha_over_rank: LoRA's scaling, alpha / rank, the same for every module.
        compute_dtype: Type of the matrix products.
        device: Where the model is trained.
        make: Module name to what quantises its weight onto the device; None for `quantise` itself,
            which knows nothing of the inputs.

    Raises:
        ValueError: A module of the allocation is neither a linear layer nor an embedding, its rank
            is above its size, or its group size doesn't divide it. The message has its name.
    """
    tied = tied_head(base, allocation.choices)
    left_out = (*allocation.choices, *((tied,) if tied is not None else ()))
    model = _copy_without(base, left_out).to(device)
    model.requires_grad_(False)
    dtype = stream_dtype(compute_dtype, device)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(STORAGE_DTYPE).to(dtype)
    for name, choice in allocation.choices.items():
        source = base.get_submodule(name)
        _check_choice(name, source, choice)
        quantiser = partial(_quantise_on, device) if make is None else make(name)
        packed = pack(source, choice.format, compute_dtype, quantiser)
        place(model, name, packed, tied)
    if allocation.final_rank is None:
        attach_adapters(model, allocation, alpha_over_rank)
    for name in head:
        model.get_submodule(name).float().requires_grad_(True)
    cast_head_inputs(model, head)
    keep_first_token(model)
    return model


def _quantise_on(device: torch.device, weight: Tensor, stored: Format) -> dict[str, Tensor]:
    return quantise(weight.to(device), stored)


def _check_choice(name: str, source: nn.Module, choice: Choice) -> None:
    if not isinstance(source, nn.Linear | nn.Embedding):
        raise ValueError(
            f"`allocation` must name linear layers and embeddings, got {name} "
            f"({type(source).__name__}). Use an allocation made for this model."
        )
    rows, columns = source.weight.shape
    embedding = isinstance(source, nn.Embedding)
    if embedding and choice.rank:
        raise ValueError(
            f"`rank` must be 0 for an embedding, got {choice.rank} for {name}. "
            "Use `Space.nearest_uniform`, or set it to 0."
        )
    module = TargetModule(
        name=name,
        out_features=rows,
        in_features=columns,
        part="embedding" if embedding else "feed-forward",
        block=-1,
    )
    check_rank(module, choice.rank)
    if not packable(choice.format, module):
        raise ValueError(
            f"`group_size` of {choice.method} at {choice.bits} bits must divide {name} of {rows} x "
            f"{columns}, got {choice.group_size}. Use a smaller one, or other bits."
        )


def _copy_without(base: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """Return a deep copy of the model with nothing in the place of the named modules."""
    return copy.deepcopy(base, {id(base.get_submodule(name)): nn.Identity() for name in names})
