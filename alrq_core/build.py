"""Builds a model for one allocation: packed base weights, adapters, a trainable head."""

import copy
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from alrq_core.first_token import keep_first_token
from alrq_core.layers import STORAGE_DTYPE, PackedEmbedding
from alrq_core.packing import Quantiser, pack
from alrq_core.quantise import quantise
from search_spaces.allocation import Allocation, Choice
from search_spaces.costs import packable
from search_spaces.fixed import check_rank
from search_spaces.formats import Format
from search_spaces.inventory import TargetModule

ADAPTER = "default"


def build_model(
    base: nn.Module,
    allocation: Allocation,
    head: tuple[str, ...],
    alpha_over_rank: float,
    compute_dtype: torch.dtype,
    device: torch.device,
    make: Quantiser | None = None,
) -> nn.Module:
    """Return a new model with packed target modules and adapters; `base` stays untouched.

    All that stays unquantised is rounded to 16 bits, as a deployed model keeps it. The new
    adapters are drawn from torch's generator: seed it first.

    Args:
        base: The pretrained model in float32.
        allocation: Format and rank of each target module and embedding of `base`. With AdaLoRA
            no adapter is attached.
        head: Children that are trained in full.
        alpha_over_rank: LoRA's scaling, alpha / rank, the same for every module.
        compute_dtype: Type of the matrix products.
        device: Where the model is trained.
        make: Quantises weights of `base` onto the device; None for `quantise` itself.

    Raises:
        ValueError: A module of the allocation is neither a linear layer nor an embedding, its rank
            is above its size, or its group size doesn't divide it. The message has its name.
    """
    tied = tied_head(base, allocation)
    left_out = (*allocation.choices, *((tied,) if tied is not None else ()))
    model = _copy_without(base, left_out).to(device)
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(STORAGE_DTYPE).to(parameter.dtype)
    for name, choice in allocation.choices.items():
        source = base.get_submodule(name)
        _check_choice(name, source, choice)
        packed = pack(source, choice.format, compute_dtype, make or partial(_quantise_on, device))
        place(model, name, packed, tied)
    if allocation.final_rank is None:
        attach_adapters(model, allocation, alpha_over_rank)
    for name in head:
        model.get_submodule(name).requires_grad_(True)
    keep_first_token(model)
    return model


def _quantise_on(
    device: torch.device, weight: Tensor, stored: Format, compute_dtype: torch.dtype
) -> dict[str, Tensor]:
    return quantise(weight.to(device), stored, compute_dtype)


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


def tied_head(model: nn.Module, allocation: Allocation) -> str | None:
    """Return the name of the output head that shares the weight of an embedding to be packed."""
    transformers_model: Any = model
    head = transformers_model.get_output_embeddings()
    embedding = transformers_model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return None
    names = {id(module): name for name, module in model.named_modules()}
    return names[id(head)] if names[id(embedding)] in allocation.choices else None


def place(model: nn.Module, name: str, packed: nn.Module, tied: str | None) -> None:
    """Put a packed layer in its place; an embedding's also in that of the tied output head."""
    replace_module(model, name, packed)
    if isinstance(packed, PackedEmbedding) and tied is not None:
        replace_module(model, tied, packed.packed)


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Return the layers that carry an adapter, by the name of their target module."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapter_tensors(layer: LoraLayer) -> list[nn.Parameter]:
    """Return the trained tensors of an adapter: A, B, or with AdaLoRA A, the values, B."""
    halves: list[Any] = [layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]]
    if isinstance(layer, AdaLoraLayer):
        return [halves[0], layer.lora_E[ADAPTER], halves[1]]
    return [half.weight for half in halves]


def frozen_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the packed layer of a target module, with or without an adapter around it."""
    module = model.get_submodule(name)
    if isinstance(module, LoraLayer):
        base: nn.Module = module.get_base_layer()
        return base
    return module


def _copy_without(base: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """Return a deep copy of the model with nothing in the place of the named modules."""
    return copy.deepcopy(base, {id(base.get_submodule(name)): nn.Identity() for name in names})


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the named one."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def attach_adapters(model: nn.Module, allocation: Allocation, alpha_over_rank: float) -> None:
    """Wrap every target module of rank above 0 in place."""
    if not allocation.rank_pattern:
        return
    # PEFT picks the layer for quantised weights only when both marks are set.
    model.is_loaded_in_4bit = True  # type: ignore[assignment]
    model.is_loaded_in_8bit = True  # type: ignore[assignment]
    config = lora_config(allocation, alpha_over_rank)
    # PEFT tries each pattern on each module: one a rank instead of one a module.
    of_rank: dict[int, list[str]] = {}
    for name, rank in allocation.rank_pattern.items():
        of_rank.setdefault(rank, []).append(name)
    patterns = {rank: f"^({exact_names(names)})$" for rank, names in of_rank.items()}
    config.rank_pattern = {pattern: rank for rank, pattern in patterns.items()}
    config.alpha_pattern = {key: alpha_over_rank * rank for rank, key in patterns.items()}
    with quiet_peft():
        get_peft_model(model, config, adapter_name=ADAPTER, autocast_adapter_dtype=True)
    for layer in lora_layers(model).values():
        layer.forward = partial(_fused_forward, layer)


def exact_names(names: Iterable[str]) -> str:
    """Return PEFT's target for these modules and no others.

    A string must match the full name; names in a list also match at the end of longer ones.
    """
    return "|".join(map(re.escape, names))


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Leave out what PEFT warns of at each model: its own names, and patterns that we mean."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(alpha_pattern|Conv1D).*")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        yield


def lora_config(allocation: Allocation, alpha_over_rank: float) -> LoraConfig:
    """Return PEFT's configuration of the adapters: exact names, one scaling for all ranks."""
    ranks = allocation.rank_pattern
    # Keys are regular expressions over the end of a name: anchored and escaped full names.
    exact = {f"^{re.escape(name)}$": rank for name, rank in ranks.items()}
    return LoraConfig(
        r=1,
        lora_alpha=1,
        lora_dropout=0.0,
        bias="none",
        target_modules=exact_names(ranks),
        rank_pattern=dict(exact),
        alpha_pattern={key: alpha_over_rank * rank for key, rank in exact.items()},
    )


def _fused_forward(layer: Any, x: Tensor) -> Tensor:
    """Return what PEFT's forward does, from one function of the packed layer.

    PEFT copies, scales and adds the large output by itself in each layer, and adds the gradients
    of both branches.
    """
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    output: Tensor = layer.base_layer(x, a, b, layer.scaling[ADAPTER])
    return output
