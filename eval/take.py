"""A made clip as metrics see it: decoded once, and everything derived from it computed once.

Picture and sound are kept apart, so that a null (this picture with another sound) shares all that was derived from
the picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from avgen.data.media import MediaError, MediaInfo, Window, probe, read_clip
from avgen.types import Clip
from eval.record import Prompt

T = TypeVar("T")
S = TypeVar("S", bound="_Derived")


class NotApplicable(Exception):
    """The metric has no meaning here: no speech to judge, no event to time. Not counted against coverage."""


class Skipped(Exception):
    """The metric was not run: its weights, package or licence are missing."""


class MediaMissing(Exception):
    """There is no clip, or it cannot be read."""


@dataclass
class Clock:
    """Seconds of processor time by what they went into; what is derived inside something else is not counted twice."""

    spent_s: dict[str, float] = field(default_factory=dict)
    _open: list[float] = field(default_factory=list)  # seconds spent inside, per enclosing block

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        began = time.process_time()
        self._open.append(0.0)
        try:
            yield
        finally:
            whole, inside = time.process_time() - began, self._open.pop()
            self.spent_s[name] = self.spent_s.get(name, 0.0) + whole - inside
            if self._open:
                self._open[-1] += whole


class _Derived:
    """Keeps what functions make of it. An error is kept too: each metric that needs the feature reports it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._kept: dict[Any, tuple[Any, Exception | None]] = {}

    def once(self: S, feature: Callable[[S], T]) -> T:
        """feature(self), computed on the first call. Give a named function: it is the key."""
        if feature not in self._kept:
            with self.clock.timing(f"feature:{getattr(feature, '__name__', repr(feature)).strip('_')}"):
                try:
                    self._kept[feature] = feature(self), None
                except Exception as raised:
                    self._kept[feature] = None, raised
        value, error = self._kept[feature]
        if error is not None:
            raise error
        return value


class Picture(_Derived):
    """(T, H, W, 3) uint8 frames; frame i is on screen during [i / fps, (i + 1) / fps)."""

    def __init__(self, frames: np.ndarray, fps: float, clock: Clock | None = None) -> None:
        super().__init__(clock or Clock())
        self.frames, self.fps = frames, fps

    @property
    def duration_s(self) -> float:
        return len(self.frames) / self.fps


class Sound(_Derived):
    """(channels, S) float32 wave in [-1, 1]; sample j sounds at j / rate_hz."""

    def __init__(self, wave: np.ndarray, rate_hz: int, clock: Clock | None = None) -> None:
        super().__init__(clock or Clock())
        self.wave, self.rate_hz = wave, rate_hz

    @property
    def duration_s(self) -> float:
        return self.wave.shape[-1] / self.rate_hz


class Take(_Derived):
    """One clip made for one prompt."""

    def __init__(
        self,
        prompt: Prompt,
        path: Path | None = None,
        seed: int = 0,
        clip: Clip | None = None,
        reference: Clip | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`clip` in place of a file, or `reference` in place of prompt.reference: media that were never written."""
        super().__init__(clock or Clock())
        self.prompt, self.path, self.seed = prompt, path, seed
        self._clip, self._reference = clip, reference

    @classmethod
    def of(cls, clip: Clip, prompt: Prompt | None = None, reference: Clip | None = None) -> Self:
        return cls(prompt or Prompt("", ""), clip=clip, reference=reference)

    @property
    def clip(self) -> Clip:
        """The whole clip at its own size and rates."""
        return self.once(_decoded)

    @property
    def info(self) -> MediaInfo:
        """What the file says of itself."""
        return self.once(_probed)

    @property
    def picture(self) -> Picture:
        return self.once(_picture)

    @property
    def sound(self) -> Sound:
        return self.once(_sound)

    @property
    def reference(self) -> Take:
        """The real clip of this prompt."""
        return self.once(_reference)

    def with_sound(self, sound: Sound) -> Take:
        """This picture with another sound; all that was derived from the picture stays."""
        clip = replace(self.clip, audio=sound.wave, sample_rate_hz=sound.rate_hz)
        other = Take(self.prompt, self.path, self.seed, clip, self._reference, self.clock)
        other._kept = {f: kept for f, kept in self._kept.items() if f in (_probed, _picture, _reference)}
        other._kept[_sound] = sound, None
        return other


def _decoded(take: Take) -> Clip:
    if take._clip is not None:
        return take._clip
    if take.path is None:
        raise MediaMissing(f"no clip of prompt {take.prompt.id!r}")
    try:
        return ended(read_clip(take.path, threads=1))
    except MediaError as error:
        raise MediaMissing(str(error)) from error


def ended(window: Window) -> Clip:
    """Without what reading adds behind the end of the shorter stream, held frames or silence: nobody made it. The front
    stays, so that both keep their clock."""
    clip = window.clip
    if clip.video is not None:
        seen = clip.video[: window.video_real[-1][1]] if window.video_real else None
        clip = replace(clip, video=seen, fps=None if seen is None else clip.fps)
    if clip.audio is not None:
        heard = clip.audio[:, : window.audio_real[-1][1]] if window.audio_real else None
        clip = replace(clip, audio=heard, sample_rate_hz=None if heard is None else clip.sample_rate_hz)
    return clip


def _probed(take: Take) -> MediaInfo:
    if take.path is None and take._clip is not None:
        raise NotApplicable("the clip was never a file")
    if take.path is None:
        raise MediaMissing(f"no clip of prompt {take.prompt.id!r}")
    try:
        return probe(take.path)
    except MediaError as error:
        raise MediaMissing(str(error)) from error


def _picture(take: Take) -> Picture:
    clip = take.clip
    if clip.video is None or clip.fps is None:
        raise NotApplicable("the clip has no picture")
    return Picture(clip.video, clip.fps, take.clock)


def _sound(take: Take) -> Sound:
    clip = take.clip
    if clip.audio is None or clip.sample_rate_hz is None:
        raise NotApplicable("the clip has no sound")
    return Sound(clip.audio, clip.sample_rate_hz, take.clock)


def _reference(take: Take) -> Take:
    if take._reference is None and take.prompt.reference is None:
        raise NotApplicable("the prompt has no reference clip")
    return Take(take.prompt, take.prompt.reference, clip=take._reference, clock=take.clock)
