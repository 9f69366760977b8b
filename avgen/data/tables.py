"""Tables of rows as they stand in a csv, tsv, jsonl or parquet file: read as a stream, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


class ManifestError(ValueError):
    """A manifest, or a row of one, that cannot be read. The message names file, line, value and rule."""


@dataclass(frozen=True)
class Row:
    """One row as it stands in the file."""

    where: str
    values: Mapping[str, Any]
    text: str = ""  # of jsonl: the line itself
    problem: str = ""


def read_rows(source: Path) -> Iterator[Row]:
    suffix = source.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(source)
        return
    # errors="surrogateescape": one line in another encoding must not hide the rest
    with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield from _json_rows(source, file) if suffix == ".jsonl" else _csv_rows(source, file)


def _json_rows(source: Path, file: Iterable[str]) -> Iterator[Row]:
    for number, raw in enumerate(file, 1):
        line = raw.rstrip("\r\n")
        if not line.strip():
            continue
        where = f"{source} line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            yield Row(where, {}, line, f"{shown(line)} is not JSON ({error})")
            continue
        if isinstance(values, dict):
            yield Row(where, values, line)
        else:
            yield Row(where, {}, line, f"{shown(line)} is no JSON object: each line must be {{...}}")


def _csv_rows(source: Path, file: Iterable[str]) -> Iterator[Row]:
    csv.field_size_limit(2**24)  # captions are long where people put dense ones; the default is 128 KiB
    # strict: else a quotation mark left open makes one cell of all rows behind it, without a word
    reader = csv.reader(file, delimiter="\t" if source.suffix.lower() == ".tsv" else ",", strict=True)
    names = _cells(reader, f"{source} line 1")
    if names is None:
        raise ManifestError(f"{source} is empty: its first line must name the columns")
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ManifestError(f"{source} line 1: two columns are named {double!r}: rename one")
    while True:
        where = f"{source} line {reader.line_num + 1}"
        cells = _cells(reader, where)
        if cells is None:
            return
        if not cells:
            continue
        problem = "" if len(cells) == len(names) else f"has {len(cells)} cells, the header names {len(names)} columns"
        yield Row(where, dict(zip(names, cells, strict=False)), problem=problem)


def _cells(reader: Iterator[list[str]], where: str) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise ManifestError(f"{where}: {error}: is a quotation mark left open?") from error


def _parquet_rows(source: Path) -> Iterator[Row]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ManifestError(f"{source}: parquet needs pyarrow: pip install pyarrow, or save it as .jsonl") from error
    import pyarrow

    try:
        with parquet.ParquetFile(source) as file:
            number = 0
            for batch in file.iter_batches(batch_size=4096):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{source} row {number}", values)
    except pyarrow.ArrowInvalid as error:
        raise ManifestError(f"{source} cannot be read as parquet: {error}") from error


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], left_out: Collection[str]) -> int:
    """The number written. In jsonl, values that are null are left out of the columns named so."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return write_lines(path, (_json_line(row, left_out) for row in rows))
    if suffix not in (".csv", ".tsv"):
        raise ManifestError(f"{path}: manifests are written as .csv, .tsv or .jsonl; change the suffix")
    return _write_csv(path, rows, "\t" if suffix == ".tsv" else ",")


def _json_line(row: Mapping[str, Any], left_out: Collection[str]) -> str:
    kept = {name: value for name, value in row.items() if value is not None or name not in left_out}
    plain = json.dumps(kept, ensure_ascii=False, default=str)
    return (plain if encodable(plain) else json.dumps(kept, default=str)) + "\n"


def write_lines(path: Path, lines: Iterable[str]) -> int:
    count = 0
    with _whole(path) as file:
        for line in lines:
            file.write(line)
            count += 1
    return count


def _write_csv(path: Path, rows: Iterable[Mapping[str, Any]], delimiter: str) -> int:
    rows = iter(rows)
    first = next(rows, None)
    names = ["path"] if first is None else list(first)
    count = 0
    with _whole(path) as file:
        writer = csv.writer(_Lines(file), delimiter=delimiter, lineterminator="\r\n")
        writer.writerow(names)
        for row in rows if first is None else chain((first,), rows):
            if row.keys() != set(names):
                other = sorted(row.keys() ^ set(names))[0]
                raise ManifestError(f"{path}: column {other!r} is not in every row, as csv needs it: write .jsonl")
            writer.writerow([_cell(row[name]) for name in names])
            count += 1
    return count


@dataclass(frozen=True)
class _Lines:
    """Rows end in a plain newline; the csv module quotes a lone carriage return only if it ends rows with one."""

    file: io.TextIOWrapper

    def write(self, row: str) -> None:
        self.file.write(row.removesuffix("\r\n") + "\n")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


@contextmanager
def _whole(path: Path) -> Iterator[io.TextIOWrapper]:
    """A text file that takes its name only when everything is in it; bytes that were not UTF-8 go back as they were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def legible(text: str) -> str:
    """Bytes that were no UTF-8 as a person can see them."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
