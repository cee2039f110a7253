"""What a study's texts and its model's files are, in a few letters each, to know them again."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alrq_core.data.splits import TextSplit
from alrq_core.data.task import Task
from alrq_core.models.checks import has_weights, weight_files
from alrq_core.models.digests import file_digest
from alrq_core.models.finding import CONFIG_ONLY

SHORT_DIGITS = 12
Parts = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Digests:
    """SHA-256 of all that decides what a trial learns from and starts from.

    Attributes:
        data: Of each split, its texts and labels in their order, and of the names of the classes.
        model: Of each file that is read: weights, configuration, tokenizer.
    """

    data: Parts
    model: Parts

    def to_json(self) -> dict[str, dict[str, str]]:
        """Return the JSON form."""
        return {"data": dict(self.data), "model": dict(self.model)}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "Digests":
        """Return what `to_json` wrote."""
        return Digests(data=content["data"], model=content["model"])


def digests_of(task: Task, model_folder: Path) -> Digests:
    """Return the digests of a task's texts and of a model's files."""
    splits = {"train": task.train, "validation": task.validation, "test": task.test}
    data = {name: _split_digest(split) for name, split in splits.items()}
    return Digests(
        data=data | {"class names": _joined(task.label_names)},
        model={path.name: file_digest(path) for path in _model_files(model_folder)},
    )


def combined(parts: Parts) -> str:
    """Return the first digits of one digest of several."""
    return _joined(text for name in sorted(parts) for text in (name, parts[name]))[:SHORT_DIGITS]


def changed(now: Parts, before: Parts) -> list[str]:
    """Return the names of the parts that differ, or that one side lacks."""
    return [name for name in sorted({*now, *before}) if now.get(name) != before.get(name)]


def _split_digest(split: TextSplit) -> str:
    return _joined((*split.texts, *map(str, split.labels)))


def _joined(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        # With its length, no text can pass for the end of one and the beginning of the next.
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def _model_files(folder: Path) -> list[Path]:
    found = {path for pattern in CONFIG_ONLY for path in folder.glob(pattern) if path.is_file()}
    weights = weight_files(folder, str(folder)) if has_weights(folder) else ()
    return sorted({*found, *weights})
