"""Lists a model's target modules, and loads it with a task head.

Only safetensors are read and no code from a model's folder is ever run.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from alrq_core.models.checks import (
    check_causal,
    check_fit,
    first_line,
    has_weights,
    matrix_types,
    weight_headers,
)
from alrq_core.models.finding import pinned_name, resolve_model
from alrq_core.models.heads import mark_head
from alrq_core.models.shared_weights import held_dtype, is_mapped, share_weights
from alrq_core.models.structure import as_linear, check_structure, find_embeddings, find_targets
from alrq_core.models.vocabulary import check_vocabulary
from alrq_core.records import TaskKind
from search_spaces.inventory import Inventory

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


@lru_cache(maxsize=4)
def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer; one without a padding token pads with its end token.

    Raises:
        ValueError: The folder has no usable tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        # The parser in Rust raises no other kind for a file that it can't read.
        raise ValueError(
            f"`--model` must come with its tokenizer, got {str(folder)!r} "
            f"({first_line(error)}). Save it there with `tokenizer.save_pretrained`."
        ) from error
    check_vocabulary(tokenizer, folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"`--model` must come with a tokenizer that can pad, got {str(folder)!r} with neither "
            "a padding nor an end token. Set `tokenizer.pad_token` and save it there."
        )
    return tokenizer


def inspect_model(
    name: str, kind: TaskKind, labels: int, max_length: int | None = None, weights: bool = True
) -> Inventory:
    """Return the model's inventory, after checking all that can be known without its weights.

    Args:
        name: As given to `--model`.
        kind: Of the task.
        labels: Number of classes.
        max_length: Tokens of the longest sequence; None for one that fits.
        weights: Whether its files must be there; without them they are taken to be whole.

    Raises:
        ValueError: The model doesn't fit the kind of task, its length or its own files, or keeps
            weights where they can't be packed.
    """
    folder = resolve_model(name, weights)
    config = task_config(folder, kind, labels)
    auto = model_class(kind, config, name)
    try:
        with torch.device("meta"):
            model, absent = auto.from_config(config), set[str]()
        if weights or has_weights(folder):
            headers = weight_headers(folder, name).items()
            tensors = {key: torch.empty(shape, device="meta") for key, (_, shape) in headers}
            model, absent = _pretrained(
                type(model), None, config, state_dict=tensors, device_map="meta"
            )
    except Exception as error:
        # What transformers and torch raise for sizes that don't go together, each in its own way.
        raise ValueError(
            f"`--model` must have a config.json that describes it, got {name!r} "
            f"({type(error).__name__}: {first_line(error)}). Save it with `save_pretrained`."
        ) from error
    as_linear(model)
    check_structure(model, name)
    mark_head(model, kind, absent, name)
    check_fit(model, load_tokenizer(folder), name, max_length)
    targets, embeddings = find_targets(model), find_embeddings(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    varied = sum(module.weights for module in (*targets, *embeddings))
    return Inventory(
        model=pinned_name(name),
        targets=targets,
        other_parameters=parameters - varied,
        embeddings=embeddings,
    )


def load_model(name: str, kind: TaskKind, labels: int, dropout: float = 0.0) -> nn.Module:
    """Return the pretrained model on the CPU, in the type of its files.

    Where its matrices are of several types, all are read in float32. A new head is drawn from
    torch's generator: seed it first.

    Args:
        name: As given to `--model`.
        kind: Of the task.
        labels: Number of classes.
        dropout: Probability of every dropout in the model.

    Raises:
        ValueError: The files lack a pretrained weight, or a language model sees what it predicts.
    """
    folder = resolve_model(name)
    config = task_config(folder, kind, labels)
    set_dropout(config, dropout)
    auto = model_class(kind, config, name)
    types = matrix_types(folder, name)
    model, absent = _pretrained(
        auto, folder, config, held_dtype(types), use_safetensors=True, trust_remote_code=False
    )
    mapped = is_mapped(model, types)
    as_linear(model)
    if not mapped:
        share_weights(model, folder, absent)
    mark_head(model, kind, absent, name)
    if kind == "language-modelling":
        check_causal(model, name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model


def _pretrained(
    auto: Any,
    source: Path | None,
    config: PretrainedConfig,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[nn.Module, set[str]]:
    """Return a model in one type, and the names of its weights that the files lack.

    Those of another size are among them: a head of another task is replaced, what else lacks is
    refused by `mark_head`.
    """
    model, loading = auto.from_pretrained(
        source,
        config=config,
        dtype=dtype,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,
    )
    if not isinstance(model, nn.Module):
        raise TypeError(f"transformers returned a {type(model).__name__} for {source}")
    return model, {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}


def set_dropout(config: PretrainedConfig, dropout: float) -> None:
    """Set every dropout of a configuration; whole layers are never dropped (OPT can)."""
    for key, value in config.to_dict().items():
        if isinstance(value, bool) or not isinstance(value, float | int):
            continue
        if "dropout" in key or key.endswith("pdrop"):
            setattr(config, key, dropout)
        elif "layerdrop" in key:
            setattr(config, key, 0.0)


def read_config(folder: Path, **changes: Any) -> PretrainedConfig:
    """Return a model's configuration.

    Raises:
        ValueError: transformers can't read it.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, **changes
        )
    except Exception as error:
        # Unknown types raise one kind, values of the wrong type several others.
        raise ValueError(
            f"`--model` must be of a type that transformers knows, got {str(folder)!r} "
            f"({first_line(error)}). Choose another model, or install a newer transformers."
        ) from error
    return config


def task_config(folder: Path, kind: TaskKind, labels: int) -> PretrainedConfig:
    """Return a model's configuration for a kind of task.

    Raises:
        ValueError: The model has several parts, or its tokenizer's padding doesn't fit it.
    """
    config = read_config(folder, num_labels=labels)
    if getattr(config, "is_encoder_decoder", False) or config.get_text_config() is not config:
        raise ValueError(
            f"`--model` must be one encoder or one decoder of text, got {str(folder)!r} of type "
            f"{config.model_type}, which has several parts. Choose another model."
        )
    given = getattr(config, "pad_token_id", None)
    # A decoder classifies by the last token that is no padding, and its batches are padded by the
    # tokenizer. An encoder may number its positions by the padding token that it was trained with.
    if given is None or (kind == "classification" and _is_decoder(config)):
        config.pad_token_id = load_tokenizer(folder).pad_token_id
    if given != config.pad_token_id and config.pad_token_id >= config.vocab_size:
        raise ValueError(
            f"`--model` must come with a tokenizer that fits, got padding token "
            f"{config.pad_token_id} for {config.vocab_size} embeddings in {str(folder)!r}. "
            "Choose another `tokenizer.pad_token` and save it there."
        )
    return config


def _is_decoder(config: PretrainedConfig) -> bool:
    """Tell whether the model predicts the next token: transformers has BERT as both kinds."""
    masked = type(config) in AutoModelForMaskedLM._model_mapping
    causal = type(config) in AutoModelForCausalLM._model_mapping
    return causal and (getattr(config, "is_decoder", False) or not masked)


def model_class(kind: TaskKind, config: PretrainedConfig, name: str) -> Any:
    """Return the Auto class of transformers that builds a model for a kind of task.

    Raises:
        ValueError: The type of model doesn't have that kind.
    """
    auto = AutoModelForSequenceClassification if kind == "classification" else AutoModelForCausalLM
    supported = type(config) in auto._model_mapping
    if not supported or (kind == "language-modelling" and not _is_decoder(config)):
        raise ValueError(
            f"`--model` must support {kind}, got {name!r} of type {config.model_type}. "
            "Choose another model or another `--task`."
        )
    return auto
