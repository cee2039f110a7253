"""The target modules of a model and the size of everything else it keeps."""

from dataclasses import dataclass
from typing import Literal

Part = Literal["attention", "feed-forward"]


@dataclass(frozen=True, kw_only=True)
class TargetModule:
    """One linear layer of the base whose bits and rank may vary.

    Attributes:
        name: Full dotted name in the model with its task head.
        out_features: Rows of the weight.
        in_features: Columns of the weight.
        part: The half of a transformer block that it belongs to.
        block: Index of its block, counted from the input.
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
        other_parameters: Parameters outside the target modules' weights (embeddings, norms,
            biases, head). A deployed model keeps them in 16 bits.
    """

    model: str
    targets: tuple[TargetModule, ...]
    other_parameters: int

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all target modules, in order."""
        return tuple(target.name for target in self.targets)
