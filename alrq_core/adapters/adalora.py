"""Trains ranks with AdaLoRA through PEFT's own layers and allocator, and ends as plain LoRA.

AdaLoRA (Zhang et al., arXiv:2303.10512) writes each adapter as B diag(E) A and zeroes the entries
of E that matter least, over all modules together, until a budget of ranks is met. PEFT only masks
them: `final_ranks.rebuild` removes what they occupy.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import AdaLoraConfig
from peft.tuners.adalora import AdaLoraLayer, AdaLoraModel, RankAllocator, SVDLinear
from peft.tuners.tuners_utils import cast_adapter_dtype
from torch import Tensor, nn

from alrq_core.adapters.lora import ADAPTER, exact_names, quiet_peft

MIN_STEPS = 5
IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class AdaptiveRanks:
    """The AdaLoRA adapters of one model, from their initial to their final ranks.

    In each step: add `regularisation` to the loss, backward, optimiser step, `allocate`, clear
    the gradients. After the last step: `final_ranks.rebuild`.

    Attributes:
        model: What carries them.
        layers: PEFT's layers, by the name of their target module.
        budget: Sum of all ranks in the end.
        steps: Steps after which the ranks were allocated.
        max_steps: Optimiser steps of the whole training.
        alpha_over_rank: LoRA's scaling.
    """

    def __init__(
        self,
        model: nn.Module,
        initial_ranks: Mapping[str, int],
        final_rank: int,
        max_steps: int,
        alpha_over_rank: float,
    ) -> None:
        """Wrap the target modules in place; what else was trainable stays so.

        AdaLoRA computes B diag(E) A x * alpha / r with r the initial rank, also when most of E is
        masked. Each module gets alpha = alpha_over_rank * r, so that it is scaled by
        `alpha_over_rank` at every rank, as our plain LoRA is.

        Args:
            model: A model with packed base layers and no adapters.
            initial_ranks: Target module to rank at the beginning. No other module is wrapped.
            final_rank: Average rank in the end, over the modules of `initial_ranks`.
            max_steps: Optimiser steps of the whole training.
            alpha_over_rank: LoRA's scaling.

        Raises:
            ValueError: Too few steps, ranks that have nowhere to fall, or a module whose storage
                format PEFT's AdaLoRA does not take.
        """
        _check(model, initial_ranks, final_rank, max_steps)
        self.model = model
        self.max_steps = max_steps
        self.alpha_over_rank = alpha_over_rank
        self._config = _config(tuple(initial_ranks), final_rank, max_steps)
        # PEFT picks the layer for quantised weights only when both marks are set.
        model.is_loaded_in_4bit = True  # type: ignore[assignment]
        model.is_loaded_in_8bit = True  # type: ignore[assignment]
        with keep_trainable(model), quiet_peft():
            self._tuner = AdaLoraModel(model, self._config, ADAPTER)
        self.layers: dict[str, AdaLoraLayer] = {n: model.get_submodule(n) for n in initial_ranks}
        for name, rank in initial_ranks.items():
            # PEFT's configuration has one initial rank for all modules.
            alpha = alpha_over_rank * rank
            self.layers[name].update_layer(ADAPTER, rank, alpha, config=self._config)
        cast_adapter_dtype(model, ADAPTER)
        for layer in self.layers.values():
            # PEFT's casts make a new parameter of the constant, which is then trainable.
            layer.ranknum[ADAPTER].requires_grad_(False)
        # PEFT adds to this output in place, which autograd refuses after a custom function.
        outputs = [n.get_base_layer() for n in self.layers.values() if isinstance(n, SVDLinear)]
        self._hooks = [base.register_forward_hook(_copy_output) for base in outputs]
        self._tuner.rankallocator = RankAllocator(model, self._config, ADAPTER)
        self.budget: int = self._tuner.rankallocator.target_bgt
        self.steps = 0

    def regularisation(self) -> Tensor:
        """Return the penalty for singular vectors that are not orthonormal, times its weight.

        PEFT adds it only to a loss that is computed inside its own forward pass. Paper, eq. 4;
        as PEFT computes it, the norms are not squared and are averaged over all A and B. Call it
        outside autocast.
        """
        norms = []
        for layer in self.layers.values():
            right, left = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
            for gram in (right @ right.T, left.T @ left):
                norms.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device)))
        weight: float = self._config.orth_reg_weight
        return weight * torch.stack(norms).mean()

    def allocate(self, step: int) -> None:
        """Update the importance of all ranks, and mask the least important above the budget.

        Args:
            step: Optimiser steps done, this one included. Its gradients must not be cleared yet.

        Raises:
            ValueError: A step was left out or repeated.
        """
        if step != self.steps + 1:
            raise ValueError(
                f"`step` must be {self.steps + 1}, the one after the last call, got {step}. "
                "Call `allocate` once at every optimiser step."
            )
        self._tuner.update_and_allocate(step)
        self.steps = step

    def ranks(self) -> dict[str, int]:
        """Return each module's number of singular values that are not 0, read from the tensors.

        All are 0 before the first step, and the optimiser moves masked ones until `allocate`.
        """
        return {name: int(kept_ranks(layer).sum()) for name, layer in self.layers.items()}

    def state(self) -> dict[str, Any]:
        """Return what `load_state` needs beside the parameters, in types that torch.load trusts."""
        allocator = self._tuner.rankallocator
        importance = {key: dict(getattr(allocator, key)) for key in IMPORTANCE}
        return {"steps": self.steps, "mask": self._config.rank_pattern, **importance}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned for the same initial ranks, budget and steps."""
        self.steps = state["steps"]
        self._config.rank_pattern = state["mask"]
        for key in IMPORTANCE:
            setattr(self._tuner.rankallocator, key, dict(state[key]))

    def remove_hooks(self) -> None:
        """Leave the base layers as they were, before others are put around them."""
        for hook in self._hooks:
            hook.remove()


def kept_ranks(layer: AdaLoraLayer) -> Tensor:
    """Return which ranks are not masked."""
    kept: Tensor = layer.lora_E[ADAPTER].detach().flatten() != 0
    return kept


def _copy_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.clone()


@contextmanager
def keep_trainable(model: nn.Module) -> Iterator[None]:
    """Keep trainable what is: PEFT freezes all but its adapters when it attaches them."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    yield
    for parameter in trainable:
        parameter.requires_grad_(True)


def _check(model: nn.Module, ranks: Mapping[str, int], final_rank: int, max_steps: int) -> None:
    if max_steps < MIN_STEPS:
        raise ValueError(
            f"`--max-steps` must be at least {MIN_STEPS} with AdaLoRA, got {max_steps}. Raise it."
        )
    # PEFT's allocator fails at a mask that has nothing to remove.
    if not 0 < final_rank * len(ranks) < sum(ranks.values()):
        raise ValueError(
            "`final_rank` must be above 0 and below the average initial rank "
            f"({sum(ranks.values())} over {len(ranks)} modules), got {final_rank}. "
            "Raise the initial ranks."
        )
    for name in ranks:
        module = model.get_submodule(name)
        # HQQ's layer is no nn.Linear; those of bitsandbytes are.
        if not isinstance(module, nn.Linear):
            raise ValueError(
                "`initial_ranks` must name linear layers in another format than HQQ's, "
                f"which PEFT's AdaLoRA doesn't take, got {name} ({type(module).__name__}). "
                "Use --quant-backend auto or bnb."
            )


def _config(names: tuple[str, ...], final_rank: int, max_steps: int) -> AdaLoraConfig:
    """Return PEFT's configuration: ranks fall after 10 % of the steps and stay in the last 30 %.

    Between them the budget falls with the cube of the steps that are left (paper, section 3.3)
    and is masked at each step. The mask at step max_steps - tfinal is the final one. PEFT masks
    all scores up to a threshold, so that equal scores there leave fewer ranks than the budget,
    never more.
    """
    return AdaLoraConfig(
        init_r=1,
        target_r=final_rank,
        tinit=max(1, max_steps // 10),
        tfinal=3 * max_steps // 10,
        deltaT=1,
        total_step=max_steps,
        lora_dropout=0.0,
        bias="none",
        target_modules=exact_names(names),
    )
