"""LoRA around packed layers: attached at exactly the ranks of an allocation, found and read."""

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from peft import LoraConfig, get_peft_model
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from alrq_core.models.structure import override_forward
from search_spaces.allocation import Allocation

ADAPTER = "default"


def attach_adapters(model: nn.Module, allocation: Allocation, alpha_over_rank: float) -> None:
    """Wrap every target module of rank above 0 in place."""
    if not allocation.rank_pattern:
        return
    # PEFT picks the layer for quantised weights only when both marks are set.
    model.is_loaded_in_4bit = True  # type: ignore[assignment]
    model.is_loaded_in_8bit = True  # type: ignore[assignment]
    config = lora_config(allocation, alpha_over_rank)
    with quiet_peft():
        get_peft_model(model, config, adapter_name=ADAPTER, autocast_adapter_dtype=True)
    for layer in lora_layers(model).values():
        override_forward(layer, _fused_forward)


def lora_config(allocation: Allocation, alpha_over_rank: float) -> LoraConfig:
    """Return PEFT's configuration of the adapters: exact names, one scaling for all ranks.

    PEFT tries each pattern on each module: one a rank instead of one a module.
    """
    of_rank: dict[int, list[str]] = {}
    for name, rank in allocation.rank_pattern.items():
        of_rank.setdefault(rank, []).append(name)
    # Patterns are matched at the end of a name, hence anchored.
    patterns = {f"^({exact_names(names)})$": rank for rank, names in of_rank.items()}
    return LoraConfig(
        r=1,
        lora_alpha=1,
        lora_dropout=0.0,
        bias="none",
        target_modules=exact_names(allocation.rank_pattern),
        rank_pattern=patterns,
        alpha_pattern={pattern: alpha_over_rank * rank for pattern, rank in patterns.items()},
    )


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


def _fused_forward(layer: Any, x: Tensor) -> Tensor:
    """Return what PEFT's forward does, from one function of the packed layer.

    PEFT copies, scales and adds the large output by itself in each layer, and adds the gradients
    of both branches.
    """
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    output: Tensor = layer.base_layer(x, a, b, layer.scaling[ADAPTER])
    return output
