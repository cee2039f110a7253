"""Finds by structure what may vary in a model, and refuses what would silently stay as it is."""

from collections.abc import Callable, Container
from functools import cache
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from search_spaces.inventory import Part, TargetModule

# Routers and norms over heads are such parameters too, and below a hundredth of any model.
STRAY_FRACTION = 0.01


def as_linear(model: nn.Module) -> None:
    """Turn GPT-2's `Conv1D`, whose weight is in x out, into linear layers, in place."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, Conv1D):
            continue
        rows, columns = module.weight.shape
        linear = nn.Linear(rows, columns, device="meta")
        linear.weight = nn.Parameter(module.weight.detach().t().contiguous())
        linear.bias = module.bias
        replace_module(model, name, linear)


def find_targets(model: nn.Module) -> tuple[TargetModule, ...]:
    """Return every linear layer that lies inside a list of transformer blocks."""
    lists = _block_lists(model)
    targets = []
    for name, module in model.named_modules():
        outer = _outer_list(lists, name)
        if not isinstance(module, nn.Linear) or outer is None:
            continue
        block, _, inside = name.removeprefix(outer + ".").partition(".")
        targets.append(
            TargetModule(
                name=name,
                out_features=module.out_features,
                in_features=module.in_features,
                part=_part(outer, inside),
                block=int(block),
            )
        )
    return tuple(targets)


def find_embeddings(model: Any) -> tuple[TargetModule, ...]:
    """Return the token embedding, and the head of a language model unless they are tied.

    An embedding of a class that computes something else, or one that is tied to a head with a
    bias, is left out: it stays in 16 bits.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    names = {id(module): name for name, module in model.named_modules()}
    found = []
    for module in (embedding, head):
        # Gemma's own class multiplies each row, and so does the packed one.
        plain = type(module) in (nn.Embedding, nn.Linear) or hasattr(module, "scalar_embed_scale")
        if tied and (module is head or type(head) is not nn.Linear or head.bias is not None):
            continue
        if plain:
            rows, columns = module.weight.shape
            found.append(
                TargetModule(
                    name=names[id(module)],
                    out_features=rows,
                    in_features=columns,
                    part="embedding",
                    block=-1,
                )
            )
    return tuple(found)


def tied_head(model: nn.Module, chosen: Container[str]) -> str | None:
    """Return the name of the output head that shares the weight of a chosen embedding."""
    transformers_model: Any = model
    head = transformers_model.get_output_embeddings()
    embedding = transformers_model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return None
    names = {id(module): name for name, module in model.named_modules()}
    return names[id(head)] if names[id(embedding)] in chosen else None


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the named one."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def override_forward(module: nn.Module, forward: Callable[..., Tensor]) -> None:
    """Give one module, and no other of its class, another forward pass.

    By a class of its own: a function that is kept in the module and bound to it holds it in turn,
    and its weights stay on the device until Python looks for such cycles.
    """
    kind: Any = type(module)
    module.__class__ = _overridden(kind, forward)


@cache
def _overridden(kind: type[nn.Module], forward: Callable[..., Tensor]) -> type[nn.Module]:
    return type(kind.__name__, (kind,), {"forward": forward})


def check_structure(model: nn.Module, name: str) -> None:
    """Check that the weights of all blocks lie in linear layers that can be packed one by one.

    Args:
        model: With `Conv1D` turned into linear layers.
        name: As given to `--model`, for messages.

    Raises:
        ValueError: There are no such layers, or the message names what lies elsewhere, computes
            something else or is shared.
    """
    targets = find_targets(model)
    if not targets:
        raise ValueError(
            f"`--model` must have linear layers inside a list of blocks, got {name!r} with none. "
            "Use a transformer that keeps its layers as `nn.Linear`."
        )
    for target in targets:
        kind = type(model.get_submodule(target.name))
        if kind.forward is not nn.Linear.forward:
            raise ValueError(
                f"`--model` must have plain linear layers in its blocks, got {target.name} of "
                f"{name!r} ({kind.__name__}, which computes in its own way). Use another model."
            )
    _check_strays(model, name)
    _check_sharing(model, name)


def _check_strays(model: nn.Module, name: str) -> None:
    lists = _block_lists(model)
    strays = [
        (f"{owner}.{key}", parameter)
        for owner, module in model.named_modules()
        if _outer_list(lists, owner) is not None
        and not isinstance(module, nn.Linear | nn.Embedding)
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.dim() > 1
    ]
    total = sum(parameter.numel() for parameter in model.parameters())
    if sum(parameter.numel() for _, parameter in strays) > STRAY_FRACTION * total:
        stray, parameter = max(strays, key=lambda pair: pair[1].numel())
        shape = " x ".join(map(str, parameter.shape))
        raise ValueError(
            f"`--model` must keep its weights in linear layers, got {stray} of {name!r} of "
            f"{parameter.dim()} dimensions ({shape}). Use a dense model."
        )


def _check_sharing(model: Any, name: str) -> None:
    """Refuse a matrix with two names, except for an embedding and the output head."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1:
                paths.setdefault(id(parameter), []).append(f"{path}.{key}")
    tied = id(head.weight) if head is not None and head.weight is embedding.weight else None
    for number, names in paths.items():
        if len(names) > (2 if number == tied else 1):
            raise ValueError(
                f"`--model` must not use one matrix in several places, got {names[0]} and "
                f"{names[-1]} of {name!r}. Use a model that shares no weights but its embedding."
            )


def _block_lists(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]


def _outer_list(lists: list[str], name: str) -> str | None:
    """Return the outermost list around a module; inner ones hold experts or projections."""
    return min((outer for outer in lists if name.startswith(f"{outer}.")), key=len, default=None)


def _part(outer: str, inside: str) -> Part:
    """Return the half of the block; XLM names the list itself after it."""
    path = f"{outer}.{inside}".lower()
    return "attention" if "attention" in path or "attn" in path else "feed-forward"
