"""Finding, inspecting and refusing models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3Config

from alrq_core.models.loading import inspect_model, load_model, load_tokenizer, resolve_model
from tests.tiny import save_bert, save_llama


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_minilm_has_its_published_shape() -> None:
    inventory = inspect_model("minilm", "classification", 2)

    assert len(inventory.targets) == 36
    assert sum(target.weights for target in inventory.targets) == 10_616_832
    assert {target.part for target in inventory.targets} == {"attention", "feed-forward"}
    assert sorted({target.block for target in inventory.targets}) == list(range(6))
    first = inventory.targets[0]
    assert first.name == "bert.encoder.layer.0.attention.self.query"
    assert (first.out_features, first.in_features, first.part) == (384, 384, "attention")


def test_inventory_counts_every_parameter_once(bert_folder: Path) -> None:
    inventory = inspect_model(str(bert_folder), "classification", 2)
    model = load_model(str(bert_folder), "classification", 2)
    total = sum(parameter.numel() for parameter in model.parameters())

    assert inventory.other_parameters + sum(t.weights for t in inventory.modules) == total


def test_weights_are_those_in_the_file(bert_folder: Path) -> None:
    one = load_model(str(bert_folder), "classification", 2)
    two = load_model(str(bert_folder), "classification", 2)
    query = "bert.encoder.layer.1.attention.self.query.weight"

    assert torch.equal(one.get_parameter(query), two.get_parameter(query))
    assert one.get_parameter(query).dtype == torch.float32


def test_an_unreachable_hub_id_says_what_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"got 'no-such/model'.*without a network: minilm"):
        resolve_model("no-such/model")


@pytest.mark.parametrize("name", ["", "a/b/c", "../nowhere", "spaces in it"])
def test_a_name_that_is_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="`--model` must be"):
        resolve_model(name)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="weights in safetensors"):
        resolve_model(str(folder))


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder with a config\.json"):
        resolve_model(str(tmp_path))


def test_an_encoder_models_no_language() -> None:
    with pytest.raises(ValueError, match=r"`--model` must support language-modelling.*type bert"):
        inspect_model("minilm", "language-modelling", 0)


def test_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "m")
    edit_json(folder / "config.json", auto_map={"AutoConfig": "evil.Config"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    inspect_model(str(folder), "classification", 2)

    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_that_can_not_pad_is_refused(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "m")
    edit_json(folder / "tokenizer_config.json", pad_token=None)
    with pytest.raises(ValueError, match="must come with a tokenizer that can pad"):
        load_tokenizer(folder)


def test_a_padding_token_without_an_embedding_is_refused(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "m")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["[FAR]"] = 40
    (folder / "tokenizer.json").write_text(json.dumps(content))
    edit_json(folder / "tokenizer_config.json", pad_token="[FAR]")
    with pytest.raises(ValueError, match="got padding token 40 for 32 embeddings"):
        inspect_model(str(folder), "classification", 2)


def test_a_model_with_eyes_is_refused(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "m")
    Gemma3Config().save_pretrained(folder)
    with pytest.raises(ValueError, match=r"decoder of text, got .* of type gemma3, which has sev"):
        inspect_model(str(folder), "language-modelling", 0)
