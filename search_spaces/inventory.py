"""The target modules of a model and the size of everything else it keeps."""

from dataclasses import dataclass
from typing import Literal

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
