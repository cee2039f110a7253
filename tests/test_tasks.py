"""Reading and splitting texts, and every way in which a file can be wrong."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from alrq_core.data.task import Task
from alrq_core.data.tasks import load_task

SHARED = Path(__file__).parents[2] / "shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no folder {SHARED}")
ROWS = [{"text": f"sentence {n} here", "label": ("no", "yes")[n % 2]} for n in range(60)]


def custom(path: Path, text: str = "text", label: str = "label") -> Task:
    return load_task("custom", path, {"text": text, "label": label})


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    lines = [",".join(row.values()) for row in rows]
    path.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    return path


def test_rotten_tomatoes_is_split_once_and_stratified() -> None:
    one, two = load_task("rotten_tomatoes"), load_task("rotten_tomatoes")

    assert one == two
    sizes = [len(split.texts) for split in (one.train, one.validation, one.test)]
    assert sum(sizes) == 8530
    assert sizes == [5971, 853, 1706]
    for split in (one.train, one.validation, one.test):
        counts = Counter(split.labels)
        assert abs(counts[0] - counts[1]) <= 1
    assert one.splits == "no official splits: stratified 70/10/20 with seed 0"
    content = json.dumps([(split.texts, split.labels) for split in (one.train, one.test)])
    assert hashlib.sha256(content.encode()).hexdigest().startswith("bfb9f4278cb9b721")


def test_splits_do_not_share_rows(tmp_path: Path) -> None:
    task = custom(write_csv(tmp_path / "d.csv", ROWS))
    parts = [set(split.texts) for split in (task.train, task.validation, task.test)]

    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert sum(len(part) for part in parts) == len(ROWS)


def test_all_forms_of_a_file_read_the_same(tmp_path: Path) -> None:
    tsv = tmp_path / "d.tsv"
    tsv.write_text("text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in ROWS))
    jsonl = tmp_path / "d.jsonl"
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    parquet = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), parquet)
    tasks = [custom(p) for p in (write_csv(tmp_path / "d.csv", ROWS), tsv, jsonl, parquet)]

    assert all(task == tasks[0] for task in tasks)
    assert tasks[0].label_names == ("no", "yes")


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "d.csv", ROWS)
    before = custom(path)
    write_csv(path, [{**row, "text": row["text"].upper()} for row in ROWS])

    assert custom(path).train.texts != before.train.texts


def test_words_that_look_like_nothing_stay_words(tmp_path: Path) -> None:
    rows = [{**row, "text": "NA"} if n < 2 else row for n, row in enumerate(ROWS)]
    task = custom(write_csv(tmp_path / "d.csv", rows))
    texts = [*task.train.texts, *task.validation.texts, *task.test.texts]

    assert texts.count("NA") == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must not be empty"),
        ("text,label\n", "must have rows"),
        ("words,label\na,b\n", r"`--text-column` must be a column of d\.csv, got 'text'"),
        ("text,class\na,b\n", r"`--label-column` must be a column of d\.csv, got 'label'"),
        ("text,label\n" + "a,b\n" * 40, "at least two classes, got 1"),
        (
            "text,label\n" + "7,b\n" * 20 + "8,c\n" * 20,
            "each class in the train split.* got 0 of 28",
        ),
        ("text,label\n" + "a,b\n" * 20 + ",c\n" * 20, r"text in every row, got '' in row 21"),
        ("text,label\n" + "a,b\n" * 20 + "x,\n" * 20, "a label in every row, got none in row 21"),
        ("text,label\n" + "a,b\n" * 20 + "x,c\n" * 3, "at least 10 rows a class, got 3"),
        ('text,label\n"a,b\n', r"readable \.csv file"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        custom(path)


@pytest.mark.parametrize(
    ("name", "content"), [("d.jsonl", b'{"text": 1'), ("d.parquet", b"no parquet at all")]
)
def test_a_malformed_file_is_refused_by_its_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"got '{name}'"):
        custom(tmp_path / name)


def test_flags_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "d.csv", ROWS)
    with pytest.raises(ValueError, match="must be one of rotten_tomatoes"):
        load_task("nothing")
    with pytest.raises(ValueError, match="custom needs --text-column and --label-column, got text"):
        load_task("custom", path, {"text": "text"})
    with pytest.raises(ValueError, match=r"`--text-column` goes with --task custom or text, got"):
        load_task("imdb", None, {"text": "text"})
    with pytest.raises(ValueError, match="comes from an installed package"):
        load_task("imdb", path)
    with pytest.raises(ValueError, match="must be a folder for --task sst2"):
        load_task("sst2", path)
    with pytest.raises(ValueError, match=r"must end in \.csv"):
        custom(path.rename(tmp_path / "d.xlsx"))
    with pytest.raises(ValueError, match="must be a file"):
        custom(tmp_path / "absent.csv")


def test_imdb_is_tested_on_texts_that_it_never_saw() -> None:
    task = load_task("imdb")
    sizes = [len(split.texts) for split in (task.train, task.validation, task.test)]

    assert sizes == [17500 - 43, 2500 - 3, 5000]
    assert "; 43 texts that are also in validation or test left out of train" in task.splits
    assert "; 3 texts that are also in test left out of validation" in task.splits


def test_texts_that_two_splits_share_stay_in_the_later_one(tmp_path: Path) -> None:
    again = [{**row, "text": f" {row['text'].replace(' ', '  ')}"} for row in ROWS]
    rows = [(row["text"], row["label"]) for row in (*ROWS, *again)]
    task = custom(
        write_csv(tmp_path / "d.csv", [dict(zip("ab", row, strict=True)) for row in rows])
    )
    train, validation, test = (
        {" ".join(text.split()) for text in split.texts}
        for split in (task.train, task.validation, task.test)
    )

    assert not train & (validation | test)
    assert not validation & test
    assert train | validation | test == {row["text"] for row in ROWS}
    assert len(task.test.texts) == 24
    lost = [84 - len(task.train.texts), 12 - len(task.validation.texts)]
    assert f"; {lost[0]} texts that are also in validation or test left out of train" in task.splits
    assert f"; {lost[1]} texts that are also in test left out of validation" in task.splits


GLUE_ROWS = "".join(f"sentence {n} \t{n % 2}\n" for n in range(40))


def save_glue(folder: Path, test: str) -> None:
    (folder / "train.tsv").write_text("sentence\tlabel\n" + GLUE_ROWS)
    (folder / "dev.tsv").write_text("sentence\tlabel\n" + GLUE_ROWS.replace("sentence", "dev"))
    (folder / "test.tsv").write_text(test)


def test_glue_is_tested_on_dev_since_its_test_file_has_no_labels(tmp_path: Path) -> None:
    save_glue(tmp_path, "index\tsentence\n0\ta film\n")
    task = load_task("sst2", tmp_path)
    sizes = [len(split.texts) for split in (task.train, task.validation, task.test)]

    assert sizes == [36, 4, 40]
    assert task.test.texts[3] == "dev 3 "
    assert task.test.labels[:4] == (0, 1, 0, 1)
    assert not set(task.train.texts) & set(task.validation.texts)
    assert sorted(task.validation.labels) == [0, 0, 1, 1]
    assert task.splits == (
        "test.tsv has no labels: dev.tsv is the test split, and validation is a stratified tenth "
        "of train.tsv with seed 0"
    )


@pytest.mark.parametrize("label", ["2", "-1", "0.5", "positive"])
def test_labels_that_glue_does_not_have_are_refused(tmp_path: Path, label: str) -> None:
    rows = GLUE_ROWS.replace("sentence", "test")
    save_glue(tmp_path, f"sentence\tlabel\n{rows}a film\t{label}\n")
    message = rf"no labels but 0, 1, got '{label}' in row 41 \(line 42\), column 'label' of test"
    with pytest.raises(ValueError, match=message):
        load_task("sst2", tmp_path)


def test_folders_without_their_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"without train\.tsv"):
        load_task("sst2", tmp_path)
    with pytest.raises(ValueError, match=r"must hold valid\.txt and test\.txt"):
        load_task("wikitext2", tmp_path)
    (tmp_path / "train.tsv").write_text("text\tlabel\na\t1\n")
    for name in ("dev.tsv", "test.tsv"):
        (tmp_path / name).write_text("sentence\tlabel\na\t1\n")
    with pytest.raises(ValueError, match=r"GLUE's columns.*train\.tsv without sentence"):
        load_task("sst2", tmp_path)


def test_wikitext_uses_a_train_file_where_there_is_one(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(f"the {name} text\n" * 10)
    task = load_task("wikitext2", tmp_path)

    assert task.splits.startswith("official")
    assert "train" in task.train.texts[0]
    assert "valid" in task.validation.texts[0]


def test_wikitext_without_a_train_file_says_what_it_trains_on(tmp_path: Path) -> None:
    (tmp_path / "valid.txt").write_text("".join(f"line {n}\n" for n in range(10)))
    (tmp_path / "test.txt").write_text("test\n")
    task = load_task("wikitext2", tmp_path)

    assert "no train.txt" in task.splits
    assert task.train.texts[0].endswith("line 7\n")
    assert task.validation.texts[0] == "line 8\nline 9\n"


def test_wikitext_is_not_trained_on_paragraphs_that_it_is_tested_on(tmp_path: Path) -> None:
    heading, shared = " = Plot = \n", f"a paragraph that {'is long ' * 5}\n"
    for name in ("train", "valid", "test"):
        text = heading + f"only in {name} are these words of a paragraph that is long\n"
        (tmp_path / f"{name}.txt").write_text(text + shared * (name != "valid"))
    task = load_task("wikitext2", tmp_path)

    assert task.train.texts[0].startswith(heading + "only in train")
    assert shared not in task.train.texts[0]
    assert shared in task.test.texts[0]
    assert "; 1 texts that are also in validation or test left out of train" in task.splits


def test_plain_text_is_utf8_with_or_without_its_mark(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(f"für {name}\n" * 10, encoding="utf-8-sig")
    assert load_task("wikitext2", tmp_path).train.texts[0].startswith("für train")
    (tmp_path / "test.txt").write_text("für test\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"in UTF-8, got other bytes in line 1 of 'test\.txt'"):
        load_task("wikitext2", tmp_path)


def test_the_hub_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    for name in ("sst2", "wikitext2"):
        with pytest.raises(ValueError, match=rf"`--task` {name}.*ConnectionError.*--data DIR"):
            load_task(name)


@needs_shared
def test_real_sst2_keeps_its_official_splits() -> None:
    task = load_task("sst2", SHARED / "sst2")

    assert [len(s.texts) for s in (task.train, task.validation, task.test)] == [6917, 872, 1821]
    assert task.splits == (
        "official train, dev and test files; "
        "3 texts that are also in validation or test left out of train"
    )


@needs_shared
def test_real_wikitext2_is_read_whole() -> None:
    task = load_task("wikitext2", SHARED / "wikitext2")
    valid = (SHARED / "wikitext2/valid.txt").read_text(encoding="utf-8")

    assert task.train.texts[0] + task.validation.texts[0] == valid
