"""`avgen prefer pool`: candidates beside others to compare them with: real clips, and clips with exchanged sounds.

A pool is a folder like one of `avgen sample`: the candidates themselves, and further clips of the same prompts, with
seeds below 0. `avgen eval` scores all of them and `avgen prefer` mines pairs of them. A clip with an exchanged sound
differs from the candidate in one thing alone, whether picture and sound belong together.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avgen import command
from avgen.config import fingerprint
from avgen.lines import file_hash, write_whole
from avgen.prefer.pairs import generated
from avgen.sample.inputs import FILE_KINDS, Form
from avgen.sample.jobs import MANIFEST, SCHEMA, read_manifest
from avgen.tasks import NAMED
from avgen.types import MODALITIES

EXAMPLES = (
    "avgen prefer pool clips=runs/candidates exchanged=1 out=runs/pool",
    "avgen prefer pool clips=runs/candidates real=clips.csv out=runs/pool",
)
ASKED = ("prompt", "id", "task", "duration_s", "fps", "height", "width", *FILE_KINDS)  # of a line: what was asked for


@dataclass(frozen=True)
class PoolConfig:
    """Candidates, and what joins them."""

    clips: Path = Path("runs/sample")  # folder that avgen sample wrote
    out: Path = Path("runs/pool")  # folder of all clips and their manifest
    real: Path | None = None  # manifest or folder of real clips: each joins the prompts that are one of its captions
    exchanged: int = 0  # copies of each candidate, each with the sound of another one of its prompt

    def __post_init__(self) -> None:
        if self.exchanged < 0:
            raise ValueError(f"exchanged={self.exchanged} cannot be negative")
        if self.real is None and not self.exchanged:
            raise ValueError("real is null and exchanged is 0: nothing would join the candidates")
        if self.out.resolve() == self.clips.resolve():
            raise ValueError(f"out={self.out} must be another folder than clips, whose manifest is avgen sample's")


@dataclass(frozen=True)
class Pooled:
    """How many clips there are of each sort, and what could not join."""

    candidates: int
    real: int
    exchanged: int
    notes: tuple[str, ...]


def pool(config: PoolConfig) -> Pooled:
    """Make what is not there yet; the manifest is written last, so a folder that has one is whole."""
    lines: list[dict[str, Any]] = []
    notes: list[str] = []
    for line in read_manifest(config.clips):
        if (config.clips / line["file"]).is_file():
            lines.append(line)
        else:
            notes.append(f"{line['id']}: its clip {line['file']} is gone")
    if not lines:
        raise ValueError(f"clips={config.clips} holds no {MANIFEST} with a clip: give a folder that avgen sample wrote")
    config.out.mkdir(parents=True, exist_ok=True)
    prompts: dict[str, list[dict[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: (str(line["id"]), line["seed"])):
        prompts.setdefault(str(line["id"]), []).append(line)
    captioned = real_clips(config.real)
    counts = {"real": 0, "exchanged": 0}
    made: list[dict[str, Any]] = []
    for name, own in prompts.items():
        made += [linked(config, line) for line in own]
        joining = [("real", line) for line in real_lines(config, own[0], captioned.get(own[0]["prompt"], []), notes)]
        joining += [("exchanged", line) for line in exchanged_lines(config, own, notes)]
        for number, (sort, line) in enumerate(joining, 1):
            counts[sort] += 1
            made.append({**line, "seed": -number})
        if config.real is not None and own[0]["prompt"] not in captioned:
            notes.append(f"{name}: no real clip has its text as a caption")
    write_whole(config.out / MANIFEST, "".join(json.dumps(line) + "\n" for line in made))
    return Pooled(len(lines), counts["real"], counts["exchanged"], tuple(notes))


def linked(config: PoolConfig, line: dict[str, Any]) -> dict[str, Any]:
    """The candidate itself, in the pool's folder: the same file where the file system allows it."""
    source, file = config.clips / line["file"], config.out / line["file"]
    if not (file.exists() and file.samefile(source)):
        file.unlink(missing_ok=True)
        try:
            os.link(source, file)
        except OSError:  # another file system
            shutil.copy2(source, file)
    return line


def exchanged_lines(config: PoolConfig, own: Sequence[dict[str, Any]], notes: list[str]) -> Iterator[dict[str, Any]]:
    """Of each candidate's picture and the sounds of those after it, around to the first."""
    from avgen.sample.write import join

    if not config.exchanged:
        return
    others = len(own) - 1
    if others < config.exchanged:
        there_are = f"each of its {len(own)} candidates has {others} others" if others else "it has one candidate"
        notes.append(f"{own[0]['id']}: exchanged={config.exchanged}, but {there_are}")
    marks = [digest(config.clips / line["file"]) for line in own]
    for place, line in enumerate(own):
        if line["task"] not in NAMED:
            raise ValueError(f"exchanged={config.exchanged}: task {line['task']} is not trained on pairs")
        if generated(line["task"]) != MODALITIES:
            raise ValueError(
                f"exchanged={config.exchanged}: {line['id']} was made by task {line['task']}, which is given one of "
                "picture and sound; only clips that are made of both can exchange them"
            )
        for further in range(1, min(config.exchanged, others) + 1):
            there = (place + further) % len(own)
            other = own[there]
            if Form.of(line) != Form.of(other):
                notes.append(
                    f"{line['id']}: {line['file']} cannot have the sound of {other['file']}, whose form is another"
                )
                continue
            picture, sound = (config.clips / one["file"] for one in (line, other))
            file = config.out / f"{line['id']}_x{marks[place]}{marks[there]}.mp4"
            if not file.exists():
                join(picture, "picture", sound, file, f"picture of {picture.name}, sound of {sound.name}")
            yield joined(line, file) | {"picture_of": line["seed"], "sound_of": other["seed"]}


def real_clips(manifest: Path | None) -> dict[str, list[Any]]:
    """Records by caption."""
    from avgen.data.manifest import read_manifest as read_records

    found: dict[str, list[Any]] = {}
    for record in () if manifest is None else read_records(manifest):
        for caption in record.captions.joint:
            found.setdefault(caption, []).append(record)
    return found


def real_lines(
    config: PoolConfig, asked: dict[str, Any], records: Sequence[Any], notes: list[str]
) -> Iterator[dict[str, Any]]:
    """The beginning of each clip, in the candidates' form."""
    from avgen.data.media import MediaError, read_clip, write_clip

    if records and any(kind in asked for kind in FILE_KINDS):
        notes.append(f"{asked['id']}: made from a file that was given; a real clip was not, so none joins")
        return
    for record in records:
        try:
            made_of = [digest(path) for path in (record.path, record.audio_path) if path is not None]
            mark = fingerprint([*made_of, record.start_s, Form.of(asked)])
            file = config.out / f"{asked['id']}_r{mark[:12]}.mp4"
            if not file.exists():
                end = record.start_s + asked["duration_s"]
                size = (asked["height"], asked["width"])
                window = read_clip(
                    *(record.path, record.start_s, end), fps=asked["fps"], size=size, audio=record.audio_path is None
                )
                clip = window.clip
                short = record.end_s is not None and record.end_s < end
                if short or not window.frame_mask().all():
                    raise MediaError(f"{record.name} is shorter than the candidates' {asked['duration_s']:g} s")
                if record.audio_path is not None:
                    sound = read_clip(record.audio_path, record.start_s, end, video=False, audio=True).clip
                    clip = replace(clip, audio=sound.audio, sample_rate_hz=sound.sample_rate_hz)
                write_clip(file, clip, comment=f"real: {record.path.name}")
        except (MediaError, OSError) as error:
            notes.append(f"{asked['id']}: {error}")
            continue
        yield joined(asked, file) | {"real": str(record.path)}


def joined(asked: dict[str, Any], file: Path) -> dict[str, Any]:
    """A line for a clip that no model made."""
    made = {"schema": SCHEMA, "name": file.stem, "file": file.name, "model": "", "bytes": file.stat().st_size}
    return made | {key: asked[key] for key in ASKED if key in asked}


def digest(file: Path) -> str:
    """So that a clip made of another file is not taken for this one."""
    return file_hash(file)[:12]


def main(argv: list[str] | None = None) -> int:
    config = command.configure(
        PoolConfig, None, argv, "join candidates with real clips, and with exchanged sounds", EXAMPLES, "prefer pool"
    )
    from rich.console import Console

    console = Console()
    found = pool(config)
    for note in found.notes:
        console.print(note, highlight=False, markup=False)
    console.print(
        f"{found.candidates} candidates, {found.real} real clips and {found.exchanged} with an exchanged sound are in "
        f"[bold]{config.out}[/bold]: score them by "
        f"`avgen eval suite=plain prompts=FILE clips={config.out}`, with the file that the candidates were made of"
    )
    return 0 if found.real + found.exchanged else command.INCOMPLETE
