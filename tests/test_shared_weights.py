"""Weights that loading had to convert lie in memory once for all processes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from alrq_core.models import shared_weights
from alrq_core.models.loading import load_model
from tests.tiny import save_tokenizer

BERT = BertConfig(
    vocab_size=80,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
)
GPT2 = GPT2Config(vocab_size=80, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shared_weights, "weights_folder", lambda: tmp_path / "weights")
    return tmp_path / "weights"


def saved(folder: Path, model: PreTrainedModel, dtype: torch.dtype) -> str:
    torch.manual_seed(0)
    save_tokenizer(folder)
    model.to(dtype).save_pretrained(folder)
    return str(folder)


def addresses(model: nn.Module, folder: Path) -> set[bool]:
    """Tell for each parameter whether it lies in a map of a file in `folder`."""
    spans = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(folder) in line
    ]

    def inside(tensor: Tensor) -> bool:
        return any(start <= tensor.data_ptr() < end for start, end in spans)

    return {inside(p) for p in model.parameters() if p.numel() > 100}


TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_weights_of_one_type_are_left_where_they_are(
    dtype: torch.dtype, tmp_path: Path, cache: Path
) -> None:
    name = saved(tmp_path / "m", BertForSequenceClassification(BERT), dtype)
    model = load_model(name, "classification", 2)

    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not cache.exists()
    if Path("/proc/self/maps").exists():
        assert addresses(model, tmp_path / "m") == {True}


def test_vectors_of_another_type_move_no_matrix(tmp_path: Path, cache: Path) -> None:
    model = BertForSequenceClassification(BERT).to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.data = parameter.data.float() if parameter.dim() == 1 else parameter.data
    save_tokenizer(tmp_path / "m")
    model.save_pretrained(tmp_path / "m")
    loaded = load_model(str(tmp_path / "m"), "classification", 2)

    assert {p.dtype for p in loaded.parameters() if p.dim() > 1} == {torch.bfloat16}
    assert not cache.exists()


def mixed(folder: Path) -> str:
    """Save a model with one matrix in 32 bits among those of 16; return its name."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BERT).to(torch.bfloat16)
    model.bert.pooler.dense.float()
    save_tokenizer(folder)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's list of maps")
def test_converted_weights_are_maps_of_one_file(tmp_path: Path, cache: Path) -> None:
    name = mixed(tmp_path / "m")
    first = load_model(name, "classification", 2)
    files = list(cache.iterdir())
    second = load_model(name, "classification", 2)

    assert len(files) == 1
    assert list(cache.iterdir()) == files
    for model in (first, second):
        assert addresses(model, cache) == {True}
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    plain = BertForSequenceClassification.from_pretrained(name, dtype=torch.float32)
    for key, parameter in plain.named_parameters():
        assert torch.equal(second.get_parameter(key), parameter)


def test_turned_matrices_and_tied_heads_are_shared_too(tmp_path: Path, cache: Path) -> None:
    name = saved(tmp_path / "m", GPT2LMHeadModel(GPT2), torch.float32)
    model = load_model(name, "language-modelling", 0)
    plain = GPT2LMHeadModel.from_pretrained(name)
    ids = torch.tensor([[3, 4, 5]])

    torch.testing.assert_close(model.eval()(ids).logits, plain.eval()(ids).logits)
    assert len(list(cache.iterdir())) == 1
    assert model.get_parameter("lm_head.weight") is model.get_parameter("transformer.wte.weight")


def test_a_new_head_is_not_shared(tmp_path: Path, cache: Path) -> None:
    """Each trial draws its own."""
    name = mixed(tmp_path / "m")
    three = load_model(name, "classification", 3)
    two = load_model(name, "classification", 2)

    assert three.get_parameter("classifier.weight").shape == (3, 32)
    assert two.get_parameter("classifier.weight").shape == (2, 32)
    assert len(list(cache.iterdir())) == 2


def test_changed_files_are_converted_again(tmp_path: Path, cache: Path) -> None:
    name = saved(tmp_path / "m", GPT2LMHeadModel(GPT2), torch.float32)
    load_model(name, "language-modelling", 0)
    model = GPT2LMHeadModel(GPT2)
    nn.init.zeros_(model.transformer.h[0].attn.c_attn.weight)
    saved(tmp_path / "m", model, torch.float32)

    loaded = load_model(name, "language-modelling", 0)

    assert not loaded.get_parameter("transformer.h.0.attn.c_attn.weight").any()


def test_without_a_place_to_write_models_still_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(shared_weights, "weights_folder", lambda: tmp_path / "file" / "weights")
    name = mixed(tmp_path / "m")

    assert load_model(name, "classification", 2) is not None
    assert "converted weights can't be kept in" in capsys.readouterr().err
