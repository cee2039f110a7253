"""Lets all processes of a machine share one copy of a base model's weights."""

import hashlib
from collections.abc import Collection, Container, Mapping
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from alrq_core.caches import WEIGHTS, caches_folder, mark_used
from alrq_core.files import partial_of, placed, spared

SIXTEEN_BITS = {"F16": torch.float16, "BF16": torch.bfloat16}


def weights_folder() -> Path:
    """Return where converted weights lie."""
    return caches_folder() / WEIGHTS


def held_dtype(types: Collection[str]) -> torch.dtype:
    """Return what holds matrices of these types exactly; numbers of 64 bits are read in 32."""
    return SIXTEEN_BITS.get(next(iter(types)), torch.float32) if len(types) == 1 else torch.float32


def is_mapped(model: nn.Module, types: Collection[str]) -> bool:
    """Tell whether a model just loaded in `held_dtype` computes with its files' own bytes.

    safetensors maps a file, so processes share it, until a weight changes its type or its order.

    Args:
        model: As loaded.
        types: Of the matrices in its files, as safetensors calls them.
    """
    turned = any(isinstance(module, Conv1D) for module in model.modules())
    return not turned and types in ({"F32"}, *({kind} for kind in SIXTEEN_BITS))


def share_weights(model: nn.Module, source: Path, new: Container[str]) -> None:
    """Put the weights of a loaded model in place of maps of one file, made by the first process.

    The file is named after the paths, sizes and times of the files that the weights come from.
    Where it can't be written the model keeps its own copy, and says so.

    Args:
        model: Its parameters are replaced in place.
        source: Folder of its files.
        new: Parameters that are in none of them.
    """
    weights = {name: p for name, p in model.named_parameters() if name not in new}
    path = weights_folder() / f"{_key(weights, source)}.safetensors"
    with spared(weights_folder(), "converted weights"):
        if not path.is_file():
            tensors = {name: parameter.detach().contiguous() for name, parameter in weights.items()}
            with partial_of(path) as partial:
                save_file(tensors, partial)
                # What another process has written meanwhile may be mapped already.
                if not placed(partial, path) and not path.is_file():
                    partial.replace(path)
        mark_used(path)
        with safe_open(path, framework="pt") as file:
            for name, parameter in weights.items():
                parameter.data = file.get_tensor(name)


def _key(weights: Mapping[str, Tensor], source: Path) -> str:
    files = sorted(source.glob("*.safetensors"))
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    shapes = [(name, tuple(p.shape), str(p.dtype)) for name, p in weights.items()]
    what = (transformers.__version__, stats, shapes)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:40]
