"""Any window of a clip as frames and samples, chosen by timestamps.

Picture and sound are read in two passes over one file, each seeking for itself: where one stream's
packets lie says nothing sure about the other's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np

from avgen.data.media.picture import Fit, Renderer
from avgen.data.media.sound import mix_matrix, ratio, reach, resample, to_float
from avgen.data.media.source import MediaError, Source, average_fps, check_rate, exact_fps, exact_seconds, open_source
from avgen.types import Clip

Span = tuple[int, int]
# MP3 reaches 10 packets back, Opus wants 80 ms, AAC at 8 kHz overlaps by 128 ms.
PREROLL_S = Fraction(1, 2)
# Containers that round to milliseconds jitter by one; more than this is a hole in the stream.
HOLE_S = Fraction(2, 1000)
ROUNDING_S = Fraction(1, 2000)


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
    sample_rate_hz: int | None = None,
    channels: int | None = None,
    threads: int = 0,
) -> Window:
    """The window [start_s, end_s) on the file's presentation clock.

    `video` and `audio` may be True (the file must have it), False (leave it out) or None (if it is there).
    Rate, size (height, width) and channels default to the file's own. Frame i is the one on screen in the middle
    of output interval i; samples are taken at their timestamps. A window that holds nothing is an error.
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
        counter = _Counter()
        frames: np.ndarray | None = None
        rate: Fraction | None = None
        video_real: tuple[Span, ...] = ()
        if has_video:
            rate = average_fps(source.video) if fps is None else exact_fps(fps)
            count = _at_least_one(unit_count(start, end, rate), "frame", rate, end - start)
            frames, video_real = _read_video(source, counter, start, rate, count, size, fit)
        wave: np.ndarray | None = None
        audio_real: tuple[Span, ...] = ()
        if has_audio:
            own_rate = check_rate(source, source.audio.codec_context.sample_rate)
            sample_rate_hz = own_rate if sample_rate_hz is None else sample_rate_hz
            count = _at_least_one(unit_count(start, end, sample_rate_hz), "sample", sample_rate_hz, end - start)
            wave, audio_real = _read_audio(source, counter, start, own_rate, sample_rate_hz, count, channels)
        if not (video_real or audio_real):
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
        own_rate = check_rate(source, source.audio.codec_context.sample_rate)
        rate = own_rate if sample_rate_hz is None else sample_rate_hz
        start = max(source.start(source.audio), Fraction(0))
        pieces = _place(source, list(_decode_audio(source, _Counter(), start, None, own_rate)), own_rate)
        if not pieces:
            raise source.error("holds a sound stream from which nothing can be decoded")
        first = max(pieces[0][0], 0)
        last = max(at + wave.shape[-1] for at, wave in pieces)
        count = max(1, floor(Fraction(last - first, own_rate) * rate + Fraction(1, 2)))
        out, _ = _render(source, pieces, Fraction(first, own_rate), own_rate, rate, count, channels)
        return Clip(None, out, None, rate, start_s=first / own_rate)


def read_image(path: str | Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file, turned as its EXIF tag says; transparency falls on black."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if path.is_dir():
        raise MediaError(f"{path}: is a directory, not an image")
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, (0, 0, 0, 255)), upright)
            return np.asarray(upright.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(f"{path}: cannot be read as an image: {error}") from error


class _Counter:
    def __init__(self) -> None:
        self.packets = 0
        self.frames = 0


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


def _read_video(
    source: Source,
    counter: _Counter,
    start: Fraction,
    fps: Fraction,
    count: int,
    size: tuple[int, int] | None,
    fit: Fit,
) -> tuple[np.ndarray, tuple[Span, ...]]:
    """(T, H, W, 3) uint8 and the frames of it that the file really shows."""
    render = Renderer(size, fit)
    out: list[np.ndarray] = []
    shown: Any = None
    first_at = shown_at = until = Fraction(0)

    def instant(index: int) -> Fraction:
        return start + (index + Fraction(1, 2)) / fps

    def show(before: Fraction | None) -> None:
        """Give `shown` to every instant up to the next frame's start; ties go to the earlier frame."""
        assert shown is not None
        picture: np.ndarray | None = None
        while len(out) < count and (before is None or instant(len(out)) <= before + rounding):
            if picture is None:
                if shown.is_corrupt:
                    raise source.error(f"the picture at {float(shown_at):.3f} s is damaged")
                picture = render(shown, source.video.sample_aspect_ratio)
            out.append(picture)

    rounding = min(source.video.time_base / 2, ROUNDING_S)
    for frame in _decode_video(source, counter, instant(0)):
        at = frame.pts * frame.time_base - source.zero
        if shown is None:
            first_at = at
        elif at <= shown_at:
            continue  # two frames at one time: the later one was never seen
        else:
            show(at)
            if len(out) == count:
                break
        shown, shown_at = frame, at
        length = frame.duration * frame.time_base if frame.duration else 1 / average_fps(source.video)
        until = at + length
    if shown is None:
        raise source.error("holds a video stream from which no frame can be decoded")
    if len(out) < count:
        _check_truncation(source, source.video, until, instant(count - 1))
        show(None)
    else:
        until = max(until, instant(count - 1))
    low = max(0, ceil((first_at - rounding - start) * fps - Fraction(1, 2)))
    high = min(count, ceil((until + rounding - start) * fps - Fraction(1, 2)))
    return np.stack(out), ((low, high),) if low < high else ()


def _decode_video(source: Source, counter: _Counter, at: Fraction) -> Iterator[Any]:
    """Frames in presentation order, from one shown at or before `at` (where the file has one)."""
    packets, clean_from = _packets_from_keyframe(source, at)
    context = source.video.codec_context
    context.thread_type = "AUTO"
    context.thread_count = source.threads
    for packet in packets:
        counter.packets += 1
        for frame in packet.decode():
            counter.frames += 1
            if frame.pts is None:
                raise source.error("has video frames without timestamps")
            if clean_from is None or frame.pts >= clean_from:  # before the keyframe: built on frames we never saw
                yield frame


def _packets_from_keyframe(source: Source, at: Fraction) -> tuple[Iterator[Any], int | None]:
    """Video packets from the last keyframe shown at or before `at`, and that keyframe's pts (None: from the top)."""
    import av

    if source.seekable and at > source.start(source.video) + 1:
        target = floor((at + source.zero) / source.video.time_base)
        source.select([source.video])
        for _ in range(8):
            try:
                source.container.seek(target, stream=source.video)
                packets = source.container.demux(source.video)
                key = next((p for p in packets if p.is_keyframe and p.pts is not None), None)
            except av.FFmpegError:
                break
            if key is not None and key.pts * key.time_base - source.zero <= at:
                return _chain(key, packets), key.pts
            # Indexes go by decoding time, which runs ahead: step to the keyframe before.
            behind = target if key is None or key.dts is None else min(key.dts, target)
            target = behind - 1 if key is not None else behind - ceil(1 / source.video.time_base)
    source.rewind()
    source.select([source.video])
    return source.container.demux(source.video), None


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _check_truncation(source: Source, stream: Any, reached: Fraction, wanted: Fraction) -> None:
    """A stream that stops before its header says so, inside the window, has lost data."""
    claimed = source.claimed_end(stream)
    if claimed is not None and reached < min(claimed, wanted) - Fraction(1, 4):
        what = "picture" if stream.type == "video" else "sound"
        raise source.error(
            f"is truncated: the header promises {what} until {float(claimed):.3f} s, it stops at {float(reached):.3f} s"
        )


@dataclass(frozen=True)
class _Piece:
    """One decoded frame of sound."""

    at: Fraction  # seconds on the clock, as the container rounds it
    wave: np.ndarray  # (channels, S)
    stated: int  # samples that the container says it lasts; 0 = says nothing


def _read_audio(
    source: Source, counter: _Counter, start: Fraction, own_rate: int, rate: int, count: int, channels: int | None
) -> tuple[np.ndarray, tuple[Span, ...]]:
    margin = Fraction(reach(own_rate, rate), own_rate)
    end = start + Fraction(count, rate)
    decoded = list(_decode_audio(source, counter, start - margin, end + margin, own_rate))
    pieces = _place(source, decoded, own_rate)
    reached = max((Fraction(at + wave.shape[-1], own_rate) for at, wave in pieces), default=start)
    if reached < end:
        _check_truncation(source, source.audio, reached, end)
    return _render(source, pieces, start, own_rate, rate, count, channels)


def _decode_audio(
    source: Source, counter: _Counter, start: Fraction, end: Fraction | None, own_rate: int
) -> Iterator[_Piece]:
    """Decoded sound covering [start, end), with some before it."""
    import av

    packets = _packets_before(source, start)
    for packet in packets:
        counter.packets += 1
        at = None if packet.pts is None else packet.pts * packet.time_base - source.zero
        if end is not None and at is not None and at > end + HOLE_S:
            return
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            if at is not None and at < start - PREROLL_S / 2:
                continue  # a decoder dropped into the middle may complain before it has caught up
            raise source.error(f"the sound is damaged near {float(at or 0):.3f} s: {error.strerror}") from error
        for frame in frames:
            counter.frames += 1
            if frame.sample_rate != own_rate:
                raise source.error(f"changes its sample rate from {own_rate} to {frame.sample_rate} Hz")
            if frame.pts is None:
                raise source.error("has sound without timestamps")
            stated = round((packet.duration or 0) * packet.time_base * own_rate)
            yield _Piece(frame.pts * frame.time_base - source.zero, to_float(frame), stated)


def _packets_before(source: Source, start: Fraction) -> Iterator[Any]:
    """Audio packets from early enough that the decoder has settled by `start`."""
    import av

    if source.seekable and start > source.start(source.audio) + 1:
        # Matroska indexes only the picture: seeking by the sound would walk the whole file.
        guide = source.audio if source.is_mov or source.video is None else source.video
        target = start - PREROLL_S
        for _ in range(8):
            try:
                if guide is not source.audio:
                    source.select([source.audio, guide])
                source.container.seek(floor((target + source.zero) / guide.time_base), stream=guide)
                source.select([source.audio])
                packets = source.container.demux(source.audio)
                first = next((p for p in packets if p.pts is not None), None)
            except av.FFmpegError:
                break
            if first is not None and first.pts * first.time_base - source.zero <= start - PREROLL_S / 2:
                return _chain(first, packets)
            target = 2 * target - start
            if target < source.start(source.audio):
                break
    source.rewind()
    source.select([source.audio])
    return source.container.demux(source.audio)


def _place(source: Source, decoded: list[_Piece], own_rate: int) -> list[tuple[int, np.ndarray]]:
    """Decoded sound as (sample position on the clock, wave): one wave per stretch without holes.

    Counting samples is exact where the container's own times are rounded, so times only anchor each stretch.
    """
    hole = max(HOLE_S, 2 * source.audio.time_base)
    runs: list[list[_Piece]] = []
    expected = Fraction(0)
    for piece in decoded:
        if not runs or abs(piece.at - expected) > hole:
            runs.append([])
            expected = piece.at
        runs[-1].append(piece)
        expected += Fraction(piece.wave.shape[-1], own_rate)
    return [(_anchor(source, run, own_rate), _join(source, run, own_rate)) for run in runs]


def _anchor(source: Source, run: list[_Piece], own_rate: int) -> int:
    """Where a stretch starts, in samples: the median over what each of its frames says."""
    sizes = [piece.wave.shape[-1] for piece in run]
    offsets = [0, *accumulate(sizes)][:-1]
    usual = max(set(sizes), key=sizes.count)
    full = [i for i, size in enumerate(sizes) if size == usual]
    votes = sorted(run[i].at * own_rate - offsets[i] for i in full)
    anchor = votes[len(votes) // 2]
    tick = source.audio.time_base * own_rate
    if tick > 2 and len(full) >= len(sizes) - 2:
        # Coarse times, constant frames: the stream's own frame grid says where they were before rounding, and
        # says the same to every window. The codec's delay is what the container took off the first frame.
        origin = floor(source.start(source.audio) * own_rate + Fraction(1, 2)) - source.audio.codec_context.delay
        first = offsets[full[0]]
        snapped = origin + floor((anchor + first - origin) / usual + Fraction(1, 2)) * usual - first
        if abs(snapped - anchor) <= tick:
            return snapped
    return floor(anchor + Fraction(1, 2))


def _join(source: Source, run: list[_Piece], own_rate: int) -> np.ndarray:
    """The stretch as one wave, without the padding that encoders add after the end."""
    if len({len(piece.wave) for piece in run}) > 1:
        raise source.error("changes its number of channels midway")
    last = run[-1]
    length = last.wave.shape[-1]
    if source.audio.time_base * own_rate <= 1 and 0 < last.stated < length:
        length = last.stated
    claimed = source.claimed_end(source.audio)
    if source.is_mov and claimed is not None and last.at < claimed:
        length = min(length, ceil((claimed - last.at) * own_rate))
    return np.concatenate([*(piece.wave for piece in run[:-1]), last.wave[:, :length]], axis=1)


def _render(
    source: Source,
    pieces: list[tuple[int, np.ndarray]],
    start: Fraction,
    own_rate: int,
    rate: int,
    count: int,
    channels: int | None,
) -> tuple[np.ndarray, tuple[Span, ...]]:
    """(channels, count) float32 from `start` on, and the samples of it that the file really holds."""
    layout = source.audio.codec_context.layout
    up, down = ratio(own_rate, rate)
    margin = reach(own_rate, rate) + 1
    low = floor(start * own_rate) - margin
    high = ceil((start + Fraction(count, rate)) * own_rate) + margin
    wave = np.zeros((len(pieces[0][1]) if pieces else layout.nb_channels, high - low), np.float32)
    grid = floor(start * own_rate * up + Fraction(1, 2))
    spans: list[Span] = []
    for at, data in pieces:
        if len(data) != len(wave):
            raise source.error("changes its number of channels midway")
        begin, stop = max(at, low), min(at + data.shape[-1], high)
        if begin < stop:
            wave[:, begin - low : stop - low] = data[:, begin - at : stop - at]
        first = max(0, -((grid - at * up) // down))
        last = min(count, -((grid - (at + data.shape[-1]) * up) // down))
        if first < last:
            spans.append((first, last))
    names = [channel.name for channel in layout.channels]
    try:
        mix = mix_matrix(names if len(names) == len(wave) else [""] * len(wave), channels or len(wave))
    except ValueError as error:
        raise source.error(str(error)) from error
    position = start * own_rate - low
    if len(mix) <= len(wave):  # resample whichever side has fewer channels
        out = resample(mix @ wave, position, count, own_rate, rate)
    else:
        out = mix @ resample(wave, position, count, own_rate, rate)
    return out, _merge(spans)


def _merge(spans: list[Span]) -> tuple[Span, ...]:
    merged: list[Span] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)
