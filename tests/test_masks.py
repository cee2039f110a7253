"""Which tokens of a conversation are learnt and scored: those of its answers, in all forms."""

import json
import random
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from alrq_core.data.encode import collate
from alrq_core.data.tasks import load_task
from alrq_core.data.tokenise import conversation_tokens, encode_task
from tests.chats import CHATML, LLAMA2, SPECIAL, WORDS, model, save, tokenizer


def words(generator: random.Random) -> str:
    text = " ".join(generator.choice(WORDS) for _ in range(generator.randint(1, 6)))
    return generator.choice(("", " ", "\n")) + text + generator.choice(("", ".", " "))


def messages(generator: random.Random, answers: int) -> dict[str, Any]:
    turns = [("system", words(generator))] if generator.random() < 0.5 else []
    for _ in range(answers):
        turns += [("user", words(generator)), ("assistant", words(generator).strip())]
    return {"messages": turns}


def of_form(form: str, generator: random.Random) -> dict[str, Any]:
    if form == "messages":
        return messages(generator, generator.randint(1, 3))
    if form == "prompt":
        return {"prompt": words(generator), "completion": words(generator)}
    given = words(generator) if generator.random() < 0.5 else ""
    return {"instruction": words(generator), "input": given, "output": words(generator)}


def chatml(turns: list[tuple[str, str]]) -> list[tuple[str, bool]]:
    """Texts and whether they are learnt, written by hand."""
    found: list[tuple[str, bool]] = []
    for role, content in turns:
        if role == "assistant":
            found += [("<|im_start|>assistant\n", False), (f"{content}<|im_end|>", True)]
            found += [("\n", False)]
        else:
            found += [(f"<|im_start|>{role}\n{content}<|im_end|>\n", False)]
    return found[:-1]


def llama2(turns: list[tuple[str, str]]) -> list[tuple[str, bool]]:
    return [
        (f" {content} </s>", True) if role == "assistant" else (f"[INST] {content} [/INST]", False)
        for role, content in turns
    ]


def as_expected(conversation: dict[str, Any], template: str | None) -> list[tuple[str, bool]]:
    if "prompt" in conversation:
        return [(conversation["prompt"], False), (conversation["completion"] + "</s>", True)]
    turns = conversation.get("messages")
    if turns is None:
        asked, given = conversation["instruction"], conversation["input"]
        if template is None:
            paired = ", paired with an input that provides further context" if given else ""
            given = f"### Input:\n{given}\n\n" if given else ""
            prompt = (
                f"Below is an instruction that describes a task{paired}. Write a response that "
                f"appropriately completes the request.\n\n### Instruction:\n{asked}\n\n{given}"
                "### Response:\n"
            )
            return [(prompt, False), (conversation["output"] + "</s>", True)]
        asked = f"{asked}\n\n{given}" if given else asked
        turns = [("user", asked), ("assistant", conversation["output"])]
    return chatml(turns) if template == CHATML else llama2(turns)


def runs(pieces: Iterable[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Neighbours of one kind as one text."""
    return [
        ("".join(text for text, _ in group), learnt)
        for learnt, group in groupby(pieces, key=lambda piece: piece[1])
    ]


every_form = pytest.mark.parametrize(
    ("form", "template"),
    [
        (form, template)
        for form in ("messages", "prompt", "instruction")
        for template in (CHATML, LLAMA2, None)
        if form != "messages" or template is not None
    ],
)


@pytest.mark.parametrize("bos", [True, False])
@every_form
def test_answers_are_counted_whole_and_nothing_else(
    form: str, template: str | None, bos: bool
) -> None:
    own, generator = tokenizer(template, bos), random.Random(0)
    for _ in range(100):
        conversation = of_form(form, generator)
        ids, counted, spans = conversation_tokens(conversation, own)
        # Byte by byte: no token of a byte-level BPE stands for a blank more or less.
        found = runs((own.decode([number]), c) for number, c in zip(ids, counted, strict=True))
        expected = as_expected(conversation, template)
        begin = [("<s>", False)] if bos and not (template and form != "prompt") else []

        assert found == runs([*begin, *expected])
        assert [own.decode(ids[start:end]) for start, end in spans] == [
            text for text, learnt in expected if learnt
        ]
        # A model is asked with these very tokens.
        asked = own.decode(ids[: spans[0][0]])
        again = own(asked, add_special_tokens=False)["input_ids"]
        assert again == ids[: spans[0][0]]


@every_form
def test_what_is_trained_and_scored_are_answers_up_to_the_window(
    form: str, template: str | None, tmp_path: Path
) -> None:
    """Of every sequence of every split, as batches have them."""
    generator = random.Random(1)
    rows = [of_form(form, generator) for _ in range(80)]
    saved = [
        {"messages": [{"role": r, "content": c} for r, c in row["messages"]]}
        if form == "messages"
        else row
        for row in rows
    ]
    texts = load_task("sft", save(tmp_path / "d.jsonl", saved))
    folder, own = model(tmp_path / "model", template), tokenizer(template, bos=True)
    spans = [conversation_tokens(row, own)[2] for row in rows]
    longest = max(end - start for found in spans for start, end in found)
    # The least that no first answer is too long for.
    most = 1 + max(longest, *(found[0][0] for found in spans))
    task = encode_task(texts, folder, most)
    cut = 0
    for name in ("train", "validation", "test"):
        tokens, split = getattr(task, name), getattr(texts, name).texts
        batch = collate(tokens, np.arange(len(tokens)), task.pad_id)
        assert batch.places is not None
        flat = batch.input_ids.flatten()
        learnt = torch.zeros(len(flat), dtype=torch.bool)
        learnt[batch.places + 1] = True
        assert torch.equal(flat[learnt], batch.targets)
        for line, text in zip(learnt.view_as(batch.input_ids), split, strict=True):
            ids, counted, _ = conversation_tokens(json.loads(text), own)
            assert line.nonzero().flatten().tolist() == np.flatnonzero(counted[:most]).tolist()
            cut += len(ids) > most
    assert cut > 0


def test_what_runs_into_the_prompt_is_tokenised_apart() -> None:
    own = tokenizer(None, bos=False)
    whole = own("Answer: good", add_special_tokens=False)["input_ids"]
    ids, counted, _ = conversation_tokens({"prompt": "Answer: g", "completion": "ood"}, own)

    assert own.decode([t for t, c in zip(ids, counted, strict=True) if c]) == "ood</s>"
    assert own.decode([t for t, c in zip(ids, counted, strict=True) if not c]) == "Answer: g"
    assert ids[:-1] != whole


def test_no_blank_is_learnt_that_nobody_wrote() -> None:
    """SentencePiece begins each text with one, as that of Llama 2 does."""
    made = Tokenizer(models.BPE(unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    texts = ["Answer: good\n", "Answer: bad\n", "good good"]
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=60, special_tokens=list(SPECIAL), show_progress=False)
    )
    own = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")
    whole = own("Answer: good", add_special_tokens=False)["input_ids"]
    ids, counted, _ = conversation_tokens({"prompt": "Answer: g", "completion": "ood"}, own)
    pieces = own.convert_ids_to_tokens(ids)

    assert ids[:-1] != whole
    assert "".join(p for p, c in zip(pieces, counted, strict=True) if c) == "ood</s>"
    assert "".join(p for p, c in zip(pieces, counted, strict=True) if not c) == "▁Answer:▁g"
