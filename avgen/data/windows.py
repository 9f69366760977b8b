"""Which windows of a clip are prepared, in which shapes: a rule in seconds, of the clip alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, log
from typing import Literal

from avgen.data.buckets import Shape
from avgen.data.media import MediaInfo
from avgen.data.media.source import exact_fps, exact_seconds


@dataclass(frozen=True)
class WindowShape:
    """One form of windows."""

    height: int  # pixels
    width: int  # pixels
    fps: float  # frames per second; 23.976 and 29.97 mean 24000/1001 and 30000/1001
    duration_s: float

    def __post_init__(self) -> None:
        for name in ("height", "width", "fps", "duration_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")


@dataclass(frozen=True)
class WindowRule:
    """How clips are cut."""

    shapes: tuple[WindowShape, ...]  # [{height: 256, width: 448, fps: 16, duration_s: 5}, ...]
    # nearest: each clip in the picture size nearest to its aspect and the longest duration it has; all: in every shape
    choose: Literal["nearest", "all"] = "nearest"
    every_s: float | None = None  # from one window's start to the next one's; null: its duration, side by side
    most: int = 4  # windows per clip and shape, spread evenly where more would fit
    most_upscale: float = 1.5  # pictures that would have to be enlarged more do not go into a shape

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ValueError("shapes is empty: name one, such as {height: 256, width: 448, fps: 16, duration_s: 5}")
        if self.every_s is not None and not self.every_s > 0:
            raise ValueError(f"every_s={self.every_s} must be positive")
        if self.most < 1 or not self.most_upscale > 0:
            raise ValueError(f"most={self.most} must be at least 1, and most_upscale={self.most_upscale} positive")

    @property
    def buckets(self) -> tuple[Shape, ...]:
        """Of the store: per shape with both streams, with the picture alone, with the sound alone."""
        found = []
        for shape in self.shapes:
            fps = float(exact_fps(shape.fps))
            for audio in (True, False):
                found.append(Shape(shape.height, shape.width, fps, shape.duration_s, audio))
            found.append(Shape(None, None, None, shape.duration_s))
        return tuple(found)

    def cuts(
        self, info: MediaInfo, sound: MediaInfo, start_s: float, end_s: float | None, video: bool, audio: bool
    ) -> list[Cut]:
        """The windows of a clip; `sound` is the file its sound is in, `video` and `audio` say what is wanted."""
        has_video = video and info.video is not None
        has_audio = audio and sound.audio is not None
        if not has_video and has_audio:
            info = sound
        begins, ends = span_s(info, has_video, has_audio and info is sound)
        first = max(exact_seconds(start_s), exact_seconds(begins))
        last = exact_seconds(ends) if end_s is None else min(exact_seconds(end_s), exact_seconds(ends))
        long_enough = [first + exact_seconds(shape.duration_s) <= last + slack(shape) for shape in self.shapes]
        fitting = [i for i, fits in enumerate(long_enough) if fits]
        if has_video:
            assert info.video is not None
            height, width = info.video.height, info.video.width
            fitting = [i for i in fitting if upscale(self.shapes[i], height, width) <= self.most_upscale]
            if self.choose == "nearest":
                fitting = nearest(self.shapes, fitting, height, width)
        elif has_audio:  # shapes of one duration are one shape of sound
            lengths = {self.shapes[i].duration_s: i for i in reversed(fitting)}
            fitting = sorted(lengths.values())
            if self.choose == "nearest":
                fitting = [lengths[max(lengths)]] if lengths else []
        else:
            fitting = []
        kind = (0 if has_audio else 1) if has_video else 2
        found = []
        for i in fitting:
            shape = self.shapes[i]
            for start in self.starts(shape, first, last):
                whole = start == first and start + exact_seconds(shape.duration_s) >= last - slack(shape)
                found.append(Cut(3 * i + kind, start, whole))
        return found

    def starts(self, shape: WindowShape, first: Fraction, last: Fraction) -> list[Fraction]:
        """When the windows of one shape begin."""
        every = exact_seconds(shape.duration_s if self.every_s is None else self.every_s)
        count = 1 + floor((last + slack(shape) - first - exact_seconds(shape.duration_s)) / every)
        if count > self.most:
            places = [0] if self.most == 1 else [k * (count - 1) // (self.most - 1) for k in range(self.most)]
            return [first + place * every for place in places]
        return [first + k * every for k in range(count)]


@dataclass(frozen=True)
class Cut:
    """One window to prepare."""

    bucket: int
    start: Fraction  # seconds on the file's clock
    whole: bool = False  # it is all of the clip, but for what headers round


def span_s(info: MediaInfo, video: bool, audio: bool) -> tuple[float, float]:
    """Of the streams that are wanted: one that is not may begin earlier and go on longer."""
    wanted = [stream for stream, want in ((info.video, video), (info.audio, audio)) if want and stream is not None]
    if not wanted or any(stream.duration_s is None for stream in wanted):
        return info.start_s, info.end_s
    return min(stream.start_s for stream in wanted), max(map(info.end_of, wanted))


def slack(shape: WindowShape) -> Fraction:
    """What a clip may lack of a window: half a frame, since headers round."""
    return 1 / exact_fps(shape.fps) / 2


def upscale(shape: WindowShape, height: int, width: int) -> float:
    """How much a picture is enlarged to cover the shape."""
    return max(shape.height / height, shape.width / width)


def nearest(shapes: Sequence[WindowShape], among: Sequence[int], height: int, width: int) -> list[int]:
    """The shape of the nearest aspect; of those the largest picture, then the longest, then the first."""
    if not among:
        return []

    def rank(i: int) -> tuple[float, int, float]:
        shape = shapes[i]
        apart = abs(log(shape.height / shape.width) - log(height / width))
        return round(apart, 6), -shape.height * shape.width, -shape.duration_s

    return [min(among, key=rank)]
