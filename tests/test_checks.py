"""What a model's folder shows is refused before any weight is read, and before Ray starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from alrq_core.models import finding
from alrq_core.models.checks import check_folder, position_limit
from alrq_core.models.finding import resolve_model
from alrq_core.models.loading import inspect_model, load_model
from tests.test_heads import POSITIONS, QUERY, edit_weights
from tests.test_loading import edit_json
from tests.test_prepare import prepared
from tests.tiny import save_bert, save_llama

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db\nsize 90868376\n"
)
WEIGHTS = "model.safetensors"
WORDS = "bert.embeddings.word_embeddings.weight"
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 32,
}


def shard(folder: Path) -> None:
    BertForSequenceClassification.from_pretrained(folder).save_pretrained(
        folder, max_shard_size="100KB"
    )
    (folder / WEIGHTS).unlink()


def cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])


def lose_a_shard(folder: Path) -> None:
    shard(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def cut_a_shard(folder: Path) -> None:
    shard(folder)
    path = sorted(folder.glob("model-*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-1])


def keep_only_an_adapter(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    save_file({"a": torch.zeros(2)}, folder / "adapter_model.safetensors")


def convert(folder: Path, dtype: torch.dtype) -> None:
    edit_weights(folder, **{QUERY: load_file(folder / WEIGHTS)[QUERY].to(dtype)})


def resize(folder: Path, name: str, rows: int) -> None:
    edit_weights(folder, **{name: torch.zeros(rows, 64)})


def quantised(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", quantization_config=settings)


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "pointer": (write(WEIGHTS, POINTER), r"Git LFS pointer for model\.safetensors\. Run `git lfs"),
    "pointer for the tokenizer": (write("vocab.txt", POINTER), r"LFS pointer for vocab\.txt"),
    "missing shard": (lose_a_shard, r"all shards .* without model-0\S+ \(1 of \d+ are missing\)"),
    "cut": (cut, r"got .* with model\.safetensors of \d+,\d+ bytes, cut or damaged"),
    "cut shard": (cut_a_shard, r"with model-00002\S+ of \S+ bytes, cut or damaged"),
    "empty": (write(WEIGHTS, ""), r"model\.safetensors of 0 bytes, cut or damaged"),
    "page": (write(WEIGHTS, "<!doctype html>" * 9), r"of 135 bytes, cut or damaged"),
    "bin beside an adapter": (keep_only_an_adapter, r"with adapter_model\.safetensors of an"),
    "adapter": (write("adapter_config.json", "{}"), r"a base model alone, got .* Merge"),
    "bitsandbytes": (quantised(quant_method="bitsandbytes", load_in_4bit=True), "by bitsandbytes"),
    "gptq": (quantised(quant_method="gptq", bits=4), r"16 or 32 bits, got .*\(by gptq\)\. Use"),
    "fp8": (quantised(quant_method="fp8"), "quantised already"),
    "fp8 unsaid": (lambda f: convert(f, torch.float8_e4m3fn), rf"\({QUERY} of type F8_E4M3\)"),
    "int8 unsaid": (lambda f: convert(f, torch.int8), rf"\({QUERY} of type I8\)"),
    "few embeddings": (lambda f: resize(f, WORDS, 16), rf"without {WORDS} in the right size"),
    "few positions": (lambda f: resize(f, POSITIONS, 16), rf"without {POSITIONS} in the right"),
    "missing weight": (lambda f: edit_weights(f, **{QUERY: None}), f"without {QUERY}"),
    "list": (write("config.json", "[1]"), r"an object in config\.json, got .* with a list"),
    "no JSON": (write("config.json", "{"), r"with a config\.json that is no JSON"),
    "bytes": (lambda f: bool((f / "config.json").write_bytes(b"\xff\xfe\0")), "that is no JSON"),
    "no type": (write("config.json", "{}"), "must name its `model_type` in config.json"),
    "unknown type": (write("config.json", '{"model_type": "xyz9"}'), "`--model` must be of a type"),
    "wrong kind": (
        lambda folder: edit_json(folder / "config.json", hidden_size="wide"),
        "`--model` must be of a type that transformers knows, got",
    ),
    "sizes apart": (
        lambda folder: edit_json(folder / "config.json", num_attention_heads=3),
        r"must have a config\.json that describes it, got .*not a multiple",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_the_files_show_is_refused_before_the_study(
    tmp_path: Path, reviews: Path, damage: str
) -> None:
    # No part of a type's name, from which transformers would guess it.
    folder = save_bert(tmp_path / "m")
    change, match = DAMAGES[damage]
    change(folder)
    with pytest.raises(ValueError, match=match) as caught:
        prepared(folder, reviews)

    assert str(caught.value).startswith("`--model` must ")
    assert "\n" not in str(caught.value)


def test_an_index_that_lists_nothing_is_refused(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "m")
    (folder / WEIGHTS).rename(folder / "other.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": []}')
    with pytest.raises(ValueError, match=r"without a `weight_map` in model\.safetensors\.index"):
        resolve_model(str(folder))


def test_a_snapshot_of_the_hub_is_checked_like_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_bert(tmp_path / "m")
    cut(folder)
    monkeypatch.setattr(finding, "_hub_folder", lambda *_: folder)
    with pytest.raises(ValueError, match="got 'some/model' with model"):
        resolve_model("some/model")


def test_shards_and_old_buffers_pass(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "m")
    edit_weights(folder, **{"bert.embeddings.position_ids": torch.arange(32)[None]})
    whole = inspect_model(str(folder), "classification", 2)
    shard(folder)

    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert inspect_model(str(folder), "classification", 2) == whole
    assert load_model(str(folder), "classification", 2) is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_plain_type_passes(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = save_bert(tmp_path / "m")
    convert(folder, dtype)
    check_folder(folder, "m")


def test_an_inspection_draws_nothing(bert_folder: Path) -> None:
    before = torch.get_rng_state()
    inspect_model(str(bert_folder), "classification", 5)

    assert torch.equal(torch.get_rng_state(), before)


def test_a_language_model_with_few_embeddings_is_refused(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "m")
    resize(folder, "model.embed_tokens.weight", 16)
    for look in (inspect_model, load_model):
        with pytest.raises(ValueError, match=r"without model\.embed_tokens\.weight in the right"):
            look(str(folder), "language-modelling", 0)


def test_sequences_end_where_the_positions_do(tmp_path: Path, reviews: Path) -> None:
    folder = save_bert(tmp_path / "m")
    config = RobertaConfig(**SIZES, max_position_embeddings=16, pad_token_id=1)
    RobertaForSequenceClassification(config).save_pretrained(folder)
    model = load_model(str(folder), "classification", 2)
    ids = torch.full((1, 14), 5)

    assert model(input_ids=ids).logits.isfinite().all()
    with pytest.raises(RuntimeError, match="out of bounds"):
        model(input_ids=torch.full((1, 15), 5))
    with pytest.raises(ValueError, match=r"`--max-length` must be at most 14, the positions of"):
        inspect_model(str(folder), "classification", 2, 15)
    inspect_model(str(folder), "classification", 2, 14)
    with pytest.raises(ValueError, match=r"at most 14, .* got 16\. Give --max-length 14 or"):
        prepared(folder, reviews)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (BertConfig(**SIZES, max_position_embeddings=32), 32),
        (RobertaConfig(**SIZES, max_position_embeddings=32, pad_token_id=3), 28),
        (GPT2Config(n_embd=64, n_layer=1, n_head=2, n_positions=48, vocab_size=32), 48),
        (LlamaConfig(**SIZES, max_position_embeddings=64), 64),
    ],
)
def test_positions_are_those_that_a_model_has(config: Any, limit: int) -> None:
    with torch.device("meta"):
        assert position_limit(AutoModel.from_config(config)) == limit
