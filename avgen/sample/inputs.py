"""Inputs as people have them, brought to the form of the clip to be made by rules that are said aloud.

Time: a file is taken from its start; what is longer than the clip is cut, what is shorter is held (picture) or
silent (sound), unless the clip is to go on from it. Picture: the frame on screen in the middle of each of the clip's
frames, scaled and cropped to fill the clip's size. Sound: resampled and mixed to the codec's rate and channels.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from avgen.data.media import MediaError, exact_fps, probe, read_clip, read_image, unit_count
from avgen.lines import prompts_text
from avgen.tasks import EVERYTHING, NAMED, NOTHING, Hole, Task, extend, inpaint, interpolate
from avgen.types import AudioGeometry

# the files that a task needs, and those that it can use besides
FILES: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    name: (frozenset(needed), frozenset(useful))
    for name, needed, useful in (
        ("t2av", (), ()),
        ("t2v", (), ()),
        ("t2a", (), ()),
        ("i2av", ("image",), ()),
        ("i2v", ("image",), ()),
        ("v2a", ("video",), ()),
        ("a2v", ("audio",), ()),
        ("ai2v", ("image", "audio"), ()),
        ("extend", (), ("video", "audio")),
        ("interpolate", ("video",), ()),
        ("inpaint", ("video",), ("audio",)),
    )
}
FILE_KINDS = ("image", "video", "audio")
COLUMNS = ("prompt", "id", *FILE_KINDS, "seed")


@dataclass(frozen=True)
class Form:
    """What a clip measures."""

    duration_s: float
    fps: float
    height: int
    width: int

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Form:
        """Of a line of the manifest."""
        return cls(*(line[f.name] for f in fields(cls)))

    @property
    def frames(self) -> int:
        return unit_count(0, self.duration_s, exact_fps(self.fps))

    def samples(self, rate_hz: int) -> int:
        return unit_count(0, self.duration_s, rate_hz)


@dataclass(frozen=True)
class Request:
    """One clip to make."""

    prompt: str = ""
    id: str = ""  # names the file; the same prompt and seed make the same clip whatever it is
    image: Path | None = None
    video: Path | None = None
    audio: Path | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its file, without suffix."""
        return f"{self.id}_s{self.seed}"

    def check(self, task: str) -> None:
        """Refuse what the task does not need and miss what it does, before anything is loaded."""
        if task not in FILES:
            raise ValueError(f"task={task!r} is unknown: choose from {', '.join(FILES)}")
        needed, useful = FILES[task]
        given = {name for name in FILE_KINDS if getattr(self, name) is not None}
        for name in sorted(needed - given):
            raise ValueError(f"task={task} needs {name}=FILE")
        for name in sorted(given - needed - useful):
            fitting = [t for t, (n, u) in FILES.items() if given <= n | u and n <= given]
            hint = f"; task={' or '.join(fitting)} would" if fitting else ""
            raise ValueError(f"task={task} does not use {name}={getattr(self, name)}{hint}")
        if task == "extend" and not given:
            raise ValueError("task=extend needs video=FILE, audio=FILE or both: what is to go on")
        for name in sorted(given):
            path = getattr(self, name)
            if not path.is_file():
                raise ValueError(f"{name}={path}: no such file")


WHOLE_PICTURE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Edit:
    """What interpolate and inpaint leave open."""

    key_frames_s: tuple[float, ...] = ()  # of interpolate: instants of the video that are given; default first and last
    remake: str = "both"  # of inpaint: video, audio or both
    hole_s: tuple[float, float] | None = None  # of inpaint: the span to make anew; default all of the clip
    box: tuple[float, float, float, float] = WHOLE_PICTURE  # of inpaint: top, left, bottom, right, as fractions

    def __post_init__(self) -> None:
        if self.remake not in ("video", "audio", "both"):
            raise ValueError(f"remake={self.remake!r} must be video, audio or both")
        if self.remake == "audio" and self.box != WHOLE_PICTURE:
            raise ValueError("edit.box is a part of the picture: it says nothing where edit.remake=audio")

    def check(self, duration_s: float) -> None:
        """Refuse instants that a clip of that length does not have."""
        outside = [f"{at:g}" for at in self.key_frames_s if not 0 <= at <= duration_s]
        if outside:
            raise ValueError(f"edit.key_frames_s={outside[0]} lies outside the clip, which lasts {duration_s:g} s")
        if self.hole_s is not None and not (self.hole_s[0] < duration_s and self.hole_s[1] > 0):
            start, end = self.hole_s
            raise ValueError(f"edit.hole_s=[{start:g},{end:g}] lies outside the clip, which lasts {duration_s:g} s")


@dataclass(frozen=True)
class GivenMedia:
    """A request's files in the clip's form, whatever part of them the task then hands to the model."""

    task: Task
    frames: np.ndarray | None = None  # (T, H, W, 3) uint8
    wave: np.ndarray | None = None  # (channels, S) float32
    notes: tuple[str, ...] = ()  # what was done to the files
    real_s: tuple[float, float] = (0.0, 0.0)  # how much of the picture and of the sound the files hold


def length_of(request: Request, task: str) -> float | None:
    """Seconds of what the task is given whole, which is how long its clip is unless told otherwise."""
    path = request.video or request.audio
    if path is None or task == "extend":
        return None
    info = probe(path)
    stream = info.video if request.video is not None else info.audio
    if stream is None:
        raise MediaError(f"{path}: has no {'picture' if request.video is not None else 'sound'}")
    if not info.duration_s > 0:
        raise MediaError(f"{path}: is 0 s long, there is nothing to go by")
    return info.end_of(stream)


def read_given(request: Request, task: str, form: Form, sound: AudioGeometry, edit: Edit) -> GivenMedia:
    """The request's files as frames and samples of the clip's form, and the task made exact."""
    request.check(task)
    if task in ("interpolate", "inpaint"):
        try:
            edit.check(form.duration_s)
        except ValueError as error:  # of a file of prompts, the row's own: its video may be shorter than others
            raise MediaError(f"{request.video}: {error}") from error
    frames = wave = None
    notes: list[str] = []
    real = [0.0, 0.0]
    if request.image is not None:
        frames = np.repeat(fitted(read_image(request.image), form, request.image, notes)[None], form.frames, axis=0)
    if request.video is not None:
        frames, real[0] = read_picture(request.video, form, notes, goes_on=task == "extend")
    source = request.audio or (request.video if task in ("extend", "inpaint") else None)
    if source is not None and (request.audio is not None or probe(source).audio is not None):
        wave, real[1] = read_sound(source, form, sound, notes, goes_on=task == "extend")
    exact = NAMED[task] if task in NAMED else made_exact(task, form, edit, frames, wave, real)
    return GivenMedia(exact, frames, wave, tuple(notes), (real[0], real[1]))


def made_exact(
    task: str, form: Form, edit: Edit, frames: np.ndarray | None, wave: np.ndarray | None, real_s: Sequence[float]
) -> Task:
    if task == "extend":
        for what, seconds in zip(("picture", "sound"), real_s, strict=True):
            if seconds >= form.duration_s:
                raise MediaError(
                    f"task=extend: the {what} given is {seconds:g} s long and duration_s={form.duration_s:g} leaves"
                    " nothing to add: ask for more"
                )
        return extend(real_s[0] if frames is not None else None, real_s[1] if wave is not None else None)
    if task == "interpolate":
        return interpolate(edit.key_frames_s or (0.0, form.duration_s))
    if edit.remake == "both" and edit.hole_s is None and edit.box == WHOLE_PICTURE:
        raise ValueError("task=inpaint needs a hole: give edit.hole_s=[from,to], edit.box or edit.remake=video|audio")
    hole = Hole(*(edit.hole_s or (-np.inf, np.inf)), *edit.box)
    if edit.remake in ("video", "both"):
        exact = inpaint(video=[hole], audio=[Hole(hole.start_s, hole.end_s)] if edit.remake == "both" else ())
    else:
        exact = inpaint(audio=[Hole(hole.start_s, hole.end_s)])
    if wave is None:
        return Task("inpaint", exact.video, None if edit.remake == "video" else NOTHING)
    return exact


def read_picture(path: Path, form: Form, notes: list[str], goes_on: bool = False) -> tuple[np.ndarray, float]:
    info = probe(path)
    if info.video is None:
        raise MediaError(f"{path}: has no picture")
    window = read_clip(path, 0, form.duration_s, video=True, audio=False, fps=form.fps, size=(form.height, form.width))
    assert window.clip.video is not None
    real_s, length = end_of(window.video_real) / form.fps, info.end_of(info.video)
    notes.append(
        f"{path}: picture {info.video.width}x{info.video.height} at {float(info.video.fps):.4g} fps,"
        f" {length:.4g} s -> {form.width}x{form.height} at {form.fps:g} fps, {form.duration_s:g} s"
        + _trimmed(length, form, real_s if goes_on else None)
    )
    return window.clip.video, told_s(real_s, length, form)


def read_sound(
    path: Path, form: Form, sound: AudioGeometry, notes: list[str], goes_on: bool = False
) -> tuple[np.ndarray, float]:
    info = probe(path)
    if info.audio is None:
        raise MediaError(f"{path}: has no sound")
    rate = sound.sample_rate_hz
    window = read_clip(
        path, 0, form.duration_s, video=False, audio=True, sample_rate_hz=rate, channels=sound.audio_channels
    )
    assert window.clip.audio is not None
    wave, length = window.clip.audio[:, : form.samples(rate)], info.end_of(info.audio)
    real_s = end_of(window.audio_real) / rate
    notes.append(
        f"{path}: sound at {info.audio.sample_rate_hz} Hz, {length:.4g} s -> {rate} Hz,"
        f" {form.duration_s:g} s{_trimmed(length, form, real_s if goes_on else None)}"
        + ("" if wave.any() else "; it is silent throughout")
    )
    return wave, told_s(real_s, length, form)


def told_s(real_s: float, length_s: float, form: Form) -> float:
    """How long what is given lasts; of what fills the clip no more was read, so there the file is believed."""
    return max(real_s, length_s) if real_s >= form.duration_s else real_s


def end_of(real: Sequence[tuple[int, int]]) -> int:
    """Where what the file really holds ends; what is missing before that counts as given, held or silent."""
    return max((last for _, last in real), default=0)


def _trimmed(length_s: float, form: Form, goes_on_s: float | None) -> str:
    if length_s > form.duration_s + 0.5 / form.fps:
        return f"; the last {length_s - form.duration_s:.3g} s are left out"
    if goes_on_s is not None:
        return f"; given until {goes_on_s:.4g} s, the rest is made"
    if length_s < form.duration_s - 0.5 / form.fps:
        return f"; {form.duration_s - length_s:.3g} s are added (picture held, sound silent)"
    return ""


def fitted(image: np.ndarray, form: Form, path: Path, notes: list[str]) -> np.ndarray:
    """Scaled and cropped to fill the clip's size."""
    from PIL import Image, ImageOps

    height, width = image.shape[:2]
    if (height, width) == (form.height, form.width):
        return image
    notes.append(f"{path}: image {width}x{height} -> {form.width}x{form.height}, cropped to fill")
    return np.asarray(ImageOps.fit(Image.fromarray(image), (form.width, form.height), Image.Resampling.LANCZOS))


def whole(task: Task) -> tuple[bool, bool]:
    """Whether the task is given all of the picture, all of the sound."""
    return task.video == EVERYTHING, task.audio == EVERYTHING


def read_requests(path: Path, defaults: Request) -> list[Request]:
    """Requests of a txt, csv or jsonl file (columns: COLUMNS); paths in it are relative to it."""
    if not path.is_file():
        raise ValueError(f"prompts={path}: no such file")
    text = prompts_text(path)
    kind = path.suffix.lower()
    if kind == ".txt":
        rows: list[dict[str, Any]] = [{"prompt": line.strip()} for line in text.split("\n") if line.strip()]
    elif kind == ".csv":
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    elif kind == ".jsonl":
        rows = [_json_row(path, i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    else:
        raise ValueError(f"prompts={path} must be a .txt (one prompt a line), .csv or .jsonl file")
    if not rows:
        raise ValueError(f"prompts={path} holds no prompt")
    requests = [_request(path, i, row, defaults) for i, row in enumerate(rows, 1)]
    times = Counter(request.id for request in requests)
    twice = sorted(name for name, count in times.items() if name and count > 1)
    if twice:
        raise ValueError(f"prompts={path}: the id {twice[0]!r} stands for several rows; make ids differ")
    return requests


def _json_row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"prompts={path}, line {number}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f'prompts={path}, line {number}: a mapping is needed, such as {{"prompt": ...}}')
    return row


def _request(path: Path, number: int, row: dict[str, Any], defaults: Request) -> Request:
    if None in row:
        raise ValueError(f"prompts={path}, row {number}: has more cells than the header; put quotes around commas")
    unknown = [str(name) for name in row if name not in COLUMNS]
    if unknown:
        raise ValueError(f"prompts={path}, row {number}: no column {unknown[0]!r}; known: {', '.join(COLUMNS)}")
    values: dict[str, Any] = {f.name: getattr(defaults, f.name) for f in fields(Request)}
    for name, value in row.items():
        if value in (None, ""):
            continue
        if name in FILE_KINDS:
            values[name] = path.parent / str(value)
        elif name == "seed":
            try:
                values[name] = int(value)
                whole = not isinstance(value, bool) and (isinstance(value, str) or values[name] == value)
            except (TypeError, ValueError, OverflowError):
                whole = False
            if not whole:
                raise ValueError(f"prompts={path}, row {number}: seed={value!r} is not a whole number")
        else:
            values[name] = str(value)
    if set(values["id"]) & set("/\\\0") or values["id"].startswith("."):
        raise ValueError(
            f"prompts={path}, row {number}: id={values['id']!r} is to be a file name, without / or a first ."
        )
    if (odd := not_text(values["prompt"])) is not None:
        raise ValueError(f"prompts={path}, row {number}: {odd}")
    return Request(**values)


def not_text(prompt: str) -> str | None:
    """What to say of half a character: JSON and command lines can hold one, files and encoders cannot."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        return f"prompt={prompt[:40]!r} has half a character at place {error.start}: write it whole, or leave it out"
    return None
