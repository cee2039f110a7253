"""Writes a trained allocation as a checkpoint that transformers and vLLM read without this project.

The form is `pack-quantized` of compressed-tensors: integers around a fixed middle, a scale a group
of inputs, and bits and group of each module in the configuration: the codes of `gptq` themselves.
Its reader is plain torch, also on a CPU, and leaves linear layers, around which PEFT puts adapters:
around those of AutoRound's form PEFT 0.21 does not. Three bits take 3.0 at any size, where
AutoRound and GPTQ need a multiple of 32 outputs.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from alrq_core.adapters.lora import frozen_layer
from alrq_core.export.card import model_card
from alrq_core.export.parts import (
    PEFT_FOLDER,
    named_config,
    plain_tensors,
    write_adapter,
    write_configuration,
)
from alrq_core.models.loading import model_class
from alrq_core.trial import TrialRun
from alrq_core.weights.layers import STORAGE_DTYPE, PackedEmbedding
from alrq_core.weights.planes import unpack_codes
from search_spaces.allocation import Allocation
from search_spaces.formats import Format

READABLE = ("gptq", "plain")
WEIGHTS = "model.safetensors"


def write_for_transformers(run: TrialRun, folder: Path, name: str) -> None:
    """Write base weights, configuration, the adapter in PEFT's form beside them, and a model card.

    Embeddings that were looked up in fewer bits are written in 16: no engine reads packed ones.

    Args:
        run: Trained.
        folder: To write into.
        name: That it will have, for the adapter to name its base by.

    Raises:
        ValueError: A module has a format that isn't written so, or lies in a layer of another
            class than `nn.Linear` (GPT-2).
    """
    allocation, config = run.final_allocation, named_config(run)
    _check_formats(allocation)
    packed = _packed_names(run, allocation)
    _check_layers(run, config, packed)
    tensors = _tensors(run, allocation, packed)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config.dtype = STORAGE_DTYPE
    if packed:
        config.quantization_config = _quantization(run, allocation, packed)
    write_configuration(run, config, folder)
    write_adapter(run, folder / PEFT_FOLDER, name)
    card = model_card(run, packed, sum(tensor.nbytes for tensor in tensors.values()))
    (folder / "README.md").write_text(card, encoding="utf-8")


def _check_formats(allocation: Allocation) -> None:
    others = {
        name: choice.method
        for name, choice in allocation.choices.items()
        if choice.method not in READABLE
    }
    if others:
        name, method = next(iter(others.items()))
        raise ValueError(
            f"`--as` transformers must have every module in {' or '.join(READABLE)}, got {method} "
            f"for {name} and {len(others)} of {len(allocation.choices)} in all. Export it without "
            "--as, for `alrq_core.load`, or run a study with --quant-backend gptq."
        )


def _check_layers(run: TrialRun, config: Any, packed: list[str]) -> None:
    name = run.context.inventory.model
    with torch.device("meta"):
        plain = model_class(run.context.task.kind, config, name).from_config(config)
    for module in packed:
        found = plain.get_submodule(module)
        if type(found) is not nn.Linear:
            raise ValueError(
                f"`--as` transformers must find nn.Linear in the model, got {type(found).__name__} "
                f"for {module} of {name}. Export it without --as, for `alrq_core.load`."
            )


def _packed_names(run: TrialRun, allocation: Allocation) -> list[str]:
    """Return the modules that stay packed: no embeddings, since no engine looks rows up in them."""
    return [
        name
        for name, choice in allocation.choices.items()
        if choice.method == "gptq"
        and not isinstance(frozen_layer(run.model, name), PackedEmbedding)
    ]


def _tensors(run: TrialRun, allocation: Allocation, packed: list[str]) -> dict[str, Tensor]:
    """Return the checkpoint's tensors by the names that the plain model has."""
    found: dict[str, Tensor] = {}
    known: set[int] = set()
    for name in allocation.choices:
        layer: Any = frozen_layer(run.model, name)
        known.update(id(parameter) for parameter in layer.parameters())
        if name in packed:
            codes = unpack_codes(layer.weight.data, layer.bits, layer.out_features)
            found[f"{name}.weight_packed"] = as_words(codes.cpu(), layer.bits)
            found[f"{name}.weight_scale"] = layer.scales.cpu().contiguous()
            found[f"{name}.weight_shape"] = torch.tensor(codes.shape)
        else:
            source = layer.packed if isinstance(layer, PackedEmbedding) else layer
            found[f"{name}.weight"] = _stored(source.dequantised())
        if isinstance(getattr(layer, "bias", None), Tensor):
            found[f"{name}.bias"] = _stored(layer.bias)
    for name, tensor in plain_tensors(run.model, known).items():
        if ".lora_" not in name:
            found[name] = _stored(tensor)
    return found


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", STORAGE_DTYPE).contiguous().clone()


def as_words(codes: Tensor, bits: int) -> Tensor:
    """Return signed codes, int8 out x in, as compressed-tensors packs them: int32 out x in bits/32.

    A row is one run of bits, each code moved up so that the smallest is 0, its lowest bit first.
    """
    moved = (codes.numpy().astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    each = np.unpackbits(moved[:, :, None], axis=-1, bitorder="little")[:, :, :bits]
    words = np.packbits(each.reshape(len(moved), -1), axis=-1, bitorder="little").view("<i4")
    return torch.from_numpy(words)


def _quantization(run: TrialRun, allocation: Allocation, packed: list[str]) -> dict[str, Any]:
    """Return the part of the configuration that tells bits and group of each module."""
    groups: dict[Format, list[str]] = {}
    for name in packed:
        groups.setdefault(allocation.choices[name].format, []).append(name)
    linear = [
        name.replace(".base_layer", "")
        for name, module in run.model.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    ]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": {
                "targets": names,
                "weights": {
                    "num_bits": stored.bits,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": stored.group_size,
                },
                "input_activations": None,
                "output_activations": None,
            }
            for number, (stored, names) in enumerate(groups.items())
        },
        "ignore": sorted(set(linear) - set(packed)),
    }
