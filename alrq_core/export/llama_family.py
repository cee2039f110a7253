"""What llama.cpp must know of a model beside its tensors, and which families are known to be alike.

`gguf` has the names of tensors. What it has no table of stands in `FAMILIES`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFType, GGUFWriter
from torch import Tensor

from alrq_core.export.llama_tokens import OTHERWISE, add_tokenizer, checked_tokenizer
from alrq_core.models.finding import hub_id, resolve_model
from alrq_core.models.loading import load_tokenizer, read_config
from alrq_core.records import TaskKind
from alrq_core.trial import TrialRun


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


def check_for_llama_cpp(folder: Path, kind: TaskKind) -> None:
    """Check, before anything runs, that what becomes of a model can be written for llama.cpp.

    Raises:
        ValueError: It is no language model, or see `checked_family` and `checked_tokenizer`.
    """
    if kind != "language-modelling":
        raise ValueError(
            f"`--quant-backend` gguf must go with a language model, got a task of {kind}. "
            "Use another backend."
        )
    checked_family(read_config(folder))
    checked_tokenizer(load_tokenizer(folder))


def checked_family(config: Any) -> Family:
    """Return the family of a model's configuration.

    Raises:
        ValueError: It was not compared with llama.cpp, or computes otherwise than that.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(
            f"`--model` must be of a family that was compared with llama.cpp for gguf "
            f"({', '.join(FAMILIES)}), got {config.model_type}. {OTHERWISE}"
        )
    if config.hidden_act != "silu":
        raise ValueError(
            f"`--model` must have the activation of its family for gguf, silu, got "
            f"{config.hidden_act}. {OTHERWISE}"
        )
    if config.model_type == "qwen3" and config.attention_bias:
        raise ValueError(
            f"`--model` must have no biases in attention for gguf, as llama.cpp's qwen3, got some. "
            f"{OTHERWISE}"
        )
    rule = config.rope_parameters["rope_type"]
    known = ("default", *(("linear", "llama3") if family.scaled else ()))
    if rule not in known:
        raise ValueError(
            f"`--model` must rotate by {' or '.join(known)} frequencies for gguf, as llama.cpp "
            f"does in a {config.model_type} model, got {rule}. {OTHERWISE}"
        )
    return family


def head_dim(config: Any) -> int:
    """Return the width of a head of attention."""
    found = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(found)


def rope_factors(run: TrialRun) -> Tensor | None:
    """Return what the rotation's frequencies are divided by; None where they are the usual ones."""
    config: Any = run.model.config
    rotation: Any = next(m for m in run.model.modules() if hasattr(m, "inv_freq"))
    size = head_dim(config)
    usual = config.rope_parameters["rope_theta"] ** -(torch.arange(0, size, 2) / size)
    found = rotation.inv_freq.detach().float().cpu()
    if torch.allclose(found, usual, rtol=1e-5):
        return None
    factors: Tensor = usual / found
    return factors


def describe(writer: GGUFWriter, run: TrialRun) -> None:
    """Add what llama.cpp must know of the model and its tokenizer.

    Raises:
        ValueError: See `add_tokenizer`.
    """
    named: Any = run.model.config
    inventory = run.context.inventory
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
    writer.add_key_length(head_dim(named))
    writer.add_value_length(head_dim(named))
    writer.add_rope_dimension_count(head_dim(named))
    writer.add_rope_freq_base(named.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(named.rms_norm_eps)
    writer.add_vocab_size(named.vocab_size)
    writer.add_quantization_version(2)
    tokenizer = load_tokenizer(resolve_model(inventory.model))
    add_tokenizer(writer, tokenizer, named.vocab_size)
