"""Which file in a folder is the clip of which prompt.

Three ways, the first that fits: a manifest.jsonl (as of avgen sample: id, seed, file), files named for the prompt's id
(ID.mp4, ID_s7.mp4 with seed 7), and JavisBench's numbering by row (sample_0000.mp4).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avgen.lines import standing_lines
from eval.record import Prompt
from eval.suites import Suite

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".m4a", ".wav")
NUMBERED = re.compile(r"sample_(\d{4,})")
SEEDED = re.compile(r"(.*)_s(\d+)")
BY_PLACE = re.compile(r"\d{5}")  # what avgen sample and suite=plain call prompts that have no id


@dataclass(frozen=True)
class Found:
    """A prompt's clip; no path where there is none."""

    prompt: str  # its id
    seed: int
    path: Path | None


def find_clips(folder: Path, suite: Suite) -> list[Found]:
    """In the suite's order, every prompt at least once: a missing clip is found missing, not left out."""
    if not folder.is_dir():
        raise ValueError(f"clips={folder}: no such folder")
    known = by_manifest(folder, suite) or by_name(folder, suite) or by_number(folder, suite)
    if not known:
        raise ValueError(
            f"clips={folder} holds no clip of suite {suite.name}: name files for prompts ({suite.prompts[0].id}.mp4,"
            f" {suite.prompts[0].id}_s0.mp4), number them by row (sample_0000.mp4), or keep avgen sample's"
            " manifest.jsonl"
        )
    found = []
    for prompt in suite.prompts:
        clips = known.get(prompt.id, {})
        found += [Found(prompt.id, seed, clips[seed]) for seed in sorted(clips)] or [Found(prompt.id, 0, None)]
    return found


def models_of(folder: Path, found: Sequence[Found]) -> tuple[str, ...]:
    """Fingerprints of the models that made these clips, as far as avgen sample's manifest says."""
    used = {one.path for one in found}
    lines = [said for said in standing_lines(folder / "manifest.jsonl") if said.get("model")]
    return tuple(sorted({str(said["model"]) for said in lines if folder / str(said.get("file")) in used}))


Known = dict[str, dict[int, Path]]  # prompt's id -> seed -> file


def by_manifest(folder: Path, suite: Suite) -> Known:
    prompts = {prompt.id: prompt for prompt in suite.prompts}
    known: Known = {}
    for said in standing_lines(folder / "manifest.jsonl"):
        name, file = str(said.get("id", "")), said.get("file")
        if name in prompts and isinstance(file, str):
            require_same(prompts[name], said.get("prompt"), folder)
            known.setdefault(name, {})[int(said.get("seed", 0))] = folder / file
    return known


def require_same(prompt: Prompt, made_of: object, folder: Path) -> None:
    """Ids that are places in a file mean another prompt once a row was added; ids that somebody gave may well stand for
    a prompt in other words."""
    texts = (prompt.text, prompt.video_text, prompt.audio_text)
    if BY_PLACE.fullmatch(prompt.id) and isinstance(made_of, str) and made_of.strip() not in texts:
        raise ValueError(
            f"clips={folder}: the clip of prompt {prompt.id} was made of {made_of[:60]!r}, and prompt {prompt.id} is"
            f" {prompt.text[:60]!r}: give the prompts that the clips were made of, or give prompts ids of their own"
        )


def by_name(folder: Path, suite: Suite) -> Known:
    """Ids may hold slashes: set/7 is the file 7.mp4 in set/, or set_7.mp4."""
    files = media(folder, deep=any("/" in prompt.id for prompt in suite.prompts))
    known: Known = {}
    for prompt in suite.prompts:
        for name in (prompt.id, prompt.id.replace("/", "_")):
            for seed, path in files.get(name, {}).items():
                known.setdefault(prompt.id, {}).setdefault(seed, path)
    return known


def by_number(folder: Path, suite: Suite) -> Known:
    known: Known = {}
    for name, seeds in media(folder, deep=False).items():
        fits = NUMBERED.fullmatch(name)
        if fits and int(fits[1]) < len(suite.prompts):
            known.setdefault(suite.prompts[int(fits[1])].id, {}).update(seeds)
    return known


def media(folder: Path, deep: bool) -> Mapping[str, dict[int, Path]]:
    """Files by name without suffix and seed. Of one name with several suffixes the first of SUFFIXES counts: a .wav
    beside its .mp4 is the same sound again."""
    found: dict[str, dict[int, Path]] = {}
    files = sorted(folder.rglob("*") if deep else folder.iterdir())
    for suffix in SUFFIXES:
        for file in files:
            if file.suffix.lower() != suffix or file.name.startswith("."):
                continue
            name = file.relative_to(folder).with_suffix("").as_posix()
            found.setdefault(name, {}).setdefault(0, file)
            seeded = SEEDED.fullmatch(name)
            if seeded:
                found.setdefault(seeded[1], {}).setdefault(int(seeded[2]), file)
    return found
