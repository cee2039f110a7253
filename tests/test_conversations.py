"""Conversations of one's own: what files may hold, and every way to get a row wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from alrq_core.data.encode import EncodedTask, collate
from alrq_core.data.tasks import load_task
from alrq_core.data.tokenise import encode_task
from tests.chats import model, save, tokenizer

ROWS = [{"prompt": f"say {n}", "completion": f"word {n}"} for n in range(40)]


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
