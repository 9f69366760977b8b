"""What a clip is like, in numbers: everything is decoded once, nothing is judged.

No threshold stands here, so measurements can be kept while rules change.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np

from avgen.data.media import MediaError
from avgen.data.media.frames import walk_frames
from avgen.data.media.picture import Renderer
from avgen.data.media.samples import read_samples
from avgen.data.media.source import (
    Counter,
    Source,
    average_fps,
    exact_seconds,
    open_source,
    refuse_truncation,
    scanned_end,
)

VERSION = 3  # of these measurements: a change makes kept ones void

STEP = Fraction(1, 10)  # of the profiles, in seconds
CHUNK_S = 60  # of sound at once: an hour of stereo would be 1.4 GB
THUMB = 64  # pixels, either way
BLOCK = 8  # pixels of a thumbnail whose change counts together: a small thing that moves, but no noise
LOOKS, LOOK = 6, 16  # instants and pixels of the picture's fingerprint
HEARINGS = 16  # segments of the sound's fingerprint
BANDS_HZ = tuple(100 * 60 ** (k / 12) for k in range(13))  # 100 to 6000 Hz: what every codec keeps
FLOOR_DB = -50  # below a clip's loudest band: what codecs change at will
FULL_SCALE = 0.99
CLIPPED_RUN = 3  # samples: fewer at full scale are peaks
LEAST_DB = -120


@dataclass(frozen=True)
class Picture:
    """The picture of the window. Profiles have one value per 0.1 s."""

    width: int
    height: int
    fps: float  # average
    codec: str
    start_s: float
    end_s: float
    frames: int
    off_beat: float  # share of frame intervals that differ from the usual one by more than rounding
    motion: tuple[float, ...]  # greatest change of any block against 0.1 s before, 0..255
    brightest: tuple[int, ...]  # 99th percentile of luma, 0..255
    look: str  # fingerprint: base64 of (LOOKS, LOOK, LOOK) uint8


@dataclass(frozen=True)
class Sound:
    """The sound of the window. Profiles have one value per 0.1 s."""

    sample_rate_hz: int
    channels: int
    codec: str
    start_s: float
    end_s: float
    level: tuple[int, ...]  # dBFS, RMS of the louder channel
    peak: float  # greatest sample; lossy codecs may pass 1
    clipped: float  # share of samples in runs at full scale
    side_db: float  # stereo: difference of the channels against their sum
    balance_db: float  # stereo: left against right
    hearing: str  # fingerprint: base64 of (HEARINGS, bands) int8 in dB; empty when silent


@dataclass(frozen=True)
class Measures:
    """One clip. `error` is why it could not be read; then nothing else is known."""

    error: str = ""
    picture: Picture | None = None
    sound: Sound | None = None
    file_end_s: float = 0.0
    tie: float | None = None  # how much more motion and onsets agree in time than by chance, in deviations


def measure(path: Path, start_s: float, end_s: float | None, audio_path: Path | None = None) -> Measures:
    """Decodes the window; whatever the media layer refuses is in `error`."""
    try:
        with open_source(path, threads=1) as source:
            start = exact_seconds(start_s)
            file_end = source.container_end()
            end = exact_seconds(end_s) if end_s is not None else None
            picture = None if source.video is None else _picture(source, start, end)
            sound, onsets = (None, None) if source.audio is None or audio_path else _sound(source, start, end)
        if audio_path is not None:
            with open_source(audio_path, threads=1) as other:
                if other.audio is None:
                    raise other.error("has no sound")
                sound, onsets = _sound(other, start, end)
        if picture is None and sound is None:
            raise MediaError(f"{path}: the window holds nothing: the file ends at {float(file_end or 0):.3f} s")
        ends = [part.end_s for part in (picture, sound) if part is not None]
        return Measures(
            picture=picture,
            sound=sound,
            file_end_s=float(file_end) if file_end is not None else max(ends),
            tie=None if picture is None or onsets is None else _tie(picture, onsets),
        )
    except (MediaError, MemoryError, OSError) as error:
        return Measures(error=str(error) or "too large for memory")


def _picture(source: Source, start: Fraction, end: Fraction | None) -> Picture | None:
    renderer = Renderer((THUMB, THUMB), "stretch", "fast")
    times: list[Fraction] = []
    profile = _Profile()
    size, current, until = (0, 0), None, start

    def look(before: Fraction) -> None:
        """The profile's instants up to `before`, while the current frame is on screen."""
        count = ceil((before - max(start, times[0])) / STEP) - len(profile.motion)
        if count > 0:
            profile.add(_luma(renderer, source, current), count)

    for at, lasts, frame in walk_frames(source, Counter(), start, end):
        if current is None:
            size = Renderer(None).size_of(frame, source.video.sample_aspect_ratio)
        else:
            look(at)
        current, until = frame, at + lasts
        times.append(at)
    if current is None:
        claimed = source.claimed_end(source.video)
        if claimed is not None and start >= claimed:
            return None
        raise source.error("holds a video stream from which no frame can be decoded")
    refuse_truncation(source, source.video, until, Fraction(10**9) if end is None else end)
    until = until if end is None else min(until, end)
    look(until)
    if not profile.motion:  # a still: one frame without a length
        profile.add(_luma(renderer, source, current), 1)
    return Picture(
        width=size[1],
        height=size[0],
        fps=float(average_fps(source.video)),
        codec=source.video.codec_context.name,
        start_s=float(max(start, times[0])),
        end_s=float(until),
        frames=len(times),
        off_beat=_off_beat(times, source.video.time_base),
        motion=tuple(profile.motion),
        brightest=tuple(profile.brightest),
        look=profile.look(),
    )


class _Profile:
    """What the picture is like per 0.1 s. The thumbnails themselves would take half a gigabyte an hour."""

    def __init__(self) -> None:
        self.motion: list[float] = []
        self.brightest: list[int] = []
        self.looks: list[bytes] = []  # each (LOOK, LOOK) uint8
        self.last: np.ndarray | None = None

    def add(self, thumb: np.ndarray, count: int) -> None:
        """A thumbnail (THUMB, THUMB) that is on screen for `count` instants."""
        change = np.zeros_like(thumb) if self.last is None else np.abs(thumb - self.last)
        self.motion += [round(float(_means(change, BLOCK).max()), 2), *[0.0] * (count - 1)]
        self.brightest += [int(np.percentile(thumb, 99))] * count
        small = np.clip(np.rint(_means(thumb, THUMB // LOOK)), 0, 255).astype(np.uint8)
        self.looks += [small.tobytes()] * count
        self.last = thumb

    def look(self) -> str:
        at = ((np.arange(LOOKS) + 0.5) * len(self.looks) / LOOKS).astype(int)
        return base64.b64encode(b"".join(self.looks[i] for i in at)).decode()


def _means(picture: np.ndarray, block: int) -> np.ndarray:
    """Of blocks of so many pixels either way."""
    side = len(picture) // block
    return picture.reshape(side, block, side, block).mean(axis=(1, 3))


def _luma(renderer: Renderer, source: Source, frame: Any) -> np.ndarray:
    rgb = np.empty((THUMB, THUMB, 3), np.uint8)
    renderer.paint(frame, source.video.sample_aspect_ratio, into=rgb)
    return (rgb @ np.array([0.299, 0.587, 0.114])).astype(np.float32)


def _off_beat(times: list[Fraction], tick: Fraction) -> float:
    """Containers round times to ticks, and MPEG-TS and Matroska by much: two ticks are no change of rate."""
    gaps = np.diff(np.array([float(t) for t in times]))
    if len(gaps) < 2:
        return 0.0
    usual = float(np.median(gaps))
    return float((np.abs(gaps - usual) > max(0.1 * usual, 2.001 * float(tick))).mean())


def _sound(source: Source, start: Fraction, end: Fraction | None) -> tuple[Sound | None, np.ndarray | None]:
    """The sound's measures, and the strength of its onsets per 0.1 s of the clock from `start` on."""
    rate = source.sample_rate_hz
    claimed = source.claimed_end(source.audio) or source.container_end()
    if claimed is None and end is None:  # a live recording: prepare finds the end so too
        claimed = scanned_end(source)
    stop = min(at for at in (end, claimed) if at is not None)
    if stop <= start:
        return None, None
    step = max(1, floor(STEP * rate))
    tally = _Tally(rate, step)
    first = last = None
    for number in range(ceil((stop - start) / CHUNK_S)):
        begin = start + number * CHUNK_S
        count = max(1, floor(min(stop - begin, Fraction(CHUNK_S)) * rate))
        wave, spans = read_samples(source, Counter(), begin, rate, count, None)
        if not np.isfinite(wave).all():
            raise source.error("holds samples that are NaN or infinite")
        if spans:
            first = begin + Fraction(spans[0][0], rate) if first is None else first
            last = begin + Fraction(spans[-1][1], rate)
        tally.add(wave)
    if first is None or last is None:
        return None, None
    level = tally.level()
    skip = floor((first - start) / STEP)
    return (
        Sound(
            sample_rate_hz=rate,
            channels=tally.channels,
            codec=source.audio.codec_context.name,
            start_s=float(first),
            end_s=float(last),
            level=tuple(level[skip : ceil((last - start) / STEP)]),
            peak=round(tally.peak, 4),
            clipped=tally.clipped / max(1, tally.samples),
            side_db=tally.side_db(),
            balance_db=tally.balance_db(),
            hearing=tally.hearing(),
        ),
        tally.onsets(),
    )


class _Tally:
    """Sums over the sound, chunk by chunk."""

    def __init__(self, rate: int, step: int) -> None:
        self.step = step
        self.channels = 0
        self.samples = self.clipped = 0
        self.peak = 0.0
        self.power = np.zeros(4)  # left, right, sum, difference
        self.means: list[np.ndarray] = []
        self.bands: list[np.ndarray] = []
        edges = np.array(BANDS_HZ) * step / rate
        bins = np.fft.rfftfreq(step, 1 / step)
        self.filter = (bins[:, None] >= edges[:-1]) & (bins[:, None] < edges[1:])

    def add(self, wave: np.ndarray) -> None:
        self.channels = len(wave)
        self.samples += wave.shape[1] * len(wave)
        size = np.abs(wave)
        self.peak = max(self.peak, float(size.max()))
        self.clipped += sum(_in_runs(row >= FULL_SCALE) for row in size)
        if len(wave) == 2:
            left, right = wave.astype(np.float64)
            parts = (left, right, left + right, left - right)
            self.power += [float(part @ part) for part in parts]
        steps = -(-wave.shape[1] // self.step)
        padded = np.pad(wave, ((0, 0), (0, steps * self.step - wave.shape[1])))
        pieces = padded.reshape(len(wave), steps, self.step)
        filled = np.full(steps, self.step, np.float64)
        filled[-1] = wave.shape[1] - (steps - 1) * self.step
        self.means.append((np.square(pieces).sum(axis=2) / filled).max(axis=0))
        spectrum = np.abs(np.fft.rfft(pieces.mean(axis=0) * np.hanning(self.step), axis=1)) ** 2
        self.bands.append(spectrum @ self.filter)

    def level(self) -> list[int]:
        power = np.concatenate(self.means)
        return [round(float(v)) for v in _db(power)]

    def side_db(self) -> float:
        return round(float(_db(self.power[3]) - _db(self.power[2])), 1)

    def balance_db(self) -> float:
        return round(float(_db(self.power[0]) - _db(self.power[1])), 1)

    def onsets(self) -> np.ndarray:
        bands = self._decibels()
        return np.maximum(np.diff(bands, axis=0, prepend=bands[:1]), 0).sum(axis=1)

    def hearing(self) -> str:
        bands = self._decibels()
        if not np.ptp(bands):
            return ""
        edges = np.linspace(0, len(bands), HEARINGS + 1).astype(int)
        parts = [bands[a : max(b, a + 1)] for a, b in pairwise(edges)]  # of a short sound some steps count twice
        means = np.stack([part.mean(axis=0) for part in parts])
        return base64.b64encode(np.rint(means).astype(np.int8).tobytes()).decode()

    def _decibels(self) -> np.ndarray:
        """(steps, bands) against the loudest band, floored."""
        power = np.concatenate(self.bands)
        loudest = float(power.max())
        return np.zeros_like(power) if loudest < 1e-9 else np.maximum(_db(power / loudest), FLOOR_DB)


def _db(power: Any) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, 10 ** (LEAST_DB / 10)))


def _in_runs(loud: np.ndarray) -> int:
    """How many samples lie in runs of at least CLIPPED_RUN."""
    edges = np.flatnonzero(np.diff(loud.astype(np.int8), prepend=0, append=0))
    lengths = edges[1::2] - edges[::2]
    return int(lengths[lengths >= CLIPPED_RUN].sum())


def _tie(picture: Picture, onsets: np.ndarray) -> float | None:
    """Correlation of onsets with changes of motion within 0.1 s, against the same clip shifted against itself."""
    motion = np.maximum(np.diff(np.array(picture.motion), prepend=picture.motion[:1]), 0)
    count = min(len(motion), len(onsets))
    if count < 25:  # 2.5 s: too few shifts to tell chance by
        return None
    a, b = motion[:count], onsets[:count]
    if a.std() < 1e-6 or b.std() < 1e-6:
        return None
    a, b = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    by_shift = np.array([float(a @ np.roll(b, k)) / count for k in range(count)])
    near = max(by_shift[k] for k in (-1, 0, 1))
    far = by_shift[5:-4]
    triples = np.max([far[k : len(far) - 2 + k] for k in range(3)], axis=0)  # the best of three, by chance
    if triples.std() < 0.01:  # nothing but one event: no shift is worse than another
        return None
    return round(float((near - triples.mean()) / triples.std()), 2)
