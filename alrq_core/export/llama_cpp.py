"""Writes a trained allocation as two GGUF files for llama.cpp: the base, and its adapter as LoRA.

The base holds the very codes that were trained, in llama.cpp's own blocks. Names of tensors come
from the tables of `gguf`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGUFType, GGUFWriter, get_tensor_name_map
from numpy.typing import NDArray
from torch import Tensor

from alrq_core.adapters.lora import ADAPTER as LORA
from alrq_core.adapters.lora import frozen_layer, lora_layers
from alrq_core.export.blocks import ADAPTER, BLOCKS, PLAIN, VECTOR, BlockType, as_blocks
from alrq_core.export.card import llama_card
from alrq_core.export.llama_family import (
    Family,
    checked_family,
    describe,
    head_dim,
    rope_factors,
)
from alrq_core.export.parts import plain_tensors
from alrq_core.trial import TrialRun
from alrq_core.weights.layers import STORAGE_DTYPE, PackedEmbedding
from alrq_core.weights.planes import unpack_codes
from search_spaces.allocation import Allocation, Choice

BASE, LORA_FILE = "model.gguf", "adapter.gguf"
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class _Stored:
    """One tensor of a file.

    Attributes:
        name: In llama.cpp.
        shape: Of the values, the outputs first.
        kind: How they are stored.
        make: Returns them as they are stored: large ones are made one by one.
    """

    name: str
    shape: tuple[int, ...]
    kind: BlockType
    make: Callable[[], NDArray[Any]]


def write_for_llama_cpp(run: TrialRun, folder: Path, _: str) -> None:
    """Write the base, the adapter if there is one, and a model card.

    Args:
        run: Trained.
        folder: To write into.

    Raises:
        ValueError: A module has a format that llama.cpp can't read, or the model's family,
            activation, rotation or tokenizer isn't known to be read alike.
    """
    config: Any = run.model.config
    family = checked_family(config)
    blocks = checked_blocks(run.final_allocation)
    names = get_tensor_name_map(family.arch, config.num_hidden_layers)
    base = list(_base_tensors(run, family, names, blocks))
    _write(folder / BASE, family, base, lambda writer: describe(writer, run))
    adapter = list(_adapter_tensors(run, family, names))
    if adapter:
        _write(folder / LORA_FILE, family, adapter, lambda writer: _describe_lora(writer, run))
    size = (folder / BASE).stat().st_size
    card = llama_card(run, [block.name for block in blocks.values()], size)
    (folder / "README.md").write_text(card, encoding="utf-8")


def checked_blocks(allocation: Allocation) -> dict[str, BlockType]:
    """Return how llama.cpp stores every module.

    Raises:
        ValueError: It can't. The message has the first such module's name.
    """
    found = {name: _block(choice) for name, choice in allocation.choices.items()}
    others = [name for name, block in found.items() if block is None]
    if others:
        choice = allocation.choices[others[0]]
        read = ", ".join(f"{bits} bits in groups of {b.size}" for bits, b in BLOCKS.items())
        raise ValueError(
            f"`--as` gguf must have every module in 16 bits or codes of gptq that fill llama.cpp's "
            f"blocks ({read}, or whole multiples), got {choice.bits} bits of {choice.method} in "
            f"groups of {choice.group_size} for {others[0]}, and {len(others)} of {len(found)} "
            "such modules in all. Run a study with --quant-backend gguf."
        )
    return {name: block for name, block in found.items() if block is not None}


def _block(choice: Choice) -> BlockType | None:
    if choice.method == "plain":
        return PLAIN
    block = BLOCKS.get(choice.bits)
    if choice.method != "gptq" or block is None or choice.group_size % block.size:
        return None
    return block


def _base_tensors(
    run: TrialRun, family: Family, names: Any, blocks: Mapping[str, BlockType]
) -> Iterator[_Stored]:
    """Return the tensors of the base model, by llama.cpp's names."""
    known: set[int] = set()
    for name, block in blocks.items():
        layer: Any = frozen_layer(run.model, name)
        known.update(id(parameter) for parameter in layer.parameters())
        layer = layer.packed if isinstance(layer, PackedEmbedding) else layer
        order = _order(run, family, name)
        yield _Stored(
            _named(names, f"{name}.weight"),
            (layer.out_features, layer.in_features),
            block,
            partial(_matrix, layer, order),
        )
        if getattr(layer, "bias", None) is not None:
            yield _vector(_named(names, f"{name}.bias"), layer.bias[order].to(STORAGE_DTYPE))
    for name, tensor in plain_tensors(run.model, known).items():
        if ".lora_" in name:
            continue
        if tensor.dim() == 1:
            # As it is scored.
            yield _vector(_named(names, name), tensor.to(STORAGE_DTYPE))
        else:
            make = partial(_in_bfloat16, tensor)
            yield _Stored(_named(names, name), tuple(tensor.shape), PLAIN, make)
    factors = rope_factors(run)
    if factors is not None:
        yield _vector(ROPE_FACTORS, factors)


def _adapter_tensors(run: TrialRun, family: Family, names: Any) -> Iterator[_Stored]:
    """Return both halves of each adapter. llama.cpp scales them by alpha / rank, one alpha for all.

    Here alpha / rank is the same for all: the rank goes into the second half.
    """
    for name, layer in lora_layers(run.model).items():
        a, b = (half[LORA].weight.detach() for half in (layer.lora_A, layer.lora_B))
        widened = b[_order(run, family, name)] * len(a)
        for half, tensor in (("a", a), ("b", widened)):
            yield _Stored(
                f"{_named(names, f'{name}.weight')}.lora_{half}",
                tuple(tensor.shape),
                ADAPTER,
                partial(_in_float16, tensor),
            )


def _named(names: Any, name: str) -> str:
    found: str | None = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ValueError(
            f"`--as` gguf must know every tensor of the model, got {name}, which the table of gguf "
            "has not. Export it without --as, or as transformers."
        )
    return found


def _order(run: TrialRun, family: Family, name: str) -> Tensor | slice:
    """Return the order of a module's outputs: of query and key by pairs that are rotated together.

    transformers rotates output i of a head with i + half of it, llama.cpp 2i with 2i + 1.
    """
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    last = name.rpartition(".")[2]
    if not family.interleaved or last not in heads:
        return slice(None)
    count = getattr(run.model.config, heads[last])
    rows = torch.arange(count * head_dim(run.model.config))
    return rows.view(count, 2, -1).transpose(1, 2).flatten()


def _matrix(layer: Any, order: Tensor | slice) -> NDArray[Any]:
    if not hasattr(layer, "scales"):
        return _in_bfloat16(layer.dequantised()[order])
    codes = unpack_codes(layer.weight.data.cpu(), layer.bits, layer.out_features)[order]
    return as_blocks(codes.numpy(), layer.scales.cpu()[order].numpy(), layer.bits)


def _in_bfloat16(tensor: Tensor) -> NDArray[Any]:
    """Return the bits: numpy has no such type."""
    stored = tensor.detach().to("cpu", STORAGE_DTYPE).contiguous()
    return stored.view(torch.int16).numpy()


def _in_float16(tensor: Tensor) -> NDArray[Any]:
    return tensor.to("cpu", torch.float16).numpy()


def _vector(name: str, tensor: Tensor) -> _Stored:
    made = tensor.detach().to("cpu", torch.float32)
    return _Stored(name, tuple(made.shape), VECTOR, made.numpy)


def _describe_lora(writer: GGUFWriter, run: TrialRun) -> None:
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", run.context.recipe.alpha_over_rank)


def _write(
    path: Path, family: Family, tensors: list[_Stored], describe: Callable[[GGUFWriter], None]
) -> None:
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[family.arch])
    describe(writer)
    for tensor in tensors:
        count = tensor.kind.matrix_bytes(tensor.shape)
        # A type that its own table lacks goes by its number.
        number: Any = tensor.kind.number
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.int8), count, raw_dtype=number
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(np.ascontiguousarray(tensor.make()))
    writer.close()
