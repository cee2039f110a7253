"""Writes a trained allocation as a folder that loads ready for use, and loads it again.

The folder holds one file of packed weights, adapters and all else in 16 bits, one JSON manifest,
the model's configuration and tokenizer, and the adapter alone in PEFT's own format.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from alrq_core.adapters.lora import attach_adapters, frozen_layer
from alrq_core.export.card import exact_card
from alrq_core.export.parts import (
    PEFT_FOLDER,
    named_config,
    plain_tensors,
    write_adapter,
    write_configuration,
)
from alrq_core.files import partial_path
from alrq_core.memory.machine import pick_compute_dtype, pick_device
from alrq_core.models.finding import resolve_model
from alrq_core.models.first_token import keep_first_token
from alrq_core.models.heads import cast_head_inputs, head_names
from alrq_core.models.loading import load_tokenizer, model_class
from alrq_core.models.structure import as_linear, tied_head
from alrq_core.models.vocabulary import vocabulary_rows
from alrq_core.precision import stream_dtype
from alrq_core.records import Receipt, TaskKind
from alrq_core.trial import TrialRun
from alrq_core.weights.layers import STORAGE_DTYPE
from alrq_core.weights.packing import layer_tensors, pack, place, stored_tensors
from alrq_core.weights.quantise import code_values
from search_spaces.allocation import Allocation, from_json
from search_spaces.formats import Format

VERSION = 2
MANIFEST, WEIGHTS = "alrq.json", "weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A trained allocation, ready for use.

    Attributes:
        model: In eval mode, with packed weights and adapters.
        tokenizer: Of the model.
        allocation: Bits and ranks.
        label_names: Names of the classes; empty for language modelling.
        receipt: As read when it was built.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    allocation: Allocation
    label_names: tuple[str, ...]
    receipt: Receipt


def write_exactly(run: TrialRun, folder: Path, _: str) -> None:
    """Write what `load` reads: packed tensors as they are, and how to put them together."""
    context, model = run.context, run.model
    save_file(_collect(model, run.final_allocation), folder / WEIGHTS, metadata={"format": "pt"})
    write_configuration(run, named_config(run), folder)
    write_adapter(run, folder / PEFT_FOLDER, context.inventory.model)
    manifest = {
        "version": VERSION,
        "model": context.inventory.model,
        "kind": context.task.kind,
        "head": head_names(context.base, context.task.kind),
        "label_names": context.task.label_names,
        "allocation": run.final_allocation.to_json(),
        "alpha_over_rank": context.recipe.alpha_over_rank,
        "cpu_dtype": context.recipe.cpu_dtype,
        "receipt": run.receipt.to_json(),
        "files": {path.name: _digest(path) for path in sorted(folder.iterdir()) if path.is_file()},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    card = exact_card(run, PEFT_FOLDER, (folder / WEIGHTS).stat().st_size)
    (folder / "README.md").write_text(card, encoding="utf-8")


def save(
    run: TrialRun,
    folder: Path,
    write: Callable[[TrialRun, Path, str], None] = write_exactly,
    name: str | None = None,
) -> Path:
    """Write a trained allocation into a new folder, whole or not at all; return the folder.

    Adapters and head are rounded to 16 bits, as `TrialRun.test` scores them.

    Args:
        run: Trained.
        folder: To make.
        write: Writes all but the tokenizer into a folder, in the form that is wanted; it also gets
            the name that the folder will have.
        name: That name; None for the folder's own.

    Raises:
        ValueError: The folder exists, AdaLoRA has not ended, or `write` can't write this
            allocation.
    """
    if run.final_allocation.final_rank is not None:
        raise ValueError(
            "`run` must have ended its training, since AdaLoRA's ranks are final only then, got "
            f"step {run.step} of {run.context.recipe.max_steps}. Call `advance` first."
        )
    if folder.exists():
        raise ValueError(
            f"`folder` must not exist yet, got {str(folder)!r}. Remove it or choose another name."
        )
    partial = partial_path(folder)
    partial.mkdir(parents=True)
    try:
        run.round_to_storage()
        load_tokenizer(resolve_model(run.context.inventory.model)).save_pretrained(partial)
        write(run, partial, name or str(folder))
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def load(folder: Path) -> LoadedModel:
    """Return the model that `save` wrote, on the accelerator if there is one.

    Raises:
        ValueError: No such folder, another version, a file that is missing, cut or edited, or a
            tokenizer that doesn't fit.
    """
    manifest = _read_manifest(folder)
    allocation = from_json(manifest["allocation"])
    kind: TaskKind = manifest["kind"]
    device = pick_device()
    compute_dtype = pick_compute_dtype(device, manifest["cpu_dtype"])
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    # Buffers are not saved, and are computed; weights would be drawn and thrown away.
    with init_empty_weights(include_buffers=False):
        model: Any = model_class(kind, config, str(folder)).from_config(config)
    # That makes a new parameter for each name.
    model.tie_weights()
    as_linear(model)
    tensors = load_file(folder / WEIGHTS)
    # Older exports don't name it.
    head = tuple(manifest.get("head", head_names(model, kind)))
    scaling = manifest["alpha_over_rank"]
    _restore(model, allocation, tensors, head, scaling, compute_dtype, device)
    keep_first_token(model)
    if (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    rows = vocabulary_rows(tokenizer)
    if rows > config.vocab_size:
        raise ValueError(
            f"`folder` must hold the tokenizer of its model, got one that needs {rows} embeddings "
            f"for {config.vocab_size} in {str(folder)!r}. Restore the folder."
        )
    return LoadedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        allocation=allocation,
        label_names=tuple(manifest["label_names"]),
        receipt=Receipt.from_json(manifest["receipt"]),
    )


def _collect(model: nn.Module, allocation: Allocation) -> dict[str, Tensor]:
    """Return all that the model stores: packed tensors as they are, the rest in 16 bits."""
    found: dict[str, Tensor] = {}
    packed: set[int] = set()
    for name in allocation.choices:
        layer = frozen_layer(model, name)
        codes, others, _ = stored_tensors(layer)
        for number, tensor in enumerate((codes, *others)):
            found[f"{name}.packed.{number}"] = tensor.detach().cpu().contiguous().clone()
        bias = getattr(layer, "bias", None)
        if isinstance(bias, Tensor):
            found[f"{name}.bias"] = bias.detach().to(STORAGE_DTYPE).cpu()
        packed.update(id(parameter) for parameter in layer.parameters())
    for name, tensor in plain_tensors(model, packed).items():
        found[name] = tensor.detach().to(STORAGE_DTYPE).cpu().contiguous().clone()
    return found


def _restore(
    model: nn.Module,
    allocation: Allocation,
    tensors: dict[str, Tensor],
    head: tuple[str, ...],
    alpha_over_rank: float,
    compute_dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Give a fresh model the stored tensors, on a device, without quantising anything anew."""
    packed: set[int] = set()
    tied = tied_head(model, allocation.choices)
    for name, choice in allocation.choices.items():
        plain: Any = model.get_submodule(name)
        if getattr(plain, "bias", None) is not None:
            plain.bias = nn.Parameter(_take(tensors, f"{name}.bias", plain.bias))
        # On the device from the start: what layers keep beside their parameters is not moved later.
        parts = _packed_parts(tensors, name, choice.format, plain.weight.shape, device)
        layer = pack(plain, choice.format, compute_dtype, lambda *_, parts=parts: parts)
        place(model, name, layer, tied)
        packed.update(id(parameter) for parameter in layer.parameters())
    attach_adapters(model, allocation, alpha_over_rank)
    trained = tuple(f"{name}." for name in head)
    dtype = stream_dtype(compute_dtype, device)
    taken: dict[int, Tensor] = {}
    for name, target in plain_tensors(model, packed).items():
        in_float32 = ".lora_" in name or name.startswith(trained)
        value = _take(tensors, name, target).to(device)
        taken[id(target)] = nn.Parameter(value if in_float32 else value.to(dtype))
    # Tied ones have several owners.
    for module in model.modules():
        own: dict[str, Any] = module._parameters
        for key, parameter in own.items():
            own[key] = taken.get(id(parameter), parameter)
    model.requires_grad_(False)
    cast_head_inputs(model, head)
    model.to(device)


def _packed_parts(
    tensors: dict[str, Tensor], name: str, stored: Format, shape: torch.Size, device: torch.device
) -> dict[str, Tensor]:
    """Return what `quantise` made of a module's weight, as it was saved."""
    with torch.device("meta"):
        expected = layer_tensors(stored, *shape)
    found = {
        what: _take(tensors, f"{name}.packed.{number}", like, like.dtype).to(device)
        for number, (what, like) in enumerate(expected.items())
    }
    return {**found, **code_values(stored, device)}


def _take(
    tensors: dict[str, Tensor], name: str, like: Tensor, dtype: torch.dtype = STORAGE_DTYPE
) -> Tensor:
    """Return a copy of a tensor that is stored in `dtype`, in the shape and type of `like`."""
    if name not in tensors:
        raise ValueError(
            f"`{WEIGHTS}` must hold every tensor of the model, got none for {name}. "
            "Restore the folder."
        )
    found = tensors[name]
    if found.shape != like.shape or found.dtype != dtype:
        raise ValueError(
            f"`{WEIGHTS}` must fit the model, got {tuple(found.shape)} {found.dtype} for {name} "
            f"instead of {tuple(like.shape)} {dtype}. Restore the folder."
        )
    # The file's own memory can't be written.
    return found.to(like.dtype, copy=True)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"`folder` must be one that `save` wrote, got {str(folder)!r} without a readable "
            f"{MANIFEST}. Check the path."
        ) from error
    if version != VERSION:
        raise ValueError(
            f"`version` of {MANIFEST} must be {VERSION}, got {version!r}. "
            "Load it with the release that wrote it."
        )
    for name, digest in manifest["files"].items():
        path = folder / name
        state = "missing" if not path.is_file() else "cut or edited"
        if state == "missing" or _digest(path) != digest:
            raise ValueError(
                f"`folder` must be as `save` wrote it, got {name} {state} in {str(folder)!r}. "
                "Restore the folder."
            )
    return manifest


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
