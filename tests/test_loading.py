"""Finding, inspecting and refusing models."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, Gemma3Config

from alrq_core.models.finding import hub_id, pinned_name, resolve_model
from alrq_core.models.loading import inspect_model, load_model, load_tokenizer
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


class Hub:
    """Stands for the hub: a repository of one commit, whose files are copied as asked for."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.snapshot = repository, cache / self.COMMIT
        self.asked: list[tuple[str, str | None]] = []

    def __call__(
        self,
        name: str,
        revision: str | None,
        allow_patterns: list[str],
        ignore_patterns: list[str],
    ) -> str:
        self.asked.append((name, revision))
        for path in self.repository.rglob("*"):
            inside = str(path.relative_to(self.repository))
            if not path.is_file() or any(fnmatch(inside, p) for p in ignore_patterns):
                continue
            if any(fnmatch(inside, pattern) for pattern in allow_patterns):
                target = self.snapshot / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        return str(self.snapshot)

    @property
    def fetched(self) -> set[str]:
        return {path.name for path in self.snapshot.rglob("*.safetensors")}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(save_bert(tmp_path / "repository"), tmp_path / "snapshots")
    monkeypatch.setattr("huggingface_hub.snapshot_download", found)
    return found


def test_weights_are_fetched_once_and_pinned_by_their_commit(hub: Hub) -> None:
    whole = hub.repository / "model.safetensors"
    (hub.repository / "onnx").mkdir()
    for other in ("consolidated.safetensors", "model.fp16.safetensors", "onnx/model.safetensors"):
        shutil.copy(whole, hub.repository / other)
    inventory = inspect_model("owner/name@main", "classification", 2)

    assert hub.fetched == {"model.safetensors"}
    assert inventory.model == f"owner/name@{hub.COMMIT}"
    assert set(hub.asked) == {("owner/name", "main")}
    hub.asked.clear()
    load_model(inventory.model, "classification", 2)
    assert set(hub.asked) == {("owner/name", hub.COMMIT)}


def test_a_chat_template_in_a_file_of_its_own_is_fetched(hub: Hub) -> None:
    (hub.repository / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")

    assert load_tokenizer(resolve_model("owner/name")).chat_template == "{{ messages }}"


def test_shards_are_fetched_where_there_is_no_whole_file(hub: Hub) -> None:
    BertForSequenceClassification.from_pretrained(hub.repository).save_pretrained(
        hub.repository, max_shard_size="40KB"
    )
    shards = {path.name for path in hub.repository.glob("model-*.safetensors")}
    (hub.repository / "model.safetensors").unlink(missing_ok=True)
    shutil.copy(hub.repository / min(shards), hub.repository / "consolidated.safetensors")

    assert resolve_model("owner/name") == hub.snapshot
    assert len(shards) > 1
    assert hub.fetched == shards


def test_names_of_folders_have_no_revision(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "mine@home")

    assert hub_id(str(folder)) == (str(folder), None)
    assert pinned_name(str(folder)) == str(folder)
    assert hub_id("owner/name@v1") == ("owner/name", "v1")
