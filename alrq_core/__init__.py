"""Builds, trains and scores one allocation of bits and LoRA ranks."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alrq_core.export.exact import LoadedModel


def load(folder: str | Path) -> "LoadedModel":
    """Return the model that `alrq_core.export.exact.save` wrote, ready for use.

    Raises:
        ValueError: See `alrq_core.export.exact.load`.
    """
    # Importing the package alone must not import torch.
    from alrq_core.export.exact import load as load_folder  # noqa: PLC0415

    return load_folder(Path(folder))
