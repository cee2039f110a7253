"""Tiny models and tasks that tests build in a moment."""

import csv
import random
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from alrq_core.context import TrialContext
from alrq_core.data.encode import EncodedTask, Tokens
from alrq_core.models.loading import inspect_model, load_model
from alrq_core.recipe import Recipe
from alrq_core.records import TaskKind
from search_spaces.allocation import Allocation, Choice
from search_spaces.inventory import Inventory

WORDS = ("good", "fine", "great", "bad", "poor", "awful", "the", "film", "was", "a", "plot", "and")
POSITIVE, NEGATIVE, FILLERS = WORDS[:3], WORDS[3:6], WORDS[6:]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
RECIPE = Recipe(max_steps=8, batch_size=8, max_length=16, learning_rate=3e-3)


def save_tokenizer(folder: Path) -> None:
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)


def save_bert(folder: Path, blocks: int = 2) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32,
        hidden_size=64,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=32,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_llama(folder: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def sentence(label: int, generator: random.Random) -> str:
    words = [generator.choice(FILLERS) for _ in range(generator.randint(2, 8))]
    words.insert(generator.randrange(len(words)), generator.choice((NEGATIVE, POSITIVE)[label]))
    return " ".join(words)


def save_reviews(path: Path, rows: int = 200) -> Path:
    generator = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("review", "verdict"))
        for row in range(rows):
            writer.writerow((sentence(row % 2, generator), ("no", "yes")[row % 2]))
    return path


def make_tokens(rows: int, seed: int, kind: TaskKind) -> Tokens:
    generator = np.random.default_rng(seed)
    classification = kind == "classification"
    lengths = generator.integers(4, 12, rows) if classification else np.full(rows, 12)
    labels = generator.integers(0, 2, rows) if classification else np.empty(0, dtype=np.int64)
    ids = generator.integers(7, 16, int(lengths.sum())).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if classification:
        ids[offsets[:-1]] = np.where(labels == 1, 4, 5)
    return Tokens(ids, offsets, labels)


def make_task(kind: TaskKind) -> EncodedTask:
    return EncodedTask(
        name="tiny",
        kind=kind,
        label_names=("no", "yes") if kind == "classification" else (),
        splits="made up",
        pad_id=0,
        train=make_tokens(64, 0, kind),
        validation=make_tokens(24, 1, kind),
        test=make_tokens(24, 2, kind),
    )


def uniform(inventory: Inventory, bits: int, rank: int) -> Allocation:
    """The same bits and rank everywhere; embeddings in the nearest bits that they can have."""
    embedding = bits if bits in (4, 8, 16) else 4
    return Allocation(
        {
            module.name: Choice(embedding, 0) if module.part == "embedding" else Choice(bits, rank)
            for module in inventory.modules
        }
    )


def mixed(inventory: Inventory) -> Allocation:
    """All bits and several ranks in turn; embeddings in 8 bits."""
    bits, ranks = (16, 8, 4, 3, 2), (0, 2, 4, 8)
    choices = {m.name: Choice(8, 0) for m in inventory.embeddings}
    for number, target in enumerate(inventory.targets):
        choices[target.name] = Choice(bits[number % 5], ranks[number % 4])
    return Allocation({name: choices[name] for name in inventory.names})


def make_context(folder: Path, kind: TaskKind, recipe: Recipe = RECIPE) -> TrialContext:
    task = make_task(kind)
    labels = len(task.label_names)
    return TrialContext(
        base=load_model(str(folder), kind, labels, recipe.dropout),
        inventory=inspect_model(str(folder), kind, labels),
        task=task,
        recipe=recipe,
    )
