"""The target modules of a model and the size of everything else it keeps."""

import re
from dataclasses import dataclass
from typing import Literal

# Parts of names that tell no two modules of a block apart.
IDLE = ("self", "self_attn", "mlp", "dense", "layer", "attn")
Part = Literal["attention", "feed-forward", "embedding"]


@dataclass(frozen=True, kw_only=True)
class TargetModule:
    """One linear layer of the base whose bits and rank may vary, or an embedding's bits.

    Attributes:
        name: Full dotted name in the model with its task head.
        out_features: Rows of the weight; of an embedding the size of the vocabulary.
        in_features: Columns of the weight.
        part: The half of a transformer block that it belongs to, or `embedding`.
        block: Index of its block, counted from the input; -1 outside of the blocks.
    """

    name: str
    out_features: int
    in_features: int
    part: Part
    block: int

    @property
    def weights(self) -> int:
        """Number of base weights, the bias excluded."""
        return self.out_features * self.in_features


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What a model with its task head consists of.

    Attributes:
        model: What the user asked for: `minilm`, a hub id or a folder.
        targets: The target modules in the order of the forward pass.
        other_parameters: Parameters outside the weights of target modules and embeddings (norms,
            biases, positions, head). A deployed model keeps them in 16 bits.
        embeddings: Token embeddings, with the output head where it is tied, and the head of a
            language model where it is not. Their bits may vary; they get no adapter.
    """

    model: str
    targets: tuple[TargetModule, ...]
    other_parameters: int
    embeddings: tuple[TargetModule, ...] = ()

    @property
    def modules(self) -> tuple[TargetModule, ...]:
        """Target modules and embeddings, in the order of an allocation."""
        return (*self.targets, *self.embeddings)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all modules of an allocation, in order."""
        return tuple(target.name for target in self.modules)


def kinds(inventory: Inventory) -> dict[str, str]:
    """Return the target modules inside of blocks, each with what it is called there, in few words.

    `encoder.layer.3.attention.output.dense` is an `attention output`.
    """
    inside = [target for target in inventory.targets if target.block >= 0]
    parts = {target.name: _inside(target) for target in inside}
    short = {
        whole: " ".join(part for part in whole.split(".") if part not in IDLE) or whole
        for whole in set(parts.values())
    }
    clear = len(set(short.values())) == len(short)
    return {name: short[whole] if clear else whole for name, whole in parts.items()}


def short_names(inventory: Inventory) -> dict[str, str]:
    """Return all modules with names that fit where places are narrow, and sort by block:
    `03.attention.query`; what lies outside of the blocks keeps the last part of its name.
    """
    named, found = kinds(inventory), {}
    for module in inventory.modules:
        last = module.name.rpartition(".")[2]
        kind = named.get(module.name, "").replace(" ", ".")
        found[module.name] = f"{module.block:02d}.{kind}" if kind else last
    unique = len(set(found.values())) == len(found)
    return found if unique else {name: name for name in found}


def _inside(target: TargetModule) -> str:
    """Return a module's name after the number of its block."""
    return re.split(rf"\.{target.block}\.", target.name, maxsplit=1)[-1]
