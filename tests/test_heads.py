"""The head is what a task adds; a pretrained weight that the files lack is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alrq_core.models.heads import head_names
from alrq_core.models.loading import load_model
from alrq_core.records import TaskKind
from tests.tiny import save_bert, save_llama

QUERY = "bert.encoder.layer.1.attention.self.query.weight"
POSITIONS = "bert.embeddings.position_embeddings.weight"


def edit_weights(folder: Path, **changes: Tensor | None) -> None:
    path = folder / "model.safetensors"
    tensors: dict[str, Any] = load_file(path) | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, path, metadata={"format": "pt"})


def test_the_head_is_what_the_task_added(bert_folder: Path, llama_folder: Path) -> None:
    classifier = load_model(str(bert_folder), "classification", 3)
    language_model = load_model(str(llama_folder), "language-modelling", 0)

    assert head_names(classifier, "classification") == ("classifier",)
    assert head_names(language_model, "language-modelling") == ()


@pytest.mark.parametrize("name", [QUERY, POSITIONS, "bert.embeddings.word_embeddings.weight"])
def test_a_weight_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    folder = save_bert(tmp_path / "m")
    edit_weights(folder, **{name: None})
    with pytest.raises(ValueError, match=f"pretrained weights in its files, got .* without {name}"):
        load_model(str(folder), "classification", 2)


def test_a_weight_of_another_size_is_named(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "m")
    edit_weights(folder, **{POSITIONS: torch.zeros(16, 64)})
    with pytest.raises(ValueError, match=f"without {POSITIONS} in the right size"):
        load_model(str(folder), "classification", 2)


@pytest.mark.parametrize("kind", ["classification", "language-modelling"])
def test_only_a_language_model_needs_its_output_head(tmp_path: Path, kind: TaskKind) -> None:
    folder = save_llama(tmp_path / "m")
    edit_weights(folder, **{"lm_head.weight": None})
    if kind == "classification":
        assert head_names(load_model(str(folder), kind, 2), kind) == ("score",)
        return
    with pytest.raises(ValueError, match=r"without lm_head\.weight"):
        load_model(str(folder), kind, 0)


def test_a_head_for_other_classes_is_replaced(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "m")
    model = load_model(str(folder), "classification", 5)

    assert model.get_parameter("classifier.weight").shape == (5, 64)
    assert head_names(model, "classification") == ("classifier",)
