"""Reads from a built model what it really is, and checks that against the allocation."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from alrq_core.adapters.lora import adapter_tensors, frozen_layer, lora_layers
from alrq_core.randomness import Randomness
from alrq_core.records import AdaLoraReceipt, ModuleReceipt, Receipt
from alrq_core.weights.packing import read_layer
from search_spaces.allocation import Allocation
from search_spaces.costs import adapter_bytes, stored_bytes
from search_spaces.inventory import Inventory

BYTES_16_BIT = 2
# Relative; kernels on GPUs add in an order that varies.
TOLERANCE = 0.05


class ReceiptError(RuntimeError):
    """What was built contradicts the allocation. The message says where."""


def take_receipt(model: nn.Module, inventory: Inventory, compute_dtype: torch.dtype) -> Receipt:
    """Return what is really stored and trained, read from the model's tensors."""
    adapters = lora_layers(model)
    modules = {}
    for name in inventory.names:
        rank = len(adapter_tensors(adapters[name])[0]) if name in adapters else 0
        modules[name] = read_layer(frozen_layer(model, name), rank)
    stored = sum(module.stored_bytes for module in modules.values())
    targets = sum(modules[target.name].stored_bytes for target in inventory.targets)
    weights = sum(target.weights for target in inventory.targets)
    # A, B: the singular values between them, which AdaLoRA trains, end up inside of B.
    pairs = [adapter_tensors(layer) for layer in adapters.values()]
    lora = sum(tensors[0].numel() + tensors[-1].numel() for tensors in pairs)
    return Receipt(
        modules=modules,
        memory_bytes=stored + BYTES_16_BIT * (lora + inventory.other_parameters),
        target_bytes=targets + BYTES_16_BIT * lora,
        average_bits=8 * targets / weights,
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        lora_pairs=len(adapters),
        lora_pairs_with_gradient=0,
        compute_dtype=str(compute_dtype).removeprefix("torch."),
    )


def check_receipt(receipt: Receipt, allocation: Allocation, inventory: Inventory) -> None:
    """Check that the model was built as the allocation asks.

    Raises:
        ReceiptError: A module has another format, another rank or other bytes than asked for.
    """
    for target in inventory.modules:
        choice = allocation.choices[target.name]
        built = receipt.modules[target.name]
        shape = (target.out_features, target.in_features)
        asked = (
            ("bits", choice.bits, built.bits),
            ("rank", choice.rank, built.rank),
            ("method", choice.method, built.method),
            ("group size", choice.group_size, built.group_size),
            ("stored bytes", stored_bytes(choice.format, *shape), built.stored_bytes),
        )
        for what, expected, realised in asked:
            if expected != realised:
                raise ReceiptError(
                    f"{target.name} was built with {realised} {what} instead of {expected} "
                    f"(class {built.module_class})"
                )
    expected_bytes = (
        receipt.memory_bytes
        - receipt.target_bytes
        + sum(
            receipt.modules[t.name].stored_bytes
            + adapter_bytes(allocation.choices[t.name].rank, t.out_features, t.in_features)
            for t in inventory.targets
        )
    )
    if expected_bytes != receipt.memory_bytes:
        raise ReceiptError(
            f"the adapters take {receipt.memory_bytes - expected_bytes} bytes more than asked for"
        )


def probe_gradients(
    model: nn.Module, receipt: Receipt, loss_of: Callable[[nn.Module], Tensor]
) -> Receipt:
    """Return the receipt with the number of LoRA pairs that train after an evaluation.

    Takes the gradients of a few sequences, scores them in eval mode, and takes the gradients
    again: some kernels rewrite their weights for inference, after which gradients are missing or
    wrong without an error. The model must have done one step, since before it no gradient
    reaches the A half of a pair.

    Args:
        model: The built model; its gradients are cleared.
        receipt: As taken after building.
        loss_of: Mean loss of a few sequences.

    Raises:
        ReceiptError: A LoRA pair got no gradient, or another one than before the evaluation.
    """
    before = _lora_gradients(model, loss_of)
    model.eval()
    with torch.no_grad():
        loss_of(model)
    after = _lora_gradients(model, loss_of)
    silent = [name for name, gradient in after.items() if not _alive(gradient)]
    changed = [name for name in after if not _agree(before[name], after[name])]
    for names, what in ((silent, "no gradient"), (changed, "another gradient")):
        if names:
            raise ReceiptError(
                f"{len(names)} of {receipt.lora_pairs} LoRA pairs get {what} after an evaluation, "
                f"first {names[0]}"
            )
    return replace(receipt, lora_pairs_with_gradient=receipt.lora_pairs)


def with_final_ranks(before: Receipt, after: Receipt, budget: int, allocations: int) -> Receipt:
    """Return the receipt of an AdaLoRA trial after its adapter was rebuilt at its final ranks.

    Args:
        before: As taken after building, with the probe of the gradients.
        after: As taken after rebuilding.
        budget: Sum of ranks that was to be reached.
        allocations: Steps at which the ranks were allocated.

    Raises:
        ReceiptError: The ranks are above the budget, or the codes of a module are others.
    """
    first, last = (sum(m.rank for m in r.modules.values()) for r in (before, after))
    if last > budget:
        raise ReceiptError(f"AdaLoRA ended with {last} ranks, above its budget of {budget}")
    for name, module in after.modules.items():
        if replace(module, rank=before.modules[name].rank) != before.modules[name]:
            raise ReceiptError(f"{name} changed in training, from {before.modules[name]}")
    adalora = AdaLoraReceipt(
        initial_ranks=first, budget=budget, final_ranks=last, allocations=allocations
    )
    # All adapters got gradients when they were probed, so those that are left did.
    return replace(after, lora_pairs_with_gradient=after.lora_pairs, adalora=adalora)


def confirm_unchanged(model: nn.Module, receipt: Receipt, inventory: Inventory) -> Receipt:
    """Return the receipt with the second reading at the end of training noted.

    Raises:
        ReceiptError: The class, bits, bytes, rank or codes of a module changed in training.
    """
    for name in inventory.names:
        before = receipt.modules[name]
        after: ModuleReceipt = read_layer(frozen_layer(model, name), before.rank)
        if after != before:
            raise ReceiptError(f"{name} changed in training, from {before} to {after}")
    return replace(receipt, unchanged_after_training=True)


def _lora_gradients(
    model: nn.Module, loss_of: Callable[[nn.Module], Tensor]
) -> dict[str, list[Tensor | None]]:
    """Return the gradients of every adapter; dropout draws the same numbers at each call."""
    model.train()
    model.zero_grad(set_to_none=True)
    with Randomness(0, next(model.parameters()).device):
        loss_of(model).backward()
    gradients = {
        name: [tensor.grad for tensor in adapter_tensors(layer)]
        for name, layer in lora_layers(model).items()
    }
    model.zero_grad(set_to_none=True)
    return gradients


def _alive(gradients: list[Tensor | None]) -> bool:
    return all(
        g is not None and bool(g.count_nonzero()) and bool(g.isfinite().all()) for g in gradients
    )


def _agree(before: list[Tensor | None], after: list[Tensor | None]) -> bool:
    """Tell whether gradients are the same but for the order of additions."""
    pairs = zip(before, after, strict=True)
    return all(
        a is not None and b is not None and float((a - b).norm()) <= TOLERANCE * float(a.norm())
        for a, b in pairs
    )
