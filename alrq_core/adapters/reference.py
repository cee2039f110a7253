"""The fine-tune of one seed that trials start from: what it adds to the base, and its answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from alrq_core.adapters.lora import ADAPTER, lora_layers
from alrq_core.adapters.starts import Corrections, initialise_towards
from alrq_core.data.answers import Answers
from alrq_core.data.fisher import Factors
from alrq_core.records import StartReceipt
from alrq_core.weights.tensor_files import TensorFiles, checksum, read_tensors, write_tensors
from search_spaces.allocation import Allocation, decode

PARTS = ("scored", "tuned")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A fine-tune as adapter and head over the base, never as a model of its own.

    Attributes:
        allocation: Its formats and ranks.
        seed: Of its training.
        adapters: Module name to A, rank x in, and B, out x rank, before scaling.
        head: Name to value of the parameters that are trained in full.
        answers: Its answers to the sequences that starts are scored on, `scored`, and to those
            that trials are trained on, `tuned`.
        corrections: Those that bring modules nearest to it.
    """

    allocation: Allocation
    seed: int
    adapters: Mapping[str, tuple[Tensor, Tensor]]
    head: Mapping[str, Tensor]
    answers: Mapping[str, Answers]
    corrections: Corrections = field(default_factory=Corrections, compare=False)

    @cached_property
    def checksum(self) -> int:
        """CRC-32 of adapters and head."""
        return checksum(_adapter_tensors(self.adapters) | _head_tensors(self.head))

    @property
    def receipt(self) -> StartReceipt:
        """What the receipts of trials say that start from it."""
        allocation = self.allocation.encode()
        return StartReceipt(allocation=allocation, seed=self.seed, checksum=self.checksum)

    def weight(self, name: str, stored: Tensor, alpha_over_rank: float) -> Tensor:
        """Return the tuned weight of a module, out x in, float32.

        Args:
            name: Of the module.
            stored: Its weight in the reference's own format, dequantised.
            alpha_over_rank: LoRA's scaling.
        """
        if name not in self.adapters:
            return stored.float()
        a, b = (half.to(stored.device) for half in self.adapters[name])
        return torch.addmm(stored.float(), b, a, alpha=alpha_over_rank)

    def start(
        self,
        model: nn.Module,
        allocation: Allocation,
        weight_of: Callable[[str], Tensor],
        factors_of: Callable[[str], Factors],
        key_of: Callable[[str], str],
        alpha_over_rank: float,
    ) -> None:
        """Bring a new model as near to the reference as its bits and ranks allow.

        Its head becomes the reference's. A module in the reference's own format with no lower rank
        gets its very adapter, all others the best correction of their rank.

        Args:
            model: As built for the allocation; overwritten in place.
            allocation: Its formats and ranks.
            weight_of: Module name to the tuned weight, see `weight`.
            factors_of: Module name to what its errors cost.
            key_of: Module name to the key of its codes, see `PackedCache.key`.
            alpha_over_rank: LoRA's scaling.
        """
        same = self._copied(model, allocation)
        initialise_towards(
            model,
            weight_of,
            factors_of,
            key_of,
            alpha_over_rank,
            self.corrections,
            negligible=0.0,
            known=same,
        )
        with torch.no_grad():
            for name, value in self.head.items():
                model.get_parameter(name).copy_(value)

    def _copied(self, model: nn.Module, allocation: Allocation) -> set[str]:
        """Copy the adapters of modules that are stored alike; return their names."""
        copied = set()
        for name, layer in lora_layers(model).items():
            ours, theirs = allocation.choices[name], self.allocation.choices[name]
            if ours.format == theirs.format and ours.rank >= theirs.rank > 0:
                a, b = self.adapters[name]
                with torch.no_grad():
                    layer.lora_A[ADAPTER].weight[: len(a)] = a
                    layer.lora_B[ADAPTER].weight.zero_()[:, : len(a)] = b
                copied.add(name)
        return copied

    def save(self, path: Path) -> None:
        """Write it to a file, whole or not at all."""
        tensors = _adapter_tensors(self.adapters) | _head_tensors(self.head)
        for part, answers in self.answers.items():
            tensors |= {f"{part}.{name}": value for name, value in vars(answers).items()}
        about = {"allocation": self.allocation.encode(), "seed": str(self.seed)}
        write_tensors(path, tensors, about)

    @staticmethod
    def load(path: Path, names: tuple[str, ...]) -> "Reference":
        """Return what `save` wrote, with corrections that are shared in a folder beside it.

        Args:
            path: Of the file.
            names: Of the modules of an allocation.

        Raises:
            ValueError: The file is absent, damaged or no reference.
        """
        found = read_tensors(path)
        if found is None or not {"allocation", "seed"} <= found[1].keys():
            raise ValueError(
                f"`{path}` must be the reference of a seed, as it was written, got none. Remove "
                "it, so that it is made again."
            )
        read = _read(*found, names)
        beside = path.with_name(f"{path.stem}-{read.checksum:08x}")
        return replace(read, corrections=Corrections(TensorFiles(beside, "starts")))


def _read(
    tensors: dict[str, Tensor], metadata: dict[str, str], names: tuple[str, ...]
) -> Reference:
    of = {kind: _named(tensors, kind) for kind in ("a", "b", "head", *PARTS)}
    return Reference(
        allocation=decode(metadata["allocation"], names),
        seed=int(metadata["seed"]),
        adapters={name: (a, of["b"][name]) for name, a in of["a"].items()},
        head=of["head"],
        answers={part: Answers(**of[part]) for part in PARTS},
    )


def _named(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    start = f"{kind}."
    return {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}


def _adapter_tensors(adapters: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    halves = {f"a.{name}": a for name, (a, _) in adapters.items()}
    return halves | {f"b.{name}": b for name, (_, b) in adapters.items()}


def _head_tensors(head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"head.{name}": value for name, value in head.items()}


def adapters_of(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Return copies of a model's adapters, by their module, on the CPU."""
    return {
        name: (
            layer.lora_A[ADAPTER].weight.detach().cpu().clone(),
            layer.lora_B[ADAPTER].weight.detach().cpu().clone(),
        )
        for name, layer in lora_layers(model).items()
    }
