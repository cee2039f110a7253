"""Conversations: which tokens are answers, in all forms, and every way to get a row wrong."""

import json
import random
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, PreTrainedTokenizerFast

from alrq_core.data.encode import EncodedTask, collate
from alrq_core.data.tasks import load_task
from alrq_core.data.tokenise import conversation_tokens, encode_task

WORDS = [
    "say",
    "what",
    "is",
    "the",
    "film",
    "good",
    "bad",
    "plot",
    "of",
    "a",
    "story",
    "and",
    "why",
    "not",
    "yes",
    "no",
    "maybe",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# No end of a prompt that keeps its tokens apart from those of the answer.
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }} </s>"
    "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")


def tokenizer(template: str | None, bos: bool) -> PreTrainedTokenizerFast:
    """Bytes in pairs, learnt from words with what stands around them."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    texts = [f"Answer: {word} {word}\n{word}. [INST] {word} [/INST] {word} " for word in WORDS]
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos:
        made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    found.chat_template = template
    return found


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


ROWS = [{"prompt": f"say {n}", "completion": f"word {n}"} for n in range(40)]


def save(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def model(folder: Path, template: str | None = CHATML) -> Path:
    tokenizer(template, bos=True).save_pretrained(folder)
    LlamaConfig(vocab_size=600).save_pretrained(folder)
    return folder


def encoded(tmp_path: Path, rows: list[Any], max_length: int = 64) -> EncodedTask:
    task = load_task("sft", save(tmp_path / "d.jsonl", rows))
    return encode_task(task, model(tmp_path / "model"), max_length)


def test_a_file_is_split_and_scored_on_answers(tmp_path: Path) -> None:
    task = encoded(tmp_path, [*ROWS, ROWS[0]])
    sizes = [len(part) for part in (task.train, task.validation, task.test)]

    assert sum(sizes) in {40, 41}
    assert "random 70/10/20 with seed 0" in task.splits
    assert "scored on the answers' tokens alone" in task.splits
    assert task.context_tokens is None
    batch = collate(task.train, np.arange(3), task.pad_id)
    own = tokenizer(None, bos=True)
    assert own.decode(batch.targets.tolist()).count("word ") == 3


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_forms_of_files_and_columns_agree(tmp_path: Path, suffix: str) -> None:
    renamed = [{"question": r["prompt"], "reply": r["completion"]} for r in ROWS]
    path = tmp_path / f"d{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(renamed), encoding="utf-8")
    else:
        getattr(Dataset.from_list(renamed), f"to_{suffix[1:]}")(path)
    columns = {"prompt": "question", "completion": "reply"}

    assert load_task("sft", path, columns) == load_task("sft", save(tmp_path / "d.jsonl", ROWS))


def test_a_folder_has_a_file_for_each_split(tmp_path: Path) -> None:
    for name, rows in (("train", ROWS[:30]), ("valid", ROWS[28:34]), ("test", ROWS[33:])):
        save(tmp_path / f"{name}.jsonl", rows)
    task = load_task("sft", tmp_path)

    assert [len(s.texts) for s in (task.train, task.validation, task.test)] == [28, 5, 7]
    assert task.splits == (
        "train and validation and test files; 2 texts that are also in validation or test left out "
        "of train; 1 texts that are also in test left out of validation"
    )


def test_what_a_folder_lacks_is_cut_from_train(tmp_path: Path) -> None:
    save(tmp_path / "train.jsonl", ROWS[:30])
    save(tmp_path / "test.jsonl", ROWS[30:])
    task = load_task("sft", tmp_path)

    assert [len(s.texts) for s in (task.train, task.validation, task.test)] == [26, 4, 10]
    assert task.splits == "train and test files; validation cut from train at random with seed 0"


def test_answers_that_reach_beyond_the_window_are_cut_and_counted(tmp_path: Path) -> None:
    rows = [*ROWS, *({"prompt": f"say {n}", "completion": "good " * 12} for n in range(40, 80))]
    task = encoded(tmp_path, rows, max_length=14)

    assert set(task.train.lengths) <= set(range(15))
    assert "answers of train cut at 14 tokens" in task.splits


def turns(*roles: str, content: Any = "say") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role in roles]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "say", "completion": " "},
            r"got ' ' in row 41 \(line 41\), column 'completion'",
        ),
        ({"prompt": "say"}, r"got None in row 41 \(line 41\), column 'completion'"),
        ({"prompt": "say", "completion": "\ud800"}, r"got '.ud800' in row 41"),
        ({"prompt": ["say"], "completion": "a"}, r"nested content, as of images, in row 41"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_task("sft", save(tmp_path / "d.jsonl", [*ROWS, row]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (turns("user", "user", "assistant"), "user and assistant in turn.* got user, user, assis"),
        (turns("assistant", "user"), "user and assistant in turn, .* got assistant, user in row 2"),
        (
            turns("user", "assistant", "user"),
            r"end with an answer .* row 2 \(line 2\), column 'mes",
        ),
        (turns("user", "tool", "assistant"), "got user, tool, assistant in row 2"),
        (turns("user", "assistant", content=[{"type": "image"}]), "nested content.* in row 2"),
        (turns("user", "assistant", content=""), "got '' in row 2"),
        ({"messages": "hello"}, "a list of messages with role and content, .* in row 2"),
        ({"messages": []}, "got none in row 2"),
    ],
)
def test_a_bad_conversation_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_task("sft", save(tmp_path / "d.jsonl", [turns("user", "assistant"), row]))


def test_shared_conversations_may_have_other_names(tmp_path: Path) -> None:
    def shared(n: int) -> dict[str, Any]:
        said = ({"from": "human", "value": f"say {n}"}, {"from": "gpt", "value": f"{n}"})
        return {"conversations": list(said)}

    def usual(n: int) -> dict[str, Any]:
        said = ({"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n}"})
        return {"messages": list(said)}

    one = load_task("sft", save(tmp_path / "a.jsonl", [shared(n) for n in range(30)]))
    assert one == load_task("sft", save(tmp_path / "b.jsonl", [usual(n) for n in range(30)]))


def test_what_can_not_be_learnt_is_refused(tmp_path: Path) -> None:
    few = save(tmp_path / "few.jsonl", ROWS[:5])
    other = save(tmp_path / "other.jsonl", [{"text": "a"}])
    half = save(tmp_path / "half.jsonl", [{"prompt": "a"}])
    with pytest.raises(ValueError, match="at least 20 rows to be split, got 5"):
        load_task("sft", few)
    with pytest.raises(
        ValueError, match=r"messages, or prompt and completion, .* got 'text' in oth"
    ):
        load_task("sft", other)
    with pytest.raises(ValueError, match="the columns prompt and completion, got 'prompt' in half"):
        load_task("sft", half)
    with pytest.raises(ValueError, match=r"`--messages-column` must be a column of few.jsonl, got"):
        load_task("sft", few, {"messages": "chat"})
    with pytest.raises(
        ValueError, match=r"`--label-column` goes with --task custom, got --task sft"
    ):
        load_task("sft", few, {"label": "chat"})
    with pytest.raises(ValueError, match=r"`--task` sft needs --data, got none"):
        load_task("sft")
    with pytest.raises(ValueError, match=r"must be a file or a folder of .csv, .*, got '.*absent'"):
        load_task("sft", tmp_path / "absent")
    with pytest.raises(
        ValueError, match=r"must leave room for an answer, got 8 where the first beg"
    ):
        encoded(tmp_path, [{**row, "completion": "good " * 30} for row in ROWS], max_length=8)
    chats = [turns("user", "assistant", content=f"say {n}") for n in range(40)]
    task = load_task("sft", save(tmp_path / "chats.jsonl", chats))
    with pytest.raises(
        ValueError, match=r"must have a chat template for messages, got a tokenizer"
    ):
        encode_task(task, model(tmp_path / "plain", None), 64)


def test_test_answers_that_all_stand_in_training_are_refused(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        save(tmp_path / f"{name}.jsonl", ROWS)
    with pytest.raises(
        ValueError, match=r"got a validation file whose 40 rows are all in train, from row 1 of val"
    ):
        load_task("sft", tmp_path)
    save(tmp_path / "validation.jsonl", [{"prompt": "x", "completion": str(n)} for n in range(9)])
    blanks = [{"prompt": f" {r['prompt']}\n", "completion": r["completion"]} for r in ROWS[3:7]]
    save(tmp_path / "test.jsonl", blanks)
    with pytest.raises(ValueError, match=r"a test file whose 4 rows are all in train, from row 1"):
        load_task("sft", tmp_path)


def test_a_conversation_is_found_again_with_other_blanks_and_in_another_form(
    tmp_path: Path,
) -> None:
    save(tmp_path / "train.jsonl", ROWS)
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"say \n{n}"},
                {"role": "assistant", "content": f" word {n}"},
            ]
        }
        for n in range(35, 60)
    ]
    save(tmp_path / "test.jsonl", chats)
    task = load_task("sft", tmp_path)

    assert "5 texts that are also in validation or test left out of train" in task.splits


def test_official_files_have_many_names(tmp_path: Path) -> None:
    for name, rows in (("train_sft", ROWS[:30]), ("test_sft", ROWS[30:])):
        save(tmp_path / f"{name}.jsonl", rows)
    assert "train and test files" in load_task("sft", tmp_path).splits

    (tmp_path / "train_sft.jsonl").rename(tmp_path / "learn.jsonl")
    with pytest.raises(
        ValueError, match=r"file train.jsonl beside that of test, got learn.jsonl, test_sft.jsonl"
    ):
        load_task("sft", tmp_path)


def test_a_column_may_begin_after_the_first_row(tmp_path: Path) -> None:
    rows = [{"instruction": f"say {n}", "output": f"word {n}"} for n in range(40)]
    rows = [row | ({"input": f"about {n}"} if n else {}) for n, row in enumerate(rows)]
    lines = load_task("sft", save(tmp_path / "d.jsonl", rows))
    (tmp_path / "d.json").write_text(json.dumps(rows), encoding="utf-8")
    given = sorted(json.loads(t)["input"] for t in (*lines.train.texts, *lines.validation.texts))

    assert sum(map(bool, given)) >= len(given) - 1
    assert lines == load_task("sft", tmp_path / "d.json")


def test_instructions_may_have_other_names(tmp_path: Path) -> None:
    usual = [{"instruction": f"say {n}", "input": "a", "output": f"{n}"} for n in range(30)]
    other = [
        {"instruction": r["instruction"], "context": r["input"], "response": r["output"]}
        for r in usual
    ]
    columns = {"input": "context", "output": "response"}
    one = load_task("sft", save(tmp_path / "a.jsonl", other), columns)

    assert one == load_task("sft", save(tmp_path / "b.jsonl", usual))
    with pytest.raises(ValueError, match="of one form, got --prompt-column, --output-column"):
        load_task("sft", tmp_path / "a.jsonl", {"prompt": "instruction", "output": "response"})
