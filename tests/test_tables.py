"""What a file says is what a task gets, or an error that says where the file is wrong."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from alrq_core.data.task import Task
from alrq_core.data.tasks import load_task

ROWS = [(f"sentence {n} here", ("no", "yes")[n % 2]) for n in range(60)]


def custom(path: Path) -> Task:
    return load_task("custom", path, {"text": "text", "label": "label"})


def content(rows: Iterable[tuple[str, str]], header: str = "text,label") -> str:
    return "\n".join([header, *(",".join(row) for row in rows)]) + "\n"


def save(path: Path, text: str | bytes, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def save_json_lines(path: Path, rows: Iterable[object]) -> Path:
    return save(path, "".join(json.dumps(row) + "\n" for row in rows))


def save_parquet(path: Path, **columns: list[object]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def read(task: Task) -> list[tuple[str, str]]:
    """Return all texts with the names of their classes, sorted."""
    splits = (task.train, task.validation, task.test)
    return sorted(
        (text, task.label_names[label])
        for split in splits
        for text, label in zip(split.texts, split.labels, strict=True)
    )


@pytest.mark.parametrize(
    "text",
    [
        content(ROWS).encode("utf-8-sig"),
        gzip.compress(content(ROWS).encode()),
        content(ROWS).replace("\n", "\r\n").encode(),
        content(ROWS).replace("\n", "\r").encode(),
        content(ROWS).replace("\n", "\n\n").encode(),
        b"\n" + content(ROWS)[:-1].encode(),
    ],
    ids=["byte order mark", "gzip", "crlf", "cr", "blank lines", "breaks around it"],
)
def test_a_csv_file_of_any_make_reads_the_same(tmp_path: Path, text: bytes) -> None:
    assert read(custom(save(tmp_path / "mein Ordner/dätä 1.csv", text))) == sorted(ROWS)


@pytest.mark.parametrize(
    "text",
    [
        "2020-01-{n:02}",
        "{n:04}.10",
        "0x{n}",
        "1e{n}",
        "NA {n}",
        "emoji 🎬 {n}",
        "nul \0 {n}",
        " blanks {n} ",
        "\u2028 \x85 \x0b {n}",
        'half " a quote {n}',
        "x" * 200_000 + "{n}",
    ],
    ids=lambda text: text[:12].encode("unicode_escape").decode(),
)
def test_texts_stay_exactly_as_they_are(tmp_path: Path, text: str) -> None:
    rows = [(text.format(n=n), label) for n, (_, label) in enumerate(ROWS)]

    assert read(custom(save(tmp_path / "d.csv", content(rows)))) == sorted(rows)


def test_lines_in_quotes_stay_in_their_text(tmp_path: Path) -> None:
    rows = [(f'"{n}: well, good,\nand ""more"", yes"', label) for n, (_, label) in enumerate(ROWS)]
    found = read(custom(save(tmp_path / "d.csv", content(rows))))

    assert ('7: well, good,\nand "more", yes', "yes") in found
    assert len(found) == 60


def test_quotes_of_tsv_are_text(tmp_path: Path) -> None:
    """GLUE's files have single ones."""
    rows = [(f'"{text} ""x', label) for text, label in ROWS]
    tsv = content(rows, "text\tlabel").replace(",", "\t")

    assert read(custom(save(tmp_path / "d.tsv", tsv))) == sorted(rows)


def test_columns_that_are_not_used_may_hold_anything(tmp_path: Path) -> None:
    lines = [f"text {n},{'ab'[n % 2]},{n if n < 10_001 else 'x'},\n" for n in range(10_100)]
    path = save(tmp_path / "d.csv", "text,label,more,more\n" + "".join(lines))

    assert len(read(custom(path))) == 10_100


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "more.csv",
            content(ROWS) + "a,b,c\n",
            r"2 cells in each row.*got 3 in row 61 \(line 62\) of more\.csv\. Put text",
        ),
        (
            "all.csv",
            content((f"{text}, {label}", f"x{n % 2}") for n, (text, label) in enumerate(ROWS)),
            r"got 3 in row 1 \(line 2\) of all\.csv",
        ),
        ("fewer.csv", content(ROWS) + "alone\n", r"got 1 in row 61 \(line 62\) of fewer\.csv"),
        ("tab.tsv", "text\tlabel\na\tb\tc\n", r"got 3 in row 1 \(line 2\).*Take tabs out"),
        (
            "open.csv",
            content((f'"{t}' if n == 5 else f'{t} "x"', b) for n, (t, b) in enumerate(ROWS)),
            r"readable \.csv file.*row 6, line 7 to 8.*Close the quote",
        ),
        (
            "swallowed.csv",
            content(
                ({5: '"', 30: ""}.get(n, "") + t + {30: '"'}.get(n, ""), b)
                for n, (t, b) in enumerate(ROWS)
            ),
            r"close each quote.*'sentence 5 here,yes' inside of a cell of row 6 \(line 7\)",
        ),
        (
            "swallowed_first.csv",
            content(
                ((b, {5: '"', 30: ""}.get(n, "") + t + {30: '"'}.get(n, "")))
                for n, (t, b) in enumerate(ROWS)
            ).replace("text,label", "label,text", 1),
            r"close each quote.*'no,sentence 6 here' inside of a cell of row 6 \(line 7\)",
        ),
        (
            "header.csv",
            '"text,label\na,b\n',
            r"header\.csv' \(header, line 1 to 2: .*Close the quote",
        ),
        ("twice.csv", "text,label,text\na,b,c\n", r"each column once, got 'text' 2 times in 'twi"),
        ("twice.jsonl", '{"text": "a", "label": "b", "text": "c"}\n', r"line 1: 'text' twice"),
        ("semi.csv", content(ROWS).replace(",", ";"), r"column of semi\.csv.*It has 'text;label'"),
        ("list.jsonl", json.dumps([{"text": "a", "label": "b"}]), r"line 1 holds a list.*one obj"),
        ("cut.jsonl", '{"text": "a", "label": "b"}\n{"text": "a"', r"cut\.jsonl' \(line 2: .*Mend"),
        ("cut.csv", gzip.compress(content(ROWS).encode())[:-9], r"readable \.csv file, got 'cut"),
        ("utf16.csv", content(ROWS).encode("utf-16"), r"in UTF-8, got UTF-16 of 'utf16\.csv'"),
        ("u16le.csv", content(ROWS).encode("utf-16-le"), r"in UTF-8, got UTF-16 of 'u16le\.csv'"),
        (
            "latin1.csv",
            content([*ROWS, ("für", "no")]).encode("latin-1"),
            r"in UTF-8, got other bytes in line 62 of 'latin1\.csv'. Save it as UTF-8",
        ),
        ("half.csv", b"text,label\n\xed\xa0\x80,b\n", r"in UTF-8, got other bytes in line 2"),
        ("book.csv", b"PK\x03\x04\xff\xfe", r"got a zip file or a workbook of 'book\.csv'"),
        ("p.jsonl", b"PAR1\xff\xfe", r"got Parquet of 'p\.jsonl'"),
        (
            "half.jsonl",
            '{"text": "a \\ud800", "label": "b"}\n',
            r"text in every row, got 'a \\ud800' in row 1 \(line 1\), column 'text' of half\.jsonl",
        ),
        (
            "number.jsonl",
            '\n{"text": 7, "label": "b"}\n',
            r"got 7 in row 1 \(line 2\), column 'text' of number\.jsonl",
        ),
        (
            "absent.jsonl",
            '{"text": "a", "label": "b"}\n{"text": "a"}\n',
            r"label in every row, got none in row 2 \(line 2\), column 'label' of absent\.jsonl",
        ),
        (
            "nested.jsonl",
            '{"text": "a", "label": ["b"]}\n',
            r"one label a row, got the list \['b'\] in row 1 \(line 1\), .*choose one",
        ),
    ],
)
def test_a_file_with_a_mistake_says_where_it_is(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        custom(save(tmp_path / name, text))


def test_labels_that_are_missing_are_no_class(tmp_path: Path) -> None:
    labels: list[object] = [float("nan") if n > 40 else float(n % 2) for n in range(60)]
    path = save_parquet(tmp_path / "d.parquet", text=[text for text, _ in ROWS], label=labels)
    message = r"label in every row, got none in row 42, column 'label' of d\.parquet"
    with pytest.raises(ValueError, match=message):
        custom(path)
    rows = [(text, "nan" if n > 40 else str(n % 2)) for n, (text, _) in enumerate(ROWS)]
    message = r"got 'nan' among numbers in row 42 \(line 43\), column 'label' of d\.csv"
    with pytest.raises(ValueError, match=message):
        custom(save(tmp_path / "d.csv", content(rows)))


@pytest.mark.parametrize(
    ("in_json", "in_parquet", "names"),
    [
        ((1, 1.0, 2), (1.0, 1.0, 2.0), ("1", "2")),
        ((False, True), (False, True), ("False", "True")),
        ((0.5, 1.25), (0.5, 1.25), ("0.5", "1.25")),
        ((9, 10), (9, 10), ("9", "10")),
    ],
)
def test_numbers_of_json_and_parquet_are_named_by_their_value(
    tmp_path: Path, in_json: tuple[object], in_parquet: tuple[object], names: tuple[str, ...]
) -> None:
    texts = [text for text, _ in ROWS]
    rows = [{"text": text, "label": in_json[n % len(in_json)]} for n, text in enumerate(texts)]
    labels = [in_parquet[n % len(in_parquet)] for n in range(len(texts))]
    lines = custom(save_json_lines(tmp_path / "d.jsonl", rows))
    parquet = custom(save_parquet(tmp_path / "d.parquet", text=texts, label=labels))

    assert lines.label_names == parquet.label_names == names
    assert read(lines) == read(parquet)
