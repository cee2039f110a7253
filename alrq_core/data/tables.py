"""Reads columns from CSV, TSV, JSONL, JSON and Parquet, each cell as it stands in the file."""

import csv
import gzip
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

DELIMITERS: Mapping[str, str] = {".csv": ",", ".tsv": "\t"}
GZIP = b"\x1f\x8b"
# Of one cell, in characters: the most that the csv module takes on every platform.
CELL_LIMIT = 2**31 - 1
# First bytes of what people save under a name that it doesn't fit.
DISGUISES: Mapping[bytes, str] = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PK": "a zip file or a workbook",
    b"PAR1": "Parquet",
}


@dataclass
class Table:
    """The columns of a file that were asked for.

    Attributes:
        source: Name of the file.
        names: Its columns.
        cells: Cells of each column that was asked for and is there. Text from CSV and TSV, typed
            values from JSONL and Parquet; None where there is none.
        rows: Number of them.
        lines: Line of the file on which each row begins; empty for JSON and Parquet.
        broken: Rows (from 0) and cells that hold a line break, of all columns; CSV only.
    """

    source: str
    names: list[str]
    cells: dict[str, list[Any]]
    rows: int = 0
    lines: list[int] = field(default_factory=list)
    broken: list[tuple[int, str]] = field(default_factory=list)

    def place(self, row: int, column: str | None = None) -> str:
        """Return where a row, counted from 0, or a cell of it stands in the file."""
        line = f" (line {self.lines[row]})" if self.lines else ""
        cell = f", column {column!r}" if column is not None else ""
        return f"row {row + 1}{line}{cell} of {self.source}"


def read_table(path: Path, columns: Collection[str]) -> Table:
    """Return those of these columns that a file has; nothing is guessed and no other is read.

    Raises:
        ValueError: The file is empty or malformed, a row isn't as wide as the header, or one of
            these columns is there twice.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"`--data` must not be empty, got {path.name!r}. Check the file.")
    table = READERS[path.suffix.lower()](path, columns)
    if table.rows == 0:
        raise ValueError(f"`--data` must have rows, got none in {path.name!r}. Check the file.")
    return table


def check_suffix(path: Path, known: Iterable[str]) -> None:
    """Check that a file's name tells a form that can be read.

    Raises:
        ValueError: It doesn't.
    """
    if path.suffix.lower() not in known:
        raise ValueError(
            f"`--data` must end in {', '.join(known)}, got {path.name!r}. Convert the file."
        )


def check_column(table: Table, flag: str, name: str) -> None:
    """Check that a column is there.

    Args:
        table: Of a file.
        flag: That names the column, for the message.
        name: Of the column.

    Raises:
        ValueError: It isn't.
    """
    if name not in table.cells:
        raise ValueError(
            f"`{flag}` must be a column of {table.source}, got {name!r}. "
            f"It has {', '.join(map(repr, table.names))}."
        )


def text_lines(path: Path, newline: str | None = None) -> Iterator[str]:
    """Yield the lines of a text file in UTF-8, plain or in gzip, without a byte order mark.

    Args:
        path: Of the file.
        newline: See `open`.

    Raises:
        ValueError: It isn't UTF-8.
    """
    try:
        with _opened(path, "rt", encoding="utf-8-sig", newline=newline) as file:
            for number, line in enumerate(file):
                if number == 0 and "\0" in line:
                    raise _not_utf8(path)
                yield line
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise _unreadable(path, str(error), "Make the file again.") from error


def _opened(path: Path, mode: str, **how: Any) -> Any:
    with path.open("rb") as file:
        packed = file.read(len(GZIP)) == GZIP
    return gzip.open(path, mode, **how) if packed else path.open(mode, **how)


def _not_utf8(path: Path) -> ValueError:
    with _opened(path, "rb") as file:
        lines = enumerate(file, start=1)
        number, first = next(lines)
        known = next((what for magic, what in DISGUISES.items() if first.startswith(magic)), None)
        if known is None and b"\0" in first:
            known = "UTF-16"
        if known is None and _decodes(first):
            number = next(number for number, line in lines if not _decodes(line))
    got = known or f"other bytes in line {number}"
    return ValueError(
        f"`--data` must be text in UTF-8, got {got} of {path.name!r}. Save it as UTF-8, or "
        "convert it (iconv -f latin1 -t utf-8 FILE)."
    )


def _decodes(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _unreadable(path: Path, problem: str, remedy: str) -> ValueError:
    return ValueError(
        f"`--data` must be a readable {path.suffix} file, got {path.name!r} ({problem}). {remedy}"
    )


def _places(path: Path, header: list[str], columns: Collection[str]) -> dict[str, int]:
    """Return the place of each column that the header has."""
    for column in columns:
        if header.count(column) > 1:
            raise ValueError(
                f"`--data` must have each column once, got {column!r} {header.count(column)} times "
                f"in {path.name!r}. Rename one of them."
            )
    return {column: header.index(column) for column in columns if column in header}


def _read_delimited(path: Path, columns: Collection[str]) -> Table:
    """Return columns of a CSV or TSV file as text. In TSV a quote is a character like others."""
    suffix = path.suffix.lower()
    delimiter, quoted = DELIMITERS[suffix], suffix == ".csv"
    csv.field_size_limit(CELL_LIMIT)
    reader = csv.reader(
        text_lines(path, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    rows = _rows(reader, path)
    _, header = next(rows, (1, []))
    places = _places(path, header, columns)
    table = Table(path.name, header, {column: [] for column in places})
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"`--data` must have {len(header)} cells in each row, as in its header, got "
                f"{len(row)} in row {table.rows + 1} (line {line}) of {path.name}. "
                + ("Put text with commas in quotes." if quoted else "Take tabs out of the text.")
            )
        if reader.line_num > line:
            table.broken += [(table.rows, cell) for cell in row if "\n" in cell]
        table.rows += 1
        table.lines.append(line)
        for column, place in places.items():
            table.cells[column].append(row[place])
    return table


def _rows(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield header and rows, but for blank lines, and the line on which each of them begins."""
    number = 0
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            what = f"row {number}" if number else "header"
            problem = f"{what}, line {line} to {reader.line_num}: {error}"
            remedy = "Close the quote that opens there, and write quotes inside of it twice."
            raise _unreadable(path, problem, remedy) from error
        if row is None:
            return
        if row:
            yield line, row
            number += 1


def _read_json_lines(path: Path, columns: Collection[str]) -> Table:
    wanted, names = set(columns), dict[str, None]()
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise _unreadable(path, f"line {number}: {error}", "Mend the line.") from error
        if not isinstance(row, dict):
            problem = f"line {number} holds a {type(row).__name__}"
            raise _unreadable(path, problem, "Write one object a line.")
        names |= dict.fromkeys(row)
        rows.append({column: row[column] for column in wanted & row.keys()})
        lines.append(number)
    return _of_objects(path, rows, list(names), columns, lines)


def _read_json(path: Path, columns: Collection[str]) -> Table:
    """Return columns of a list of objects."""
    try:
        rows = json.loads("".join(text_lines(path)), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, str(error), "Mend it, or write JSONL.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _unreadable(path, "it holds no list of objects", "Write one, or JSONL.")
    return _of_objects(path, rows, list(dict.fromkeys(chain(*rows))), columns, [])


def _of_objects(
    path: Path,
    rows: list[dict[str, Any]],
    names: list[str],
    columns: Collection[str],
    lines: list[int],
) -> Table:
    """Return columns of objects, of which each may leave out what it doesn't have."""
    cells = {name: [row.get(name) for row in rows] for name in columns if name in names}
    return Table(path.name, names, cells, len(rows), lines)


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} twice")
        found[name] = value
    return found


def _read_parquet(path: Path, columns: Collection[str]) -> Table:
    try:
        with parquet.ParquetFile(path) as file:
            names: list[str] = file.schema_arrow.names
            places = _places(path, names, columns)
            rows = file.read(columns=list(places))
            cells = {column: rows.column(column).to_pylist() for column in places}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise _unreadable(path, problem, "Write it again, for example with pyarrow.") from error
    return Table(path.name, names, cells, rows.num_rows)


READERS: Mapping[str, Callable[[Path, Collection[str]], Table]] = {
    ".csv": _read_delimited,
    ".tsv": _read_delimited,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
