"""Finding, inspecting and refusing models."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from alrq_core.models import find_targets, head_names, inspect_model, load_model, resolve_model
from tests.tiny import save_bert


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

    assert inventory.other_parameters + sum(t.weights for t in inventory.targets) == total


def test_targets_are_the_linear_layers_inside_blocks(llama_folder: Path) -> None:
    model = load_model(str(llama_folder), "language-modelling", 0)
    names = [target.name for target in find_targets(model)]

    assert len(names) == 14
    assert "lm_head" not in names
    assert [t.part for t in find_targets(model)].count("attention") == 8


def test_a_list_within_a_list_counts_for_its_outer_block() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    model = nn.Module()
    model.layers = nn.ModuleList(Experts() for _ in range(2))
    blocks = [target.block for target in find_targets(model)]

    assert blocks == [0, 0, 0, 1, 1, 1]


def test_the_head_is_what_the_task_added(bert_folder: Path, llama_folder: Path) -> None:
    classifier = load_model(str(bert_folder), "classification", 3)
    language_model = load_model(str(llama_folder), "language-modelling", 0)

    assert head_names(classifier, "classification") == ("classifier",)
    assert head_names(language_model, "language-modelling") == ()


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
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    inspect_model(str(folder), "classification", 2)

    assert not (tmp_path / "ran").exists()
