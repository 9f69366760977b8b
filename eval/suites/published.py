"""Readers of published suites, field by field as their files name them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path

from avgen.lines import prompts_text
from eval.record import Check, Prompt
from eval.suites.rows import Row, csv_rows, json_rows, jsonl_rows, mapping, parsed, speech

# What the columns cat0_ind ... cat4_ind stand for. JavisBench's README names spatial before temporal; its files do not.
JAVIS_AXES = (("scenario", 5), ("style", 3), ("sound", 5), ("temporal", 3), ("spatial", 3))


def with_ground_truth(reader: Callable[[Path], Iterator[Prompt]]) -> Callable[[Path], Iterator[Prompt]]:
    """The real clips are seldom on the user's disk: where none of them is, no prompt has a reference. Where some are, a
    missing one is named all the same, and counts as failed."""

    @wraps(reader)
    def read(file: Path) -> Iterator[Prompt]:
        prompts = list(reader(file))
        there = any(prompt.reference is not None and prompt.reference.is_file() for prompt in prompts)
        yield from prompts if there else (replace(prompt, reference=None) for prompt in prompts)

    return read


@with_ground_truth
def javisbench(file: Path) -> Iterator[Prompt]:
    """CSV; clips are numbered by row. Categories keep their numbers: their names are in a file of the suite's own."""
    for i, row in enumerate(csv_rows(file)):
        yield Prompt(
            id=f"{i:04d}",
            text=row.text("text", needed=True),
            video_text=row.text("video_text"),
            audio_text=row.text("audio_text"),
            reference=row.path("path"),
            tags=javis_tags(row),
        )


def javis_tags(row: Row) -> dict[str, tuple[str, ...]]:
    found = {}
    for column, (axis, classes) in enumerate(JAVIS_AXES):
        name = f"cat{column}_ind"
        said = row.text(name)
        for part in said.split(",") if said else ():
            if not part.strip().isdecimal() or int(part) >= classes:
                raise row.error(f"{name}={said!r} must list numbers of {axis} classes, 0 to {classes - 1}")
        if said:
            found[axis] = tuple(str(int(part)) for part in said.split(","))
    return found


def verse_bench(file: Path) -> Iterator[Prompt]:
    sets = parsed(file, "the file", prompts_text(file))
    for name, entries in mapping(file, "the file", sets).values.items():
        for key, values in mapping(file, str(name), entries).values.items():
            row = mapping(file, f"{name}/{key}", values)
            seen, heard = row.text("video_prompt"), row.text("audio_prompt")
            yield Prompt(
                id=f"{name}/{key}",
                text=row.text("prompt") or joined(row, seen, heard, "prompt, video_prompt or audio_prompt"),
                video_text=seen,
                audio_text=heard,
                speech=speech(row, "speech_prompt"),
                first_frame=row.path("first_frame_path"),
                tags={"set": (str(name),)},
            )


def joined(row: Row, seen: str, heard: str, names: str) -> str:
    if not (seen or heard):
        raise row.error(f"has no {names}; its fields are {', '.join(map(str, row.values))}")
    return ". ".join(part for part in (seen.rstrip("."), heard) if part)


def vabench(file: Path) -> Iterator[Prompt]:
    """One file per category, named for it."""
    for i, row in enumerate(json_rows(file)):
        yield Prompt(
            id=f"{file.stem}/{row.text('id', 'index') or i}",
            text=row.text("prompt_en", needed=True),
            video_text=row.text("prompt_vision"),
            audio_text=row.text("prompt_audio"),
            checklist=tuple(
                Check(question, group=group)
                for group, name in (("video", "auxiliary_info_vision"), ("audio", "auxiliary_info_audio"))
                for question in row.many(name)
            ),
            tags={"category": (file.stem,), **({"dimension": row.many("dimension")} if row.many("dimension") else {})},
        )


COMPASS_TAGS = (
    "subject_matter",
    "core_subject",
    "event_scenario",
    "sound_type",
    "camera_movement",
    "visual_spatial_composition",
    "visual_temporal_composition",
    "audio_spatial_composition",
    "audio_temporal_composition",
)


def t2av_compass(file: Path) -> Iterator[Prompt]:
    for i, row in enumerate(json_rows(file)):
        yield Prompt(
            id=row.text("index") or str(i),
            text=row.text("prompt", needed=True),
            video_text=row.text("video_prompt"),
            audio_text=row.text("audio_prompt"),
            speech=speech(row, "speech_prompt"),
            checklist=tuple(checks(row, row.values.get("checklist_info"))),
            tags={name: row.many(name) for name in COMPASS_TAGS if row.many(name)},
        )


YES_OR_NO = {"yes": "yes", "y": "yes", "true": "yes", "no": "no", "n": "no", "false": "no"}


def checks(row: Row, said: object, group: str = "") -> Iterator[Check]:
    """Questions wherever they hang in nested mappings and lists; the keys on the way are their group."""
    if isinstance(said, str) and said.strip():
        yield Check(said.strip(), group=group)
    elif isinstance(said, dict):
        question = said.get("question")
        if isinstance(question, str):
            answer = YES_OR_NO.get(str(said.get("answer", "yes")).strip().lower())
            if answer is None:
                raise row.error(f"answer={said['answer']!r} to {question[:60]!r} must be yes or no")
            yield Check(question, answer, group)
            return
        for name, inner in said.items():
            yield from checks(row, inner, f"{group}/{name}" if group else str(name))
    elif isinstance(said, list):
        for inner in said:
            yield from checks(row, inner, group)


@with_ground_truth
def phyavbench(file: Path) -> Iterator[Prompt]:
    """Pairs that differ in one physical cause: two prompts a line, whose clips are ID_a.mp4 and ID_b.mp4."""
    for row in jsonl_rows(file):
        name = row.text("id", needed=True)
        for side in "ab":
            yield Prompt(
                id=f"{name}_{side}",
                text=row.text(f"prompt_{side}", needed=True),
                reference=row.path(f"ref_video_{side}"),
                tags={"cause": (name[0],)},
                extra={"pair": name, "side": side},
            )


def avbench(file: Path) -> Iterator[Prompt]:
    for i, row in enumerate(json_rows(file)):
        seen, heard = row.text("prompt_vision"), row.text("prompt_audio")
        yield Prompt(
            id=row.text("id") or str(i),
            text=row.text("full_prompt") or joined(row, seen, heard, "full_prompt, prompt_vision or prompt_audio"),
            video_text=seen,
            audio_text=heard,
            speech=speech(row, "utterance"),
            tags={"set": (file.stem,)},
        )
