"""The tokenizer must be the model's own: with its files, in its embeddings, for these texts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import (
    BertConfig,
    GemmaConfig,
    GPT2Config,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
    RobertaConfig,
)

from alrq_core.data.splits import TextSplit
from alrq_core.data.task import Task
from alrq_core.data.tasks import load_task
from alrq_core.data.tokenise import encode_task
from alrq_core.models.loading import inspect_model, load_tokenizer
from alrq_core.models.vocabulary import check_tokens, vocabulary_rows
from tests.test_prepare import prepared
from tests.tiny import save_bert

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def add_words(folder: Path, **words: int) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] |= words
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "config",
    [BertConfig(), RobertaConfig(), GPT2Config(), OPTConfig(), Qwen2Config(), GemmaConfig()],
    ids=lambda config: config.model_type,
)
def test_a_tokenizer_made_up_for_want_of_files_is_refused(
    tmp_path: Path, config: PretrainedConfig
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must come with its tokenizer, got .* with none of its"):
        load_tokenizer(tmp_path)


def test_a_study_without_tokenizer_files_does_not_start(tmp_path: Path, reviews: Path) -> None:
    folder = save_bert(tmp_path / "m")
    for name in TOKENIZER_FILES:
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"`--model` must come with its tokenizer, got"):
        prepared(folder, reviews)


@pytest.mark.parametrize("content", ['{"version": "9.0"}', "garbage", "[]", "{}", ""])
def test_a_tokenizer_file_that_can_not_be_read_is_one_line(tmp_path: Path, content: str) -> None:
    folder = save_bert(tmp_path / "m")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"^`--model` must come with its tokenizer, got .*\.$"):
        load_tokenizer(folder)


@pytest.mark.parametrize("content", ["garbage", "[]", '{"tokenizer_class": 3}'])
def test_neither_is_its_configuration(tmp_path: Path, content: str) -> None:
    folder = save_bert(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"^`--model` must come with its tokenizer, got .*\.$"):
        load_tokenizer(folder)


def test_a_vocabulary_larger_than_the_embeddings_is_refused(tmp_path: Path, reviews: Path) -> None:
    folder = save_bert(tmp_path / "m")
    add_words(folder, story=31)
    inspect_model(str(folder), "classification", 2)
    load_tokenizer.cache_clear()
    add_words(folder, ending=32)
    with pytest.raises(ValueError, match="vocabulary of 33 tokens for 32 embeddings"):
        prepared(folder, reviews)


def test_a_token_added_without_an_embedding_matters_only_in_a_text(
    tmp_path: Path, reviews: Path
) -> None:
    folder = save_bert(tmp_path / "m")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<picture>", *(f"<{number}>" for number in range(16))])
    tokenizer.save_pretrained(folder)
    load_tokenizer.cache_clear()

    assert len(tokenizer) == 33
    assert vocabulary_rows(tokenizer) == 16
    assert len(prepared(folder, reviews).task.train) == 140
    last = tokenizer.convert_ids_to_tokens(32)
    text = f"the film was good {last}"
    task = load_task("custom", reviews, {"text": "review", "label": "verdict"})
    split = TextSplit(texts=(text, "a plot"), labels=(0, 1))
    with pytest.raises(ValueError, match=r"got token 32 \('<15>'\) in the test split for 32 emb"):
        encode_task(replace(task, test=split), folder, 16)


def words(texts: tuple[str, ...]) -> Task:
    split = TextSplit(texts=texts, labels=tuple(range(len(texts))))
    known = TextSplit(texts=("the film", "a plot"), labels=(0, 1))
    return Task(
        name="custom",
        kind="classification",
        label_names=("no", "yes", "maybe"),
        splits="made up",
        train=known,
        validation=split,
        test=known,
    )


def test_texts_of_unknown_words_are_refused(bert_folder: Path) -> None:
    encode_task(words(("the film was lang", "der film")), bert_folder, 16)
    match = r"knows the texts, got 5 unknown tokens beside 1 known ones in the validation split"
    with pytest.raises(ValueError, match=match):
        encode_task(words(("der film ist", "lang und gut")), bert_folder, 16)


def test_a_text_without_a_token_is_named(bert_folder: Path) -> None:
    tokenizer = load_tokenizer(bert_folder)
    match = r"`--data` must have a token in every text, got none in 1 of 3 texts .*first in row 2"
    with pytest.raises(ValueError, match=match):
        check_tokens(tokenizer, np.array([5, 6]), np.array([1, 0, 1]), 32, "train")
