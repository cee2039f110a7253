"""Checks what a model's folder shows before its weights are read, and what the model fits."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from alrq_core.models.streamed import streamed
from alrq_core.models.vocabulary import vocabulary_rows

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
# What safetensors calls the types of weights that nobody has quantised.
PLAIN_TYPES = frozenset({"F64", "F32", "F16", "BF16"})
# Kinds of files that are read from a model's folder.
READ_SUFFIXES = frozenset({".json", ".model", ".safetensors", ".txt"})
POINTER_START = b"version https://git-lfs"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, ready to stand in a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else "no reason given"


def check_folder(folder: Path, name: str, weights: bool = True) -> None:
    """Check that a folder holds one plain model whose weights are all there.

    Args:
        folder: Of the model.
        name: As given to `--model`, for messages.
        weights: Whether they must be there; those that are there are checked in any case.

    Raises:
        ValueError: It holds an adapter, pointers, quantised or incomplete weights, or a
            configuration that describes no model.
    """
    for file in ADAPTER_FILES:
        if (folder / file).exists():
            raise ValueError(
                f"`--model` must be a base model alone, got {name!r} with {file} of an adapter. "
                "Merge the adapter into the model, or move it out of the folder."
            )
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(
            f"`--model` must be a folder with a config.json, got {name!r}. "
            "Save it with `save_pretrained`."
        )
    for path in sorted(folder.iterdir()):
        if path.suffix in READ_SUFFIXES and path.is_file() and _is_pointer(path):
            raise ValueError(
                f"`--model` must hold the files themselves, got {name!r} with a Git LFS pointer "
                f"for {path.name}. Run `git lfs pull` there."
            )
    config = _json_object(folder / CONFIG_NAME, name)
    if not isinstance(config.get("model_type"), str):
        raise ValueError(
            f"`--model` must name its `model_type` in config.json, got {name!r} with "
            f"{config.get('model_type')!r}. Save it with `save_pretrained`."
        )
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        _refuse_quantised(name, f"by {method}")
    headers = weight_headers(folder, name) if weights or has_weights(folder) else {}
    for tensor, (kind, _) in headers.items():
        if tensor.endswith("weight") and kind not in PLAIN_TYPES:
            _refuse_quantised(name, f"{tensor} of type {kind}")


def has_weights(folder: Path) -> bool:
    """Tell whether a folder has weights, or says that it should."""
    return any((folder / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))


def matrix_types(folder: Path, name: str) -> frozenset[str]:
    """Return the types of the matrices in a model's files, as safetensors calls them.

    Vectors don't count: every trial rounds them to 16 bits, as a deployed model keeps them.

    Args:
        folder: Of the model.
        name: As given to `--model`, for messages.
    """
    headers = weight_headers(folder, name).values()
    return PLAIN_TYPES & {kind for kind, shape in headers if len(shape) > 1}


def weight_headers(folder: Path, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return type and shape of each tensor in a model's files, without reading any.

    Args:
        folder: Of the model.
        name: As given to `--model`, for messages.

    Raises:
        ValueError: A file is missing, cut or damaged.
    """
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in weight_files(folder, name):
        try:
            with safe_open(path, framework="numpy") as file:
                for tensor in file.keys():  # noqa: SIM118
                    part = file.get_slice(tensor)
                    found[tensor] = (part.get_dtype(), tuple(part.get_shape()))
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"`--model` must have its weights whole, got {name!r} with {path.name} of "
                f"{path.stat().st_size:,} bytes, cut or damaged ({first_line(error)}). "
                "Fetch or save it again."
            ) from error
    return found


def weight_files(folder: Path, name: str) -> list[Path]:
    """Return the files that transformers reads a model's weights from.

    Raises:
        ValueError: One is missing.
    """
    single, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ValueError(
            f"`--model` must have its weights in safetensors, got {name!r} with neither "
            f"{SAFE_WEIGHTS_NAME} nor its shards. Convert it with `save_pretrained(folder)` first."
        )
    paths = [folder / part for part in shard_names(folder, name)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"`--model` must have all shards of its weights, got {name!r} without {missing[0]} "
            f"({len(missing)} of {len(paths)} are missing). Fetch it again."
        )
    return paths


def shard_names(folder: Path, name: str) -> list[str]:
    """Return the files that a model's index lists.

    Raises:
        ValueError: It lists none.
    """
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    parts = _json_object(index, name).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise ValueError(
            f"`--model` must list its shards, got {name!r} without a `weight_map` in {index.name}. "
            "Fetch or save it again."
        )
    return sorted(set(map(str, parts.values())))


def _json_object(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"`--model` must have readable files, got {name!r} with a {path.name} that is no JSON "
            f"({first_line(error)}). Fetch or save it again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"`--model` must have an object in {path.name}, got {name!r} with a "
            f"{type(content).__name__}. Fetch or save it again."
        )
    return content


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(POINTER_START)) == POINTER_START


def _refuse_quantised(name: str, how: str) -> None:
    raise ValueError(
        f"`--model` must have plain weights of 16 or 32 bits, got {name!r}, which is quantised "
        f"already ({how}). Use the model that it was made from."
    )


def check_fit(
    model: Any, tokenizer: PreTrainedTokenizerBase, name: str, max_length: int | None
) -> None:
    """Check that a model has an embedding for each token and a position for each place.

    Args:
        model: May lie on the meta device.
        tokenizer: Of the model.
        name: As given to `--model`, for messages.
        max_length: Tokens of the longest sequence; None for one that fits.

    Raises:
        ValueError: It hasn't.
    """
    needed, rows = vocabulary_rows(tokenizer), len(model.get_input_embeddings().weight)
    if needed > rows:
        raise ValueError(
            f"`--model` must come with a tokenizer that fits, got {name!r} with a vocabulary of "
            f"{needed} tokens for {rows} embeddings. Restore the model's own tokenizer files."
        )
    limit = position_limit(model)
    if max_length is not None and limit is not None and max_length > limit:
        raise ValueError(
            f"`--max-length` must be at most {limit}, the positions of {name!r}, got {max_length}. "
            f"Give --max-length {limit} or choose another model."
        )


def position_limit(model: Any) -> int | None:
    """Return the tokens of the longest sequence that a model was made for; None without a limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    for module in model.modules():
        # RoBERTa and its kin number positions from the one after the padding token's.
        if (
            isinstance(module, nn.Embedding)
            and module is not model.get_input_embeddings()
            and module.num_embeddings == limit
            and module.padding_idx is not None
        ):
            return limit - module.padding_idx - 1
    return limit


def check_causal(model: nn.Module, name: str) -> None:
    """Check that no token changes what the model, on the CPU, says before it.

    Raises:
        ValueError: One does, and a perplexity would mean nothing.
    """
    ids = torch.tensor([[0, 1, 0], [0, 1, 1]])
    with torch.no_grad():
        run = streamed(model, ids.device).eval()
        one, other = run(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    if not torch.allclose(one[:-1], other[:-1], rtol=1e-3, atol=1e-4):
        raise ValueError(
            f"`--model` must predict each token from those before it, got {name!r}, which also "
            "sees those after it. Choose another model or another `--task`."
        )
