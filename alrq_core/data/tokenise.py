"""Turns the texts of a task into a model's tokens, once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from alrq_core.data.encode import EncodedTask, Tokens
from alrq_core.data.splits import TextSplit
from alrq_core.data.task import Task
from alrq_core.models.loading import load_tokenizer, read_config
from alrq_core.models.vocabulary import check_tokens

# Stanford Alpaca's prompt, with and without an input, for models without a chat template.
ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n{given}### Response:\n"
)
PAIRED = ", paired with an input that provides further context"
NO_LABELS = np.empty(0, dtype=np.int64)
# No token goes on from it.
AFTER = "\n"
# Characters of a conversation that tell which one is meant.
SHOWN = 60


def encode_task(task: Task, model_folder: Path, max_length: int) -> EncodedTask:
    """Return the task in the model's tokens; sequences longer than `max_length` are cut.

    Running text is cut into windows of `max_length` tokens without overlap. Each begins with the
    special tokens that the tokenizer's own rule puts before a text: a model that was trained with
    BOS is at a loss without it. Of conversations, the answers alone are counted.

    Raises:
        ValueError: A text is too short for one window, an answer too long for it, or the tokenizer
            doesn't fit.
    """
    tokenizer = load_tokenizer(model_folder)
    rows, notes = read_config(model_folder).vocab_size, [task.splits]
    cuts = dict.fromkeys(("train", "validation", "test"), 0)

    def encode(name: str) -> Tokens:
        split: TextSplit = getattr(task, name)
        if task.kind == "classification":
            tokens = _sentences(split, tokenizer, max_length)
        elif task.conversations:
            tokens, cuts[name] = _conversations(split, tokenizer, max_length)
            if cuts[name]:
                notes.append(f"{cuts[name]} answers of {name} cut at {max_length} tokens")
        else:
            tokens = _windows(split, tokenizer, max_length)
        check_tokens(tokenizer, tokens.ids, tokens.lengths, rows, name)
        return tokens

    splits = {name: encode(name) for name in cuts}
    if task.conversations:
        answers = int(splits["test"].answers.sum())
        notes.append(f"scored on the answers' tokens alone, {answers:,} of test")
    elif task.kind == "language-modelling":
        special = " ".join(tokenizer.convert_ids_to_tokens(_begin(tokenizer)))
        notes.append(f"each window begins with {special or 'no special token'}")
        if any(len(getattr(task, name).texts) > 1 for name in cuts):
            notes.append(f"{tokenizer.eos_token or 'nothing'} between documents")
    return EncodedTask(
        name=task.name,
        kind=task.kind,
        label_names=task.label_names,
        splits="; ".join(notes),
        pad_id=int(tokenizer.pad_token_id),
        conversations=task.conversations,
        exact_match=False,
        cut_answers=cuts["validation"] + cuts["test"],
        **splits,
    )


def _begin(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens that a tokenizer's own rule puts before a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    count = int(np.cumprod(encoded["special_tokens_mask"]).sum())
    begin: list[int] = encoded["input_ids"][:count]
    return begin


def _windows(split: TextSplit, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Tokens:
    """Return windows over documents, with the token that ends one between them."""
    encoded = tokenizer(list(split.texts), add_special_tokens=False, verbose=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    joined = [np.asarray(ids + end, dtype=np.int32) for ids in encoded[:-1]]
    text = np.concatenate([*joined, np.asarray(encoded[-1], dtype=np.int32)])
    begin = np.asarray(_begin(tokenizer), dtype=np.int32)
    room = max_length - len(begin)
    count = len(text) // room
    if count < 2:
        raise ValueError(
            f"`--max-length` must leave at least 2 windows a split, got {max_length} for "
            f"{len(text)} tokens. Use a smaller one or more text."
        )
    rows = np.hstack([np.tile(begin, (count, 1)), text[: count * room].reshape(count, room)])
    offsets = np.arange(count + 1, dtype=np.int64) * max_length
    counted = np.tile(np.arange(max_length) >= len(begin), count)
    return Tokens(rows.ravel(), offsets, NO_LABELS, counted)


def _sentences(split: TextSplit, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Tokens:
    encoded = tokenizer(list(split.texts), truncation=True, max_length=max_length)["input_ids"]
    offsets = np.cumsum([0, *(len(ids) for ids in encoded)], dtype=np.int64)
    ids = np.concatenate([np.asarray(ids, dtype=np.int32) for ids in encoded])
    return Tokens(ids, offsets, np.asarray(split.labels, dtype=np.int64))


def _conversations(
    split: TextSplit, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[Tokens, int]:
    """Return conversations with their answers counted, and how many answers were cut."""
    sequences, counts, cut = [], [], 0
    for text in split.texts:
        conversation = json.loads(text)
        ids, counted, spans = conversation_tokens(conversation, tokenizer)
        shown = str(next(iter(conversation.values())))[:SHOWN]
        _check_room(spans, max_length, f"{shown!r}, row {conversation['row']} of its file")
        cut += sum(end > max_length for _, end in spans)
        sequences.append(np.asarray(ids[:max_length], dtype=np.int32))
        counts.append(np.asarray(counted[:max_length], dtype=bool))
    offsets = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
    return Tokens(np.concatenate(sequences), offsets, NO_LABELS, np.concatenate(counts)), cut


def _check_room(spans: list[tuple[int, int]], max_length: int, shown: str) -> None:
    longest = max(end - start for start, end in spans)
    if longest >= max_length or spans[0][0] >= max_length:
        raise ValueError(
            f"`--max-length` must leave room for an answer, got {max_length} where the first "
            f"begins at token {spans[0][0] + 1} and the longest has {longest}, in the conversation "
            f"{shown}. Raise it, or remove that row."
        )


def conversation_tokens(
    conversation: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[bool], list[tuple[int, int]]]:
    """Return a conversation's tokens, which of them are answers', and where each answer stands.

    A prompt has the tokens that it has by itself, as when a model is asked. Where those of prompt
    and answer would run into each other, they are made apart.

    Args:
        conversation: With `messages`, pairs of role and content; `prompt` and `completion`; or
            `instruction`, `input` and `output`.
        tokenizer: Of the model.

    Raises:
        ValueError: The tokenizer has no chat template, or one that can't be followed.
    """
    pieces, templated = _pieces(conversation, tokenizer)
    texts = [text for text, _ in pieces]
    upto = ["".join(texts[: place + 1]) for place in range(len(texts))]
    cumulative: list[list[int]] = tokenizer(upto, add_special_tokens=False)["input_ids"]
    parts = [ids[len(before) :] for before, ids in pairwise([[], *cumulative])]
    if [number for part in parts for number in part] != cumulative[-1]:
        parts = _apart(texts, tokenizer)
    if not templated:
        parts[0] = _begin(tokenizer) + parts[0]
        parts[-1] = parts[-1] + [t for t in (tokenizer.eos_token_id,) if t is not None]
    ends = np.cumsum([0, *map(len, parts)]).tolist()
    answers = [answer for _, answer in pieces]
    counted = [answer for answer, part in zip(answers, parts, strict=True) for _ in part]
    spans = [span for span, answer in zip(pairwise(ends), answers, strict=True) if answer]
    return [number for part in parts for number in part], counted, spans


def _apart(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the tokens of each text by itself, but without the blank that SentencePiece begins
    a text with where it is no beginning.
    """
    first, after, *others = tokenizer(
        [texts[0], AFTER, *(AFTER + text for text in texts[1:])], add_special_tokens=False
    )["input_ids"]
    parts = [first]
    for text, ids in zip(texts[1:], others, strict=True):
        if ids[: len(after)] == after:
            parts.append(ids[len(after) :])
        else:
            parts.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return parts


def _pieces(
    conversation: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[tuple[str, bool]], bool]:
    """Return the texts of a conversation, whether each is an answer, and whether a chat template
    has made them.
    """
    if "messages" in conversation:
        return list(_by_template(conversation["messages"], tokenizer)), True
    if "prompt" in conversation:
        return [(conversation["prompt"], False), (conversation["completion"], True)], False
    instruction, given = conversation["instruction"], conversation["input"]
    if tokenizer.chat_template is not None:
        asked = f"{instruction}\n\n{given}" if given else instruction
        turns = [("user", asked), ("assistant", conversation["output"])]
        return list(_by_template(turns, tokenizer)), True
    prompt = ALPACA.format(
        paired=PAIRED if given else "",
        instruction=instruction,
        given=f"### Input:\n{given}\n\n" if given else "",
    )
    return [(prompt, False), (conversation["output"], True)], False


def _by_template(
    turns: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, bool]]:
    """Yield what a chat template makes of prompts and answers in turn.

    What ends an answer belongs to it, so that a model learns to end; blanks after that don't.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "`--model` must have a chat template for messages, got a tokenizer without one. Use an "
            "instruction-tuned model, or prompt and completion as columns."
        )
    messages = [{"role": role, "content": content} for role, content in turns]
    done = ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _rendered(tokenizer, messages[:number], True)
        after = _rendered(tokenizer, messages[: number + 1], False).rstrip()
        if not before.startswith(done) or not after.startswith(before):
            raise ValueError(
                "`--model` must have a chat template that writes each message alike wherever it "
                f"stands, got another text of answer {number // 2 + 1} to "
                f"{turns[0][1][:SHOWN]!r}. Use conversations of one answer, or another model."
            )
        yield before[len(done) :], False
        yield after[len(before) :], True
        done = after


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], ask: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except Exception as error:
        # A template raises what its author likes.
        raise ValueError(
            f"`--data` must hold messages that the model's chat template takes, got "
            f"{', '.join(m['role'] for m in messages)} ({error}). Leave out what it refuses."
        ) from error
    return str(text)
