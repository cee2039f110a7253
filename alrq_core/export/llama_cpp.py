"""Writes a trained allocation as two GGUF files for llama.cpp: the base, and its adapter as LoRA.

The base holds the very codes that were trained, in llama.cpp's own blocks. Names and the order of
tensors come from the tables of `gguf`; what those don't say stands in `FAMILIES`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFType, GGUFWriter, get_tensor_name_map
from numpy.typing import NDArray
from torch import Tensor

from alrq_core.adapters.lora import ADAPTER as LORA
from alrq_core.adapters.lora import frozen_layer, lora_layers
from alrq_core.export.blocks import ADAPTER, BLOCKS, PLAIN, VECTOR, BlockType, as_blocks
from alrq_core.export.card import llama_card
from alrq_core.export.llama_tokens import add_tokenizer
from alrq_core.export.parts import plain_tensors
from alrq_core.models.finding import hub_id, resolve_model
from alrq_core.models.loading import load_tokenizer
from alrq_core.trial import TrialRun
from alrq_core.weights.layers import STORAGE_DTYPE, PackedEmbedding
from alrq_core.weights.planes import unpack_codes
from search_spaces.allocation import Allocation, Choice

BASE, LORA_FILE = "model.gguf", "adapter.gguf"
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Family:
    """What `gguf` has no table of.

    Attributes:
        arch: In llama.cpp.
        interleaved: Whether it rotates neighbours instead of halves, so that the outputs of query
            and key stand in another order.
        scaled: Whether it reads factors of the rotation's frequencies.
    """

    arch: MODEL_ARCH
    interleaved: bool = False
    scaled: bool = False


# By `model_type` of transformers. Each was compared with llama.cpp's own answers.
FAMILIES = {
    "llama": Family(MODEL_ARCH.LLAMA, interleaved=True, scaled=True),
    "mistral": Family(MODEL_ARCH.LLAMA, interleaved=True, scaled=True),
    "qwen2": Family(MODEL_ARCH.QWEN2),
    "qwen3": Family(MODEL_ARCH.QWEN3),
}


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
    family = _checked_family(config)
    check_formats(run.final_allocation)
    names = get_tensor_name_map(family.arch, config.num_hidden_layers)
    base = list(_base_tensors(run, family, names))
    _write(folder / BASE, family, base, lambda writer: _describe(writer, run, family))
    adapter = list(_adapter_tensors(run, family, names))
    if adapter:
        _write(folder / LORA_FILE, family, adapter, lambda writer: _describe_lora(writer, run))
    size = (folder / BASE).stat().st_size
    card = llama_card(run, {name: _block(choice).name for name, choice in _choices(run)}, size)
    (folder / "README.md").write_text(card, encoding="utf-8")


def check_formats(allocation: Allocation) -> None:
    """Check that llama.cpp has blocks for every module's codes.

    Raises:
        ValueError: It hasn't. The message has the first such module's name.
    """
    others = {name: choice for name, choice in allocation.choices.items() if kind(choice) is None}
    if others:
        name, found = next(iter(others.items()))
        read = ", ".join(f"{bits} bits in groups of {b.size}" for bits, b in BLOCKS.items())
        raise ValueError(
            f"`--as` gguf must have every module in 16 bits or codes of gptq that fill llama.cpp's "
            f"blocks ({read}, or whole multiples), got {found.bits} bits of {found.method} in "
            f"groups of {found.group_size} for {name}, and {len(others)} of "
            f"{len(allocation.choices)} such modules in all. Run a study with --quant-backend gguf."
        )


def kind(choice: Choice) -> BlockType | None:
    """Return how llama.cpp stores what a module chose; None where it can't."""
    if choice.method == "plain":
        return PLAIN
    block = BLOCKS.get(choice.bits)
    if choice.method != "gptq" or block is None or choice.group_size % block.size:
        return None
    return block


def _block(choice: Choice) -> BlockType:
    found = kind(choice)
    assert found is not None, choice
    return found


def _choices(run: TrialRun) -> Iterator[tuple[str, Choice]]:
    yield from run.final_allocation.choices.items()


def _checked_family(config: Any) -> Family:
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(
            f"`--as` gguf must have a family that was compared with llama.cpp "
            f"({', '.join(FAMILIES)}), got {config.model_type}. Export it without --as, or as "
            "transformers, and convert that."
        )
    if config.hidden_act != "silu":
        raise ValueError(
            f"`--as` gguf must have the activation of its family, silu, got {config.hidden_act}. "
            "Export it without --as, or as transformers."
        )
    return family


def _base_tensors(run: TrialRun, family: Family, names: Any) -> Iterator[_Stored]:
    """Return the tensors of the base model, by llama.cpp's names."""
    known: set[int] = set()
    for name, choice in _choices(run):
        layer: Any = frozen_layer(run.model, name)
        known.update(id(parameter) for parameter in layer.parameters())
        layer = layer.packed if isinstance(layer, PackedEmbedding) else layer
        order = _order(run, family, name)
        yield _Stored(
            _named(names, f"{name}.weight"),
            (layer.out_features, layer.in_features),
            _block(choice),
            partial(_matrix, layer, order),
        )
        if getattr(layer, "bias", None) is not None:
            yield _vector(_named(names, f"{name}.bias"), layer.bias[order])
    for name, tensor in plain_tensors(run.model, known).items():
        if ".lora_" in name:
            continue
        if tensor.dim() == 1:
            yield _vector(_named(names, name), tensor)
        else:
            make = partial(_in_bfloat16, tensor)
            yield _Stored(_named(names, name), tuple(tensor.shape), PLAIN, make)
    factors = _rope_factors(run, family)
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
    rows = torch.arange(count * _head_dim(run.model.config))
    return rows.view(count, 2, -1).transpose(1, 2).flatten()


def _head_dim(config: Any) -> int:
    found = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(found)


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
    """Return a bias or a norm, rounded to 16 bits as it is scored and stored in 32."""
    made = tensor.detach().to("cpu", STORAGE_DTYPE).float() if name != ROPE_FACTORS else tensor
    return _Stored(name, tuple(made.shape), VECTOR, made.numpy)


def _rope_factors(run: TrialRun, family: Family) -> Tensor | None:
    """Return what the rotation's frequencies are divided by; None where they are the usual ones."""
    config: Any = run.model.config
    rotation: Any = next(m for m in run.model.modules() if hasattr(m, "inv_freq"))
    size = _head_dim(config)
    usual = config.rope_parameters["rope_theta"] ** -(torch.arange(0, size, 2) / size)
    found = rotation.inv_freq.detach().float().cpu()
    kind = config.rope_parameters["rope_type"]
    if kind not in ("default", "linear", "llama3") or found.shape != usual.shape:
        raise ValueError(
            "`--as` gguf must rotate whole heads by default, linear or llama3 frequencies, got "
            f"{kind} over {2 * len(found)} of {size}. Export it as transformers, and convert that."
        )
    if torch.allclose(found, usual, rtol=1e-5):
        return None
    if not family.scaled:
        raise ValueError(
            f"`--as` gguf must have the usual frequencies in a {config.model_type} model, since "
            f"llama.cpp reads no others there, got {kind}. Export it as transformers."
        )
    factors: Tensor = usual / found
    return factors


def _describe(writer: GGUFWriter, run: TrialRun, family: Family) -> None:
    """Add what llama.cpp must know of the model and its tokenizer."""
    config, inventory = run.model.config, run.context.inventory
    named: Any = config
    name = hub_id(inventory.model)[0]
    writer.add_type(GGUFType.MODEL)
    writer.add_name(f"{name} for {run.context.task.name}")
    # Where attention ends after some tokens, no longer texts are read alike.
    window = getattr(named, "sliding_window", None) or named.max_position_embeddings
    writer.add_context_length(min(window, named.max_position_embeddings))
    writer.add_block_count(named.num_hidden_layers)
    writer.add_embedding_length(named.hidden_size)
    writer.add_feed_forward_length(named.intermediate_size)
    writer.add_head_count(named.num_attention_heads)
    writer.add_head_count_kv(named.num_key_value_heads)
    writer.add_key_length(_head_dim(named))
    writer.add_value_length(_head_dim(named))
    writer.add_rope_dimension_count(_head_dim(named))
    writer.add_rope_freq_base(named.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(named.rms_norm_eps)
    writer.add_vocab_size(named.vocab_size)
    writer.add_quantization_version(2)
    tokenizer = load_tokenizer(resolve_model(inventory.model))
    add_tokenizer(writer, tokenizer, named.vocab_size)


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
