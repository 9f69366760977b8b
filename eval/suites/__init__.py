"""Prompt suites: one reader per published file format, all of them giving the same record.

The user supplies the files; only toybench, which is avgen's own, lies in the repository. A reader names the file, the
row and the field it misses, and never drops a row.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from avgen.types import Clip
from eval.record import Prompt


@dataclass(frozen=True)
class Suite:
    """Prompts in the order of their files, which is what numbered clips count by."""

    name: str
    prompts: tuple[Prompt, ...]
    digest: str  # of the files they came from
    metrics: tuple[str, ...] = ()  # groups that only this suite has, scored besides those asked for
    # a clip that does what the prompt asks, in the form of the given one: the ceiling where no real clip exists
    ideal: Callable[[Prompt, Clip], Clip] | None = None
    ideal_mark: str = ""  # what decides that clip besides prompt and form
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # tag axis -> categories in the suite's order


@dataclass(frozen=True)
class Reader:
    """`module:function` takes the paths and gives prompts (or, for `whole`, a Suite)."""

    module: str
    function: str
    files: str  # what to give as prompts=


READERS: Mapping[str, Reader] = {
    "toybench": Reader("eval.suites.toybench", "suite", "nothing: it lies in the package"),
    "plain": Reader("eval.suites.plain", "read", "a .csv or .jsonl with text and, if there are, id, video_text, ..."),
    "javisbench": Reader("eval.suites.published", "javisbench", "JavisBench.csv or JavisBench-mini.csv"),
    "verse_bench": Reader("eval.suites.published", "verse_bench", "the nested JSON file, {set: {id: ...}}"),
    "vabench": Reader("eval.suites.published", "vabench", "one JSON file per category, or the folder of them"),
    "t2av_compass": Reader("eval.suites.published", "t2av_compass", "the JSON list of 500 prompts"),
    "phyavbench": Reader("eval.suites.published", "phyavbench", "the JSONL file of prompt pairs"),
    "avbench": Reader("eval.suites.published", "avbench", "the JSON list of prompts, normal or hard"),
}


def read_suite(name: str, path: Path | None = None) -> Suite:
    """The suite's prompts, checked: ids differ and every prompt asks for something."""
    reader = READERS.get(name)
    if reader is None:
        near = difflib.get_close_matches(name, READERS, n=1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise ValueError(f"suite={name!r}: no such suite{hint} (there are {', '.join(READERS)})")
    read = getattr(importlib.import_module(reader.module), reader.function)
    if name == "toybench":
        if path is not None:
            raise ValueError(f"prompts={path}: suite=toybench brings its own prompts; leave prompts= out")
        return checked(read(), "toybench")
    if path is None:
        raise ValueError(f"suite={name} needs prompts=: {reader.files}")
    files = (
        sorted(p for p in path.iterdir() if p.suffix.lower() in (".json", ".jsonl", ".csv"))
        if path.is_dir()
        else [path]
    )
    if not files or not all(file.is_file() for file in files):
        raise ValueError(f"prompts={path}: no such file, or a folder without JSON or CSV files; needed: {reader.files}")
    prompts = [prompt for file in files for prompt in read(file)]
    return checked(Suite(name, tuple(prompts), digest_of(*files), axes=axes_of(prompts)), path)


def checked(suite: Suite, path: object) -> Suite:
    if not suite.prompts:
        raise ValueError(f"prompts={path} holds no prompt")
    seen: set[str] = set()
    for i, prompt in enumerate(suite.prompts, 1):
        if prompt.id in seen:
            raise ValueError(f"prompts={path}, prompt {i}: the id {prompt.id!r} stands twice; make ids differ")
        seen.add(prompt.id)
    return suite


def axes_of(prompts: list[Prompt]) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {}
    for prompt in prompts:
        for axis, categories in prompt.tags.items():
            found.setdefault(axis, set()).update(categories)
    return {axis: tuple(sorted(categories)) for axis, categories in found.items()}


def digest_of(*files: Path) -> str:
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.read_bytes())
    return whole.hexdigest()[:16]
