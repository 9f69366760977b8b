"""Clips for people: enlarged, as files beside what was given, and as strips of frames over the waveform."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from avgen.data.contact_sheet import Mark, contact_sheet
from avgen.data.media import write_clip
from avgen.data.toybox import ToyClip
from avgen.sample.exam import Exam
from avgen.sample.judge import Read
from avgen.types import Clip

SHOWN_PIXELS = 256  # side of the written clips: players make a poor job of 32 pixels
SHEET_WIDTH = 900


@dataclass(frozen=True)
class Shown:
    """One made clip on the page; files are paths relative to it."""

    task: str
    prompt: str
    seed: int
    clip: str
    sheet: str
    given: str  # "" where the prompt is all
    said: str  # what the reader made of it


def enlarged(clip: Clip) -> Clip:
    if clip.video is None:
        return clip
    scale = max(1, SHOWN_PIXELS // clip.video.shape[1])
    return replace(clip, video=clip.video.repeat(scale, axis=1).repeat(scale, axis=2))


def varied(items: Sequence[ToyClip], count: int) -> list[int]:
    """Places of `count` clips that differ in who acts: a new kind of visible actor first, then the others in order."""
    kinds_shown: set[str] = set()
    first: list[int] = []
    for i, item in enumerate(items):
        kinds = {actor.kind for actor in item.facts.actors if actor.visible and actor.audible}
        if kinds - kinds_shown:
            kinds_shown |= kinds
            first.append(i)
    return (first + [i for i in range(len(items)) if i not in first])[:count]


def show_made(
    folder: Path,
    page: Path,
    exam: Exam,
    task: str,
    asked: Sequence[ToyClip],
    read: Sequence[Read],
    places: Sequence[int],
) -> list[Shown]:
    """Write some clips of a task into `folder`, for a page that lies in `page`."""
    found = []
    for i in places:
        clip, sheet = folder / f"{i:04d}.mp4", folder / f"{i:04d}.png"
        write_clip(clip, enlarged(read[i].clip))
        reading = read[i].reading
        marks = [Mark(event.instant_s) for event in reading.heard]
        contact_sheet([read[i].clip], marks=[marks], width=SHEET_WIDTH).save(sheet, optimize=True)
        given = write_given(folder / f"{i:04d}_given", task, asked[i].clip)
        request = exam.request(task, i)
        said = f"{len(reading.seen)} events seen, {len(reading.heard)} heard, {len(reading.pairs())} of them together"
        names = {
            name: str(path.relative_to(page)) if path else ""
            for name, path in (("clip", clip), ("sheet", sheet), ("given", given))
        }
        found.append(Shown(task, request.prompt, request.seed, **names, said=said))
    return found


def write_given(stem: Path, task: str, clip: Clip) -> Path | None:
    """What the task was given of the clip: a first frame, a silent picture or a sound without one."""
    if task == "i2av":
        path = stem.with_suffix(".png")
        picture = enlarged(clip).video
        assert picture is not None
        Image.fromarray(np.ascontiguousarray(picture[0])).save(path)
    elif task == "v2a":
        path = stem.with_suffix(".mp4")
        write_clip(path, replace(enlarged(clip), audio=None, sample_rate_hz=None))
    elif task == "a2v":
        path = stem.with_suffix(".m4a")
        write_clip(path, replace(clip, video=None, fps=None))
    else:
        return None
    return path
