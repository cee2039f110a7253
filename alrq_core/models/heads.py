"""Tells which modules a task adds to a pretrained model."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from alrq_core.models.structure import find_embeddings, find_targets
from alrq_core.records import TaskKind

# Where `mark_head` notes the names in a model.
HEAD_MARK = "alrq_head"


def head_names(model: nn.Module, kind: TaskKind) -> tuple[str, ...]:
    """Return the modules that a task adds to the pretrained model and that are trained in full.

    Without a mark by `load_model`: every child around the pretrained model.
    """
    if kind != "classification":
        return ()
    marked: tuple[str, ...] | None = getattr(model, HEAD_MARK, None)
    return tuple(_children_around(model)) if marked is None else marked


def mark_head(model: nn.Module, kind: TaskKind, absent: set[str], name: str) -> None:
    """Note in the model what its head is: the layer of the classes, and all that is new.

    What the files do have is pretrained and stays frozen, such as ModernBERT's head of its own.
    A pooler that they lack is trained with the head, as it would be noise else.

    Raises:
        ValueError: A weight is absent that no task adds.
    """
    heads: list[str] = []
    if kind == "classification":
        labels = cast(Any, model.config).num_labels
        for child_name, child in _children_around(model).items():
            new = any(key.startswith(f"{child_name}.") for key in absent)
            if new or any(getattr(m, "out_features", 0) == labels for m in child.modules()):
                heads.append(child_name)
    frozen = {target.name for target in (*find_targets(model), *find_embeddings(model))}
    for key in sorted(key for key in absent if not key.startswith(tuple(f"{h}." for h in heads))):
        owner = key.rpartition(".")[0]
        linear = isinstance(model.get_submodule(owner), nn.Linear)
        if kind != "classification" or not linear or owner in frozen:
            raise ValueError(
                f"`--model` must have all pretrained weights in its files, got {name!r} without "
                f"{key} in the right size. Use the complete model."
            )
        if owner not in heads:
            heads.append(owner)
    setattr(model, HEAD_MARK, tuple(heads))


def _children_around(model: nn.Module) -> dict[str, nn.Module]:
    base = getattr(model, "base_model_prefix", "")
    return {
        name: child
        for name, child in model.named_children()
        if name != base and any(True for _ in child.parameters())
    }


def reset_head(model: nn.Module, head: tuple[str, ...]) -> None:
    """Draw the head anew from torch's generator, so that each seed has its own."""
    for name in head:
        for module in model.get_submodule(name).modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def cast_head_inputs(model: nn.Module, head: tuple[str, ...]) -> None:
    """Let the head, which is trained in float32, take inputs of other types."""
    for name in head:
        model.get_submodule(name).register_forward_pre_hook(_in_own_type)


def _in_own_type(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    own = next(head.parameters())
    return tuple(x.to(own.dtype) if torch.is_floating_point(x) else x for x in args)
