"""Tasks as data: a task says which tokens of each stream are given, and nothing else.

A given token has noise level 0 and loss weight 0; a stream a task does without is absent. Training draws a
task per sample and sampling applies the same functions, so T2AV, I2AV, V2A, A2V and their relatives are
one code path with different masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from avgen.types import Batch, Stream

FOREVER = (-torch.inf, torch.inf)

# Seconds, and fractions of the picture: float rounding of a late start must not move a token over a boundary.
# Far below a sample (21 us at 48 kHz), far above the rounding of float64 seconds.
SLACK = 1e-6


@dataclass(frozen=True)
class Hole:
    """A part of a stream to be made anew: a time span and, for video, a box in fractions of the picture."""

    start_s: float = -torch.inf
    end_s: float = torch.inf
    top: float = 0.0
    left: float = 0.0
    bottom: float = 1.0
    right: float = 1.0

    def __post_init__(self) -> None:
        if not self.start_s < self.end_s:
            raise ValueError(f"a hole from {self.start_s} s to {self.end_s} s is empty: the end must be later")
        if not (0 <= self.top < self.bottom <= 1 and 0 <= self.left < self.right <= 1):
            box = (self.top, self.left, self.bottom, self.right)
            raise ValueError(f"the hole's box (top, left, bottom, right) = {box} must be ordered and within [0, 1]")


@dataclass(frozen=True)
class Given:
    """Which tokens of a stream are handed to the model clean. Times are seconds from the clip's start.

    A token is given when its interval lies in one of the spans or holds one of the instants, and it
    touches no hole. An instant beyond the stream counts as the nearest moment within it, so that a first
    frame is a first frame whatever the codec's priming.
    """

    spans_s: tuple[tuple[float, float], ...] = ()
    instants_s: tuple[float, ...] = ()
    holes: tuple[Hole, ...] = ()

    def __post_init__(self) -> None:
        for start, end in self.spans_s:
            if not start < end:
                raise ValueError(f"a given span from {start} s to {end} s is empty: the end must be later")


NOTHING = Given()
EVERYTHING = Given(spans_s=(FOREVER,))
FIRST_FRAME = Given(instants_s=(0.0,))


@dataclass(frozen=True)
class Task:
    """What is given of each stream; None where the task has no such stream."""

    name: str
    video: Given | None
    audio: Given | None

    def __post_init__(self) -> None:
        if self.video in (None, EVERYTHING) and self.audio in (None, EVERYTHING):
            raise ValueError(f"task {self.name!r} leaves nothing to generate")


T2AV = Task("t2av", NOTHING, NOTHING)
I2AV = Task("i2av", FIRST_FRAME, NOTHING)
V2A = Task("v2a", EVERYTHING, NOTHING)
A2V = Task("a2v", NOTHING, EVERYTHING)
AI2V = Task("ai2v", FIRST_FRAME, EVERYTHING)
T2V = Task("t2v", NOTHING, None)
I2V = Task("i2v", FIRST_FRAME, None)
T2A = Task("t2a", None, NOTHING)


def extend(video_s: float | None, audio_s: float | None) -> Task:
    """Go on from a prefix of either stream or both; None gives nothing of that stream."""
    if video_s is None and audio_s is None:
        raise ValueError("extend needs a prefix: give video_s, audio_s or both")

    for name, seconds in (("video_s", video_s), ("audio_s", audio_s)):
        if seconds is not None and not seconds > 0:
            raise ValueError(f"extend's {name}={seconds} must be positive: it is the length of the given prefix")

    def prefix(seconds: float | None) -> Given:
        return NOTHING if seconds is None else Given(spans_s=((-torch.inf, seconds),))

    return Task("extend", prefix(video_s), prefix(audio_s))


def interpolate(key_frames_s: Sequence[float]) -> Task:
    """Fill in between key frames, with sound."""
    if not key_frames_s:
        raise ValueError("interpolate needs key frames: give at least one instant in seconds")
    return Task("interpolate", Given(instants_s=tuple(key_frames_s)), NOTHING)


def inpaint(video: Sequence[Hole] = (), audio: Sequence[Hole] = ()) -> Task:
    """Make the holes anew; everything else is given."""
    if not video and not audio:
        raise ValueError("inpaint needs a hole in the video, the audio or both")
    return Task("inpaint", replace(EVERYTHING, holes=tuple(video)), replace(EVERYTHING, holes=tuple(audio)))


NAMED: dict[str, Task] = {t.name: t for t in (T2AV, I2AV, V2A, A2V, AI2V, T2V, I2V, T2A)}
PARAMETRIC: dict[str, Callable[..., Task]] = {"extend": extend, "interpolate": interpolate, "inpaint": inpaint}
TRAINABLE = (*NAMED, "extend")
HEAD = (0.1, 0.9)  # shares of a clip between which the heads that training extends are drawn
SHOWN_HEAD = 0.25  # the share where clips must compare: what windows hand on


def in_training(name: str, head_s: float) -> Task:
    """The task as training's mix knows it: `extend` goes on from a head of both streams, `head_s` long."""
    return extend(head_s, head_s) if name == "extend" else NAMED[name]


def given_mask(given: Given, stream: Stream, origin_s: Tensor) -> Tensor:
    """(B, N) bool: the stream's tokens that `given` hands over, with clips starting at origin_s (B,)."""
    time = stream.time - origin_s[:, None, None]  # (B, N, 2)
    real = stream.mask()
    start, end = time.unbind(-1)
    taken = torch.zeros_like(real)
    for span_start, span_end in given.spans_s:
        taken |= (start >= span_start - SLACK) & (end <= span_end + SLACK)
    if given.instants_s:
        first = start.masked_fill(~real, torch.inf).amin(1, keepdim=True)
        last = start.masked_fill(~real, -torch.inf).amax(1, keepdim=True)
        for instant in given.instants_s:
            # clamp to the last token's start, not its end: that moment lies inside the token
            moment = torch.full_like(first, instant).clamp(first, torch.maximum(first, last)) + SLACK
            taken |= (start <= moment) & (moment < end)
    for hole in given.holes:
        taken &= ~_touches(hole, stream, start, end)
    return taken & real


def _touches(hole: Hole, stream: Stream, start: Tensor, end: Tensor) -> Tensor:
    touches = (start < hole.end_s - SLACK) & (end > hole.start_s + SLACK)
    if stream.place is None or stream.extent is None:
        return touches
    low = stream.place / stream.extent[:, None]
    high = (stream.place + 1) / stream.extent[:, None]
    top_left = low.new_tensor([hole.top, hole.left])
    bottom_right = low.new_tensor([hole.bottom, hole.right])
    return touches & ((low < bottom_right - SLACK) & (high > top_left + SLACK)).all(-1)


def origins(batch: Batch) -> Tensor:
    """(B,) float64: when each sample's clip starts; +-inf for a sample without tokens.

    Both streams of a clip start together, but a codec's priming moves its first token earlier, so the
    later of the two first tokens tells the start better. What the file lacks of a window is masked and counts: a
    sound that begins late does not make the clip begin late.
    """
    starts = []
    for stream in (batch.video, batch.audio):
        if stream is not None:
            first = stream.time[:, 0, 0]  # tokens lie in the order of their times, padding behind them
            starts.append(first.masked_fill(~stream.present, -torch.inf))
    return torch.stack(starts).amax(0)


def lengths(batch: Batch) -> Tensor:
    """(B,) float64: seconds from each clip's start to the end of its last token; nan for a sample without tokens."""
    ends = [
        stream.time[..., 1].masked_fill(~stream.mask(), -torch.inf).amax(1)
        for stream in (batch.video, batch.audio)
        if stream is not None
    ]
    return torch.stack(ends).amax(0) - origins(batch)


def shown(names: Sequence[str], batch: Batch) -> list[Task]:
    """One task per clip for what is to compare between steps and runs: `extend` always has the same head."""
    lengths_s = (SHOWN_HEAD * lengths(batch).cpu()).nan_to_num(SLACK).tolist()
    return [in_training(name, head_s) for name, head_s in zip(names, lengths_s, strict=True)]


def assign(batch: Batch, tasks: Sequence[Task]) -> Batch:
    """The batch with one task per sample: given tokens at level 0 and weight 0, unwanted streams absent.

    Levels of the other tokens stay as they are. A sample that lacks a modality keeps lacking it. Who is given the first
    frame is given what an image file says of it, where the batch knows: nothing of how it moves.
    """
    if len(tasks) != batch.size:
        raise ValueError(f"{len(tasks)} tasks for a batch of {batch.size}: one per sample is needed")
    origin = origins(batch)
    video = _assign(batch.video, [t.video for t in tasks], origin, batch.still)
    audio = _assign(batch.audio, [t.audio for t in tasks], origin)
    if video is None and audio is None:
        names = ", ".join(dict.fromkeys(t.name for t in tasks))
        raise ValueError(f"task {names} leaves nothing of this batch: it does without the only streams the clips have")
    return replace(batch, video=video, audio=audio, still=None)


def possible(task: Task, batch: Batch) -> Tensor:
    """(B,) bool: the clips that have something for the task to generate, and everything that it is given."""
    wanted, had = [], []
    for given, stream in ((task.video, batch.video), (task.audio, batch.audio)):
        present = torch.zeros(batch.size, dtype=torch.bool) if stream is None else stream.present.cpu()
        if given not in (None, EVERYTHING):
            wanted.append(present)
        if given not in (None, NOTHING):
            had.append(present)
    found = torch.stack(wanted).any(0)
    return found & torch.stack(had).all(0) if had else found


def fitting(name: str, batch: Batch) -> Tensor:
    """(B,) bool: the clips that training's task of this name can use; how long a head is makes no difference."""
    return possible(in_training(name, head_s=1.0), batch)


def _assign(
    stream: Stream | None, givens: Sequence[Given | None], origin: Tensor, still: Tensor | None = None
) -> Stream | None:
    if stream is None or all(given is None for given in givens):
        return None
    taken = torch.zeros(stream.x.shape[:2], dtype=torch.bool, device=stream.x.device)
    for given in dict.fromkeys(g for g in givens if g is not None):
        rows = torch.tensor([g == given for g in givens], device=taken.device)
        mine = given_mask(given, stream, origin) & rows[:, None]
        if given == FIRST_FRAME and still is not None:
            held = F.pad(still, (0, 0, 0, stream.x.shape[1] - still.shape[1]))
            stream = replace(stream, x=torch.where(mine[..., None], held, stream.x))
        taken |= mine
    if any(given not in (None, NOTHING) for given in givens):
        stream = stream.give(taken)
    if all(given is not None for given in givens):
        return stream
    kept = torch.tensor([given is not None for given in givens], device=taken.device)
    valid = stream.mask() & kept[:, None]
    return replace(stream, weight=stream.weight.masked_fill(~valid, 0.0), valid=valid)
