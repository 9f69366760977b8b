"""Anybody's own prompts: csv or jsonl.

Fields: text (or prompt), id, video_text, audio_text, speech, first_frame, reference, and tags: a mapping of axis to
category or categories in jsonl, columns named tag_AXIS (categories separated by |) in csv. In jsonl, speech is text, a
mapping with text and speaker, or a list of either. The fields of a prompt file of `avgen sample` may stand there too:
image is the first frame; video, audio and seed say nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eval.record import Prompt
from eval.suites.rows import Row, csv_rows, jsonl_rows, speech

KNOWN = ("id", "text", "prompt", "video_text", "audio_text", "speech", "first_frame", "reference", "tags")
OF_SAMPLE = ("image", "video", "audio", "seed")


def read(file: Path) -> Iterator[Prompt]:
    kinds = {".csv": csv_rows, ".jsonl": jsonl_rows}
    if file.suffix.lower() not in kinds:
        raise ValueError(f"prompts={file} must be a .csv or .jsonl file")
    for i, row in enumerate(kinds[file.suffix.lower()](file)):
        unknown = [name for name in row.values if name not in (*KNOWN, *OF_SAMPLE) and not name.startswith("tag_")]
        if unknown:
            raise row.error(f"no field {unknown[0]!r}; known: {', '.join(KNOWN)} and tag_AXIS")
        yield Prompt(
            id=row.text("id") or f"{i:05d}",
            text=row.text("text", "prompt", needed=True),
            video_text=row.text("video_text"),
            audio_text=row.text("audio_text"),
            speech=speech(row, "speech"),
            first_frame=row.path("first_frame", "image"),
            reference=row.path("reference"),
            tags=tags(row),
        )


def tags(row: Row) -> dict[str, tuple[str, ...]]:
    columns = {n.removeprefix("tag_"): row.text(n).split("|") for n in row.values if n.startswith("tag_")}
    found = {axis: tuple(part.strip() for part in parts if part.strip()) for axis, parts in columns.items()}
    said = row.values.get("tags") or {}
    if not isinstance(said, dict):
        raise row.error(f"tags is a {type(said).__name__}, a mapping of axis to categories is needed")
    inner = Row(row.file, row.place, said)
    found |= {axis: inner.many(axis) for axis in said}
    return {axis: categories for axis, categories in found.items() if any(categories)}
