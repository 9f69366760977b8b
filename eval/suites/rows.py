"""Rows of CSV, JSON and JSONL files, and their fields, with errors that name the file, the row and the field."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avgen.lines import prompts_text
from eval.record import Utterance


@dataclass(frozen=True)
class Row:
    """One mapping of a file."""

    file: Path
    place: str  # "row 7"
    values: Mapping[str, Any]

    def error(self, problem: str) -> ValueError:
        return ValueError(f"prompts={self.file}, {self.place}: {problem}")

    def text(self, *names: str, needed: bool = False) -> str:
        """The first of these fields that says something; lists are joined."""
        for name in names:
            value = self.values.get(name)
            if isinstance(value, list):
                value = ". ".join(str(part).strip(" .") for part in value if part)
            if value is not None and not isinstance(value, str | int | float):
                raise self.error(f"{name} is a {type(value).__name__}, text is needed")
            if value is not None and str(value).strip():
                return str(value).strip()
        if needed:
            raise self.error(f"has no {' or '.join(names)}; its fields are {', '.join(map(str, self.values))}")
        return ""

    def many(self, name: str) -> tuple[str, ...]:
        """A field that may be a list, one value or nothing."""
        value = self.values.get(name)
        values = value if isinstance(value, list) else [] if value in (None, "") else [value]
        for part in values:
            if not isinstance(part, str | int | float):
                raise self.error(f"{name} holds a {type(part).__name__}, text is needed")
        return tuple(str(v).strip() for v in values if str(v).strip())

    def path(self, *names: str) -> Path | None:
        """A file named relative to the file of the suite."""
        said = self.text(*names)
        return self.file.parent / said if said else None


def speech(row: Row, name: str) -> tuple[Utterance, ...]:
    """Text, a mapping with text and speaker, or a list of either."""
    said = row.values.get(name)
    found = []
    for part in said if isinstance(said, list) else [said]:
        if isinstance(part, str) and part.strip():
            found.append(Utterance(part.strip()))
        elif isinstance(part, dict) and str(part.get("text") or "").strip():
            found.append(
                Utterance(str(part["text"]).strip(), str(part.get("speaker") or ""), str(part.get("description") or ""))
            )
        elif part not in (None, "") and not isinstance(part, str | dict):
            raise row.error(f"{name} is a {type(part).__name__}, text or mappings with text are needed")
    return tuple(found)


def csv_rows(file: Path) -> Iterator[Row]:
    for i, values in enumerate(csv.DictReader(io.StringIO(prompts_text(file), newline="")), 1):
        if None in values:
            raise ValueError(f"prompts={file}, row {i}: has more cells than the header; put quotes around commas")
        yield Row(file, f"row {i}", values)


def jsonl_rows(file: Path) -> Iterator[Row]:
    for i, line in enumerate(prompts_text(file).split("\n"), 1):  # JSON may hold U+2028
        if line.strip():
            yield mapping(file, f"line {i}", parsed(file, f"line {i}", line))


def json_rows(file: Path) -> Iterator[Row]:
    """Of a list of mappings."""
    whole = parsed(file, "the file", prompts_text(file))
    if not isinstance(whole, list):
        raise ValueError(f"prompts={file}: a JSON list is needed, this is a {type(whole).__name__}")
    for i, values in enumerate(whole, 1):
        yield mapping(file, f"entry {i}", values)


def mapping(file: Path, place: str, values: Any) -> Row:
    if not isinstance(values, dict):
        raise ValueError(f"prompts={file}, {place}: a mapping is needed, this is a {type(values).__name__}")
    return Row(file, place, values)


def parsed(file: Path, place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"prompts={file}, {place}: not JSON: {error}") from error
