"""Turns the GGUF file of a package into a folder of safetensors, once a machine."""

import io
import shutil
from contextlib import redirect_stderr
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from alrq_core.caches import caches_folder, mark_used
from alrq_core.files import partial_path, unwritable


def converted_folder(name: str, package_folder: Path) -> Path:
    """Return a folder with the model of a package's GGUF file, in float32, and its tokenizer.

    It lies in the hub's cache, is named after the file and its size, and appears whole or not at
    all. The first conversion takes up to a minute.

    Args:
        name: As given to `--model`, for messages.
        package_folder: Where the package keeps its one GGUF file.

    Raises:
        ValueError: There is no such file, or the cache can't be written.
    """
    source = next(package_folder.glob("*.gguf"), None)
    if source is None:
        raise ValueError(
            f"`--model` {name} must come with a GGUF file, got none in its package. "
            "Install the package again."
        )
    cached = caches_folder() / f"{source.stem}-{source.stat().st_size}"
    if cached.is_dir():
        mark_used(cached)
        return cached
    reason = unwritable(cached.parent)
    if reason is not None:
        raise ValueError(
            f"`HF_HOME` must be a folder that can be written, since `--model` {name} is converted "
            f"into it, got {constants.HF_HOME!r} ({reason}). Set it to another one."
        )
    partial = partial_path(cached)
    partial.mkdir(parents=True)
    try:
        _convert(source, partial)
        # Another process may have been faster; both results are the same.
        if not cached.is_dir():
            partial.rename(cached)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return cached


def _convert(source: Path, target: Path) -> None:
    # Its progress bar listens to no setting.
    with redirect_stderr(io.StringIO()):
        read = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # transformers marks it as quantised, though its weights are plain now, and refuses to save it.
    config = read.config.to_dict()
    config.pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(type(read.config).from_dict(config))
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)
