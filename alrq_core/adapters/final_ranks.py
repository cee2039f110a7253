"""Puts plain LoRA of the final ranks in the place of AdaLoRA's adapters, which PEFT only masks."""

from collections.abc import Mapping

import torch
from peft.tuners.adalora import AdaLoraLayer
from torch import Tensor

from alrq_core.adapters.adalora import AdaptiveRanks, keep_trainable, kept_ranks
from alrq_core.adapters.lora import ADAPTER, attach_adapters, lora_layers
from alrq_core.models.structure import replace_module
from search_spaces.allocation import Allocation, Choice


class RankBudgetError(RuntimeError):
    """The ranks were not brought down to their budget. The message has the figures."""


def rebuild(adaptive: AdaptiveRanks) -> dict[str, int]:
    """Put plain LoRA of the final ranks in the place of AdaLoRA; return the ranks.

    The model's function stays. Modules of rank 0 lose their adapter. The parameters are new
    ones, in float32.

    Raises:
        RankBudgetError: A step was not allocated, or the ranks are above the budget.
    """
    ranks = adaptive.ranks()
    _check_budget(adaptive, ranks)
    halves = {
        name: _plain_lora(layer, adaptive.alpha_over_rank)
        for name, layer in adaptive.layers.items()
    }
    attach_plain(adaptive, ranks)
    with torch.no_grad():
        for name, layer in lora_layers(adaptive.model).items():
            layer.lora_A[ADAPTER].weight.copy_(halves[name][0])
            layer.lora_B[ADAPTER].weight.copy_(halves[name][1])
    return ranks


def attach_plain(adaptive: AdaptiveRanks, ranks: Mapping[str, int]) -> None:
    """Put new plain LoRA of these ranks in the place of AdaLoRA, for weights to be loaded."""
    model = adaptive.model
    adaptive.remove_hooks()
    # `attach_adapters` reads nothing but the ranks.
    allocation = Allocation({name: Choice(16, rank) for name, rank in ranks.items()})
    with keep_trainable(model):
        for name, layer in adaptive.layers.items():
            replace_module(model, name, layer.get_base_layer())
        # PEFT would take the new adapters for further ones.
        del model.peft_config
        attach_adapters(model, allocation, adaptive.alpha_over_rank)


def _plain_lora(layer: AdaLoraLayer, alpha_over_rank: float) -> tuple[Tensor, Tensor]:
    """Return A and B of plain LoRA with the same product, without the masked ranks."""
    kept = kept_ranks(layer)
    # The constant is PEFT's.
    scale = layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER] + 1e-5) / alpha_over_rank
    left = layer.lora_B[ADAPTER] * layer.lora_E[ADAPTER].T * scale
    return layer.lora_A[ADAPTER].detach()[kept], left.detach()[:, kept]


def _check_budget(adaptive: AdaptiveRanks, ranks: Mapping[str, int]) -> None:
    if adaptive.steps < adaptive.max_steps:
        raise RankBudgetError(
            f"AdaLoRA's ranks were allocated at {adaptive.steps} of {adaptive.max_steps} steps. "
            "Call `allocate` at every optimiser step."
        )
    if sum(ranks.values()) > adaptive.budget:
        raise RankBudgetError(
            f"AdaLoRA ended with {sum(ranks.values())} ranks over {len(ranks)} modules, above "
            f"the budget of {adaptive.budget}. Call `allocate` after the optimiser's last step."
        )
