"""Running text of one's own: documents, text files, folders of them."""

from pathlib import Path

import pytest

from alrq_core.data.tasks import load_task
from alrq_core.data.tokenise import encode_task
from tests.chats import model, save

LINES = [f"line {n} of a story that has ten words or more\n" for n in range(100)]


def test_running_text_is_read_from_documents_or_one_file(tmp_path: Path) -> None:
    lines = [f"line {n} of a story that has ten words or more\n" for n in range(100)]
    (tmp_path / "story.txt").write_text("".join(lines), encoding="utf-8")
    documents = save(tmp_path / "d.jsonl", [{"body": line} for line in lines])
    one = load_task("text", tmp_path / "story.txt")
    many = load_task("text", documents, {"text": "body"})

    assert (one.train.texts, one.test.texts) == (("".join(lines[:70]),), ("".join(lines[80:]),))
    assert one.splits == "the first 70, the next 10 and the last 20 % of its lines"
    assert sorted(many.train.texts + many.validation.texts + many.test.texts) == sorted(lines)
    tokens = encode_task(many, model(tmp_path / "model"), 16)
    assert set(tokens.train.lengths) == {16}
    assert (tokens.train.ids == 2).sum() > 50
    assert not tokens.train.predicted(0)[0]


def test_text_files_of_a_folder_are_documents_of_one_order(tmp_path: Path) -> None:
    for number in range(5):
        part = "".join(LINES[20 * number : 20 * number + 20])
        (tmp_path / f"book{number}.TXT").write_text(part, encoding="utf-8")
    task = load_task("text", tmp_path)

    wanted = [LINES[:20], LINES[20:40], LINES[40:60], LINES[60:70]]
    assert task.train.texts == tuple("".join(lines) for lines in wanted)
    assert task.test.texts == ("".join(LINES[80:]),)
    tokens = encode_task(task, model(tmp_path / "model"), 16)
    assert (tokens.train.ids == 2).sum() == 3
    assert "each window begins with <s>; </s> between documents" in tokens.splits


def test_text_files_may_be_those_of_splits(tmp_path: Path) -> None:
    for name, lines in (("train", LINES[:60]), ("valid", LINES[58:70]), ("test", LINES[69:])):
        (tmp_path / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    task = load_task("text", tmp_path)

    assert task.train.texts == ("".join(LINES[:58]),)
    assert task.validation.texts == ("".join(LINES[58:69]),)
    assert task.splits.startswith("train and validation and test files; 2 texts that are also")

    (tmp_path / "valid.txt").unlink()
    task = load_task("text", tmp_path)
    assert task.splits == "train and test files; validation cut from the end of train"
    assert task.validation.texts == ("".join(LINES[52:60]),)


def test_text_files_and_tables_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(LINES), encoding="utf-8")
    save(tmp_path / "b.jsonl", [{"text": line} for line in LINES])
    with pytest.raises(ValueError, match=r"hold .txt files, or tables with .*, got both. Give one"):
        load_task("text", tmp_path)
    with pytest.raises(ValueError, match=r"Leave out --text-column, or the text files"):
        load_task("text", tmp_path / "a.txt", {"text": "body"})
