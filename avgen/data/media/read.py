"""Any window of a clip as frames and samples, chosen by timestamps.

Picture and sound are read in two passes over one file, each seeking for itself: where one stream's
packets lie says nothing sure about the other's.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import numpy as np

from avgen.data.media.frames import Instants, read_frames
from avgen.data.media.picture import Chroma, Fit, Renderer
from avgen.data.media.samples import read_all_samples, read_samples
from avgen.data.media.source import (
    Counter,
    MediaError,
    Source,
    Span,
    average_fps,
    exact_fps,
    exact_seconds,
    open_source,
)
from avgen.types import Clip


@dataclass(frozen=True)
class Cost:
    """What a read took: so that streaming can be proven rather than timed."""

    packets: int
    frames_decoded: int


@dataclass(frozen=True)
class Window:
    """A clip of exactly the length asked for, and which part of it the file really holds.

    Outside `video_real` the nearest frame is held, outside `audio_real` there is silence: mask both in training.
    """

    clip: Clip
    video_real: tuple[Span, ...]  # [first, last) frames
    audio_real: tuple[Span, ...]  # [first, last) samples
    cost: Cost

    @property
    def complete(self) -> bool:
        video, audio = self.clip.video, self.clip.audio
        return (video is None or self.video_real == ((0, len(video)),)) and (
            audio is None or self.audio_real == ((0, audio.shape[-1]),)
        )

    def frame_mask(self) -> np.ndarray:
        """(T,) bool: frames that the file really shows."""
        return _mask(self.video_real, 0 if self.clip.video is None else len(self.clip.video))

    def sample_mask(self) -> np.ndarray:
        """(S,) bool: samples that the file really holds."""
        return _mask(self.audio_real, 0 if self.clip.audio is None else self.clip.audio.shape[-1])


def unit_count(start_s: float | Fraction, end_s: float | Fraction, rate: float | Fraction) -> int:
    """Frames or samples in a window: those whose middle lies inside, when the first starts with the window."""
    return floor((exact_seconds(end_s) - exact_seconds(start_s)) * Fraction(rate) + Fraction(1, 2))


def read_clip(
    path: str | Path,
    start_s: float | Fraction = 0.0,
    end_s: float | Fraction | None = None,
    *,
    video: bool | None = None,
    audio: bool | None = None,
    fps: float | Fraction | None = None,
    size: tuple[int, int] | None = None,
    fit: Fit = "cover",
    chroma: Chroma = "full",
    sample_rate_hz: int | None = None,
    channels: int | None = None,
    threads: int = 0,
    may_be_empty: bool = False,
) -> Window:
    """The window [start_s, end_s) on the file's presentation clock.

    `video` and `audio` may be True (the file must have it), False (leave it out) or None (if it is there).
    Rate, size (height, width) and channels default to the file's own. Frame i is the one on screen in the middle
    of output interval i; samples are taken at their timestamps. A window that holds nothing is an error
    unless it `may_be_empty`.
    Frames of full chroma lie in memory colour by colour: np.ascontiguousarray where pixels must be packed.
    """
    with open_source(path, threads) as source:
        has_video = _wanted(source, "picture", video, source.video)
        has_audio = _wanted(source, "sound", audio, source.audio)
        if not (has_video or has_audio):
            raise source.error("has neither picture nor sound that was asked for")
        start = exact_seconds(start_s)
        end = _file_end(source) if end_s is None else exact_seconds(end_s)
        if not start < end:
            raise ValueError(f"the window [{start_s}, {end_s}) s of {path} is empty: the end must be later")
        counter = Counter()
        frames: np.ndarray | None = None
        rate: Fraction | None = None
        video_real: tuple[Span, ...] = ()
        if has_video:
            rate = average_fps(source.video) if fps is None else exact_fps(fps)
            count = _at_least_one(unit_count(start, end, rate), "frame", rate, end - start)
            frames, video_real = read_frames(source, counter, Instants(start, rate, count), Renderer(size, fit, chroma))
        wave: np.ndarray | None = None
        audio_real: tuple[Span, ...] = ()
        if has_audio:
            sample_rate_hz = source.sample_rate_hz if sample_rate_hz is None else sample_rate_hz
            count = _at_least_one(unit_count(start, end, sample_rate_hz), "sample", sample_rate_hz, end - start)
            wave, audio_real = read_samples(source, counter, start, sample_rate_hz, count, channels)
        if not (video_real or audio_real or may_be_empty):
            raise source.error(_outside(source, start, end))
        clip = Clip(
            frames,
            wave,
            None if rate is None else float(rate),
            sample_rate_hz if has_audio else None,
            start_s=float(start),
        )
        return Window(clip, video_real, audio_real, Cost(counter.packets, counter.frames))


def read_audio(path: str | Path, *, sample_rate_hz: int | None = None, channels: int | None = None) -> Clip:
    """All the sound of any audio or video file, from its first sample to its last."""
    with open_source(path) as source:
        if source.audio is None:
            raise source.error("has no sound")
        rate = source.sample_rate_hz if sample_rate_hz is None else sample_rate_hz
        wave, start = read_all_samples(source, rate, channels)
        return Clip(None, wave, None, rate, start_s=float(start))


def read_image(path: str | Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file, turned as its EXIF tag says; transparency falls on black."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if path.is_dir():
        raise MediaError(f"{path}: is a directory, not an image")
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16") or (upright.mode, image.format) == (
                "I",
                "PPM",
            ):  # PIL scales PGM's to 16
                return _from_16_bits(np.asarray(upright), upright.info.get("transparency"))
            if upright.mode in ("I", "F"):
                raise MediaError(
                    f"{path}: is an image of mode {upright.mode} (one number of 32 bits a pixel), of which nothing says"
                    " what is white: save it with 8 or 16 bits"
                )
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, (0, 0, 0, 255)), upright)
            return np.asarray(upright.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(f"{path}: cannot be read as an image: {error}") from error


def _from_16_bits(grey: np.ndarray, transparent: int | None) -> np.ndarray:
    """(H, W) to RGB: 65535 is white. PIL's own conversion clips at 255, which leaves all but the darkest white."""
    if transparent is not None:
        grey = np.where(grey == transparent, 0, grey)
    eight = ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(eight[..., None], 3, axis=-1)


def _wanted(source: Source, what: str, asked: bool | None, stream: Any) -> bool:
    if asked and stream is None:
        raise source.error(f"has no {what}")
    return stream is not None and asked is not False


def _at_least_one(count: int, unit: str, rate: Any, duration: Fraction) -> int:
    if count < 1:
        raise ValueError(
            f"a window of {float(duration)} s is shorter than one {unit} at {float(rate)} Hz: ask for more"
        )
    return count


def _file_end(source: Source) -> Fraction:
    end = source.container_end()
    if end is None:
        raise source.error("does not say how long it is: give end_s")
    return end


def _outside(source: Source, start: Fraction, end: Fraction) -> str:
    parts = []
    for what, stream in (("picture", source.video), ("sound", source.audio)):
        if stream is not None:
            last = source.claimed_end(stream) or source.container_end()
            until = "an unknown end" if last is None else f"{float(last):.3f} s"
            parts.append(f"{what} from {float(source.start(stream)):.3f} s to {until}")
    return f"the window [{float(start):.3f}, {float(end):.3f}) s holds nothing: the file has {' and '.join(parts)}"


def _mask(spans: tuple[Span, ...], count: int) -> np.ndarray:
    mask = np.zeros(count, bool)
    for first, last in spans:
        mask[first:last] = True
    return mask
