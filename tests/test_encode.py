"""Tokens, batches and their padding."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, PreTrainedTokenizerFast

from alrq_core.data.encode import (
    Tokens,
    collate,
    epoch_batches,
    eval_batches,
    train_batches,
    train_parts,
)
from alrq_core.data.splits import TextSplit
from alrq_core.data.task import Task
from alrq_core.data.tasks import load_task
from alrq_core.data.tokenise import encode_task
from alrq_core.models.loading import load_tokenizer
from alrq_core.records import TaskKind
from tests.tiny import RECIPE, make_task, make_tokens


def test_an_epoch_gives_every_full_batch_once() -> None:
    tokens = make_tokens(64, 0, "classification")
    epoch = list(islice(train_batches(tokens, RECIPE, seed=0), 8))

    assert sorted(np.concatenate(epoch)) == list(range(64))
    assert all(len(batch) == RECIPE.batch_size for batch in epoch)


def test_batches_repeat_with_their_seed_and_differ_between_epochs() -> None:
    tokens = make_tokens(64, 0, "classification")
    first, again, other = (
        np.stack(list(islice(train_batches(tokens, RECIPE, seed), 16))) for seed in (0, 0, 1)
    )

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[:8], first[8:])


def test_every_row_comes_once_an_epoch_whatever_the_sizes() -> None:
    """In as few batches as hold them, all of one size but for one row."""
    draw = np.random.default_rng(0)
    sizes = [(60, 32), (33, 32), (801, 32), (1, 1), (5971, 32), (26, 1)]
    for rows, size in [*sizes, *draw.integers(1, [400, 40], (150, 2)).tolist()]:
        tokens = make_tokens(rows, 0, "classification")
        count = epoch_batches(rows, size)
        batches = train_batches(tokens, replace(RECIPE, batch_size=size), seed=rows)
        for _ in range(2):
            epoch = [next(batches) for _ in range(count)]
            found = [len(batch) for batch in epoch]

            assert np.bincount(np.concatenate(epoch), minlength=rows).tolist() == [1] * rows
            assert max(found) <= size
            assert max(found) - min(found) <= 1


def test_batches_that_divide_the_rows_are_those_of_earlier_studies() -> None:
    tokens = make_tokens(64, 0, "classification")
    first = next(train_batches(tokens, RECIPE, seed=0))

    assert first.tolist() == [60, 33, 53, 58, 19, 11, 55, 14]


def test_a_small_split_gives_smaller_batches_without_end() -> None:
    batches = islice(train_batches(make_tokens(3, 0, "classification"), RECIPE, 0), 5)

    assert [len(batch) for batch in batches] == [3] * 5


def test_buckets_pad_less_than_random_batches() -> None:
    tokens = make_tokens(640, 0, "classification")
    recipe = replace(RECIPE, batch_size=16)
    padded = sum(
        len(rows) * tokens.lengths[rows].max()
        for rows in islice(train_batches(tokens, recipe, 0), 40)
    )
    plain = sum(16 * tokens.lengths[start : start + 16].max() for start in range(0, 640, 16))

    assert padded < 1.1 * tokens.lengths.sum()
    assert padded < plain


def test_evaluation_visits_every_row_once() -> None:
    tokens = make_tokens(37, 0, "classification")
    for most_tokens in (None, 1, 40, 10**6):
        batches = list(eval_batches(tokens, 8, most_tokens))

        assert sorted(np.concatenate(batches)) == list(range(37))
        assert max(map(len, batches)) <= 8


def test_parts_hold_no_more_tokens_than_asked_for() -> None:
    tokens = make_tokens(200, 0, "classification")
    rows = np.arange(40, 73)
    longest = int(tokens.lengths[rows].max())
    parts = train_parts(rows, tokens.lengths, 16, 5 * longest)

    assert np.concatenate(parts).tolist() == rows.tolist()
    assert len(parts) == 7
    assert max(map(len, parts)) == 5
    assert [len(part) for part in train_parts(rows, tokens.lengths, 16, None)] == [11, 11, 11]
    assert [len(part) for part in train_parts(rows[:3], tokens.lengths, 16, 1)] == [1, 1, 1]
    batches = eval_batches(tokens, 64, 100)
    assert all(
        len(b) * tokens.lengths[b].max() <= max(100, tokens.lengths[b].max()) for b in batches
    )


@pytest.mark.parametrize("kind", ["classification", "language-modelling"])
def test_every_second_sequence_keeps_its_label(kind: TaskKind) -> None:
    tokens = make_tokens(7, 0, kind)
    half = tokens.every(2)

    assert len(half) == 4
    assert half.labels.tolist() == tokens.labels[::2].tolist()
    for row in range(4):
        assert half.sequence(row).tolist() == tokens.sequence(2 * row).tolist()


def test_padding_is_masked_and_labels_stay_with_their_rows() -> None:
    tokens = make_tokens(10, 0, "classification")
    rows = np.array([7, 2, 5])
    batch = collate(tokens, rows, pad_id=0)

    assert batch.input_ids.shape == (3, tokens.lengths[rows].max())
    assert batch.attention_mask.sum(dim=1).tolist() == tokens.lengths[rows].tolist()
    assert batch.targets.tolist() == tokens.labels[rows].tolist()
    assert batch.places is None
    for line, row in enumerate(rows):
        length = tokens.lengths[row]
        assert batch.input_ids[line, :length].tolist() == tokens.sequence(row).tolist()
        assert not batch.input_ids[line, length:].any()


def test_language_modelling_predicts_its_own_tokens() -> None:
    tokens = make_tokens(4, 0, "language-modelling")
    batch = collate(tokens, np.array([0, 3]), pad_id=0)

    assert batch.places is not None
    assert torch.equal(batch.targets, batch.input_ids[:, 1:].flatten())
    assert batch.places.tolist() == [*range(11), *range(12, 23)]
    assert batch.mean_answers == 11


def test_texts_become_the_tokenizers_tokens(bert_folder: Path, reviews: Path) -> None:
    task = load_task("custom", reviews, {"text": "review", "label": "verdict"})
    encoded = encode_task(task, bert_folder, max_length=6)
    tokenizer = load_tokenizer(bert_folder)
    expected = tokenizer(task.test.texts[3], truncation=True, max_length=6)["input_ids"]

    assert encoded.test.sequence(3).tolist() == expected
    assert encoded.test.lengths.max() == 6
    assert encoded.test.labels.tolist() == list(task.test.labels)
    assert encoded.metric == "accuracy"
    assert encoded.context_tokens is None
    assert encoded.stride_tokens is None


def plain_text(text: str) -> Task:
    split = TextSplit(texts=(text,))
    return Task(
        name="lm",
        kind="language-modelling",
        label_names=(),
        splits="made up",
        train=split,
        validation=split,
        test=split,
    )


def test_windows_cover_the_text_without_overlap(llama_folder: Path) -> None:
    """And begin as the tokenizer begins a text: with [CLS], the tiny model's BOS."""
    text = "the film was good and the plot was bad " * 20
    encoded = encode_task(plain_text(text), llama_folder, max_length=16)
    ids = load_tokenizer(llama_folder)(text, add_special_tokens=False)["input_ids"]
    windows = encoded.train.ids.reshape(-1, 16)

    assert set(encoded.train.lengths) == {16}
    assert encoded.context_tokens == encoded.stride_tokens == 16
    assert set(windows[:, 0]) == {2}
    assert windows[:, 1:].ravel().tolist() == ids[: len(ids) // 15 * 15]
    assert encoded.splits == "made up; each window begins with [CLS]"
    with pytest.raises(ValueError, match=r"`--max-length` must leave at least 2 windows"):
        encode_task(plain_text(text), llama_folder, max_length=150)


def test_what_begins_a_window_is_never_predicted(llama_folder: Path) -> None:
    tokens = encode_task(plain_text("a good film " * 50), llama_folder, max_length=16).test.every(2)
    batch = collate(tokens, np.array([0, 1]), pad_id=0)

    assert torch.equal(batch.targets, batch.input_ids[:, 1:].flatten())


def test_windows_begin_at_once_where_the_tokenizer_adds_nothing(tmp_path: Path) -> None:
    """GPT-2 and SmolLM2 have a BOS and no rule that puts it before a text."""
    words = Tokenizer(WordLevel({"<s>": 0, "film": 1, "good": 2}, unk_token="<s>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", pad_token="<s>"
    ).save_pretrained(tmp_path)
    GPT2Config(vocab_size=3).save_pretrained(tmp_path)
    encoded = encode_task(plain_text("good film film " * 20), tmp_path, max_length=8)

    assert encoded.train.ids.tolist() == ([2, 1, 1] * 20)[:56]
    assert encoded.train.answers.tolist() == [7] * 7
    assert encoded.splits == "made up; each window begins with no special token"


def test_only_the_first_sequences_are_scored_where_asked() -> None:
    task = make_task("classification").scored_on(10)
    whole = make_task("classification")

    assert len(task.validation) == len(task.test) == 10
    assert len(task.train) == len(whole.train)
    assert task.test.sequence(9).tolist() == whole.test.sequence(9).tolist()
    assert task.test.labels.tolist() == whole.test.labels[:10].tolist()
    assert "the first 10 sequences of validation and test are scored" in task.splits
    assert len(whole.scored_on(999).test) == len(whole.test)


def test_answers_of_several_lengths_are_predicted_where_the_token_before_stands() -> None:
    counted = np.array([0, 0, 1, 1, 0, 1, 0], dtype=bool)
    tokens = Tokens(np.arange(4, 11, dtype=np.int32), np.array([0, 4, 7]), np.empty(0), counted)
    batch = collate(tokens, np.array([1, 0]), pad_id=0)

    assert batch.input_ids.tolist() == [[8, 9, 10, 0], [4, 5, 6, 7]]
    assert batch.targets.tolist() == [9, 6, 7]
    assert batch.places is not None
    assert batch.places.tolist() == [0, 5, 6]
    assert (batch.mean_answers, batch.padded) == (1.5, False)
    found = batch.by_sequence(torch.tensor([1.0, 2.0, 4.0]))
    torch.testing.assert_close(found, torch.tensor([1.0, 6.0]) / 1.5)
    assert tokens.take(np.array([1])).answers.tolist() == [1]
