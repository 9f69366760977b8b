"""The sound of a window: decoded frames placed sample by sample on the clock, then mixed and resampled."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, chain
from math import ceil, floor
from typing import Any

import numpy as np

from avgen.data.media.sound import mix_matrix, ratio, reach, resample, to_float
from avgen.data.media.source import Counter, Source, Span, refuse_truncation

# MP3 reaches 10 packets back, Opus wants 80 ms, AAC at 8 kHz overlaps by 128 ms.
PREROLL_S = Fraction(1, 2)
# Containers that round to milliseconds jitter by one; more than this is a hole in the stream.
HOLE_S = Fraction(2, 1000)


@dataclass(frozen=True)
class Piece:
    """One decoded frame of sound. Of one long before the window only the time is kept: it anchors those after it."""

    at: int  # ticks of the stream, as the container rounds its time
    size: int  # samples
    wave: np.ndarray  # (channels, size), or (channels, 0)
    stated: int  # ticks that the container says it lasts; 0 = it does not say


@dataclass(frozen=True)
class Stretch:
    """Sound without holes, placed on the clock in whole samples of the file."""

    at: int
    wave: np.ndarray  # (channels, S)

    @property
    def end(self) -> int:
        return self.at + self.wave.shape[-1]


def read_samples(
    source: Source, counter: Counter, start: Fraction, rate: int, count: int, channels: int | None
) -> tuple[np.ndarray, tuple[Span, ...]]:
    """(channels, count) float32 at `rate` from `start` on, and the samples of it that the file really holds."""
    own_rate = source.sample_rate_hz
    margin = Fraction(reach(own_rate, rate) + 1, own_rate)
    end = start + Fraction(count, rate)
    pieces, more = _collected(_decoded(source, counter, start - margin, end + margin))
    stretches = _placed(source, pieces)
    reached = max((Fraction(s.end, own_rate) for s in stretches), default=start)
    if reached < end and not more:  # where there is more behind the window, what is missing is a hole
        refuse_truncation(source, source.audio, reached, end)
    return _rendered(source, stretches, start, rate, count, channels)


def read_all_samples(source: Source, rate: int, channels: int | None) -> tuple[np.ndarray, Fraction]:
    """(channels, S) float32: everything from the first sample to the last, and when the first sounds."""
    own_rate = source.sample_rate_hz
    stretches = _placed(source, _collected(_decoded(source, Counter(), source.start(source.audio), None))[0])
    if not stretches:
        raise source.error("holds a sound stream from which nothing can be decoded")
    first, last = min(s.at for s in stretches), max(s.end for s in stretches)
    refuse_truncation(source, source.audio, Fraction(last, own_rate), Fraction(10**9))
    count = max(1, floor(Fraction(last - first, own_rate) * rate + Fraction(1, 2)))
    start = Fraction(first, own_rate)
    return _rendered(source, stretches, start, rate, count, channels)[0], start


def _collected(pieces: Generator[Piece, None, bool]) -> tuple[list[Piece], bool]:
    found = []
    while True:
        try:
            found.append(next(pieces))
        except StopIteration as stop:
            return found, stop.value


def _decoded(source: Source, counter: Counter, start: Fraction, end: Fraction | None) -> Generator[Piece, None, bool]:
    """Decoded sound covering [start, end), and some before it; returns whether there is more behind it."""
    import av

    packets = _packets_before(source, start)
    stream, own_rate = source.audio, source.sample_rate_hz
    last = None if end is None else source.ticks(stream, end + HOLE_S)
    early = True  # what sounds long before the window is not kept: an hour of it would be 1.4 GB
    for packet in packets:
        counter.packets += 1
        if last is not None and packet.pts is not None and packet.pts > last:
            return True
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            at = None if packet.pts is None else source.time(stream, packet.pts)
            if at is not None and at < start - PREROLL_S / 2:
                continue  # a decoder dropped into the middle may complain before it has caught up
            raise source.error(f"the sound is damaged near {float(at or 0):.3f} s: {error.strerror}") from error
        for frame in frames:
            counter.frames += 1
            if frame.sample_rate != own_rate:
                raise source.error(f"changes its sample rate from {own_rate} to {frame.sample_rate} Hz")
            if frame.pts is None:
                raise source.error("has sound without timestamps")
            ends = source.time(stream, frame.pts) + Fraction(frame.samples, own_rate)
            early = early and ends < start - PREROLL_S
            wave = np.empty((frame.layout.nb_channels, 0), np.float32) if early else to_float(frame)
            yield Piece(frame.pts, frame.samples, wave, packet.duration or 0)
    return False


def _packets_before(source: Source, start: Fraction) -> Iterator[Any]:
    """Audio packets from early enough that the decoder has settled by `start`."""
    import av

    if source.seekable and start > source.start(source.audio) + 1:
        # Matroska indexes only the picture: seeking by the sound would walk the whole file.
        guide = source.audio if source.is_mov or source.video is None else source.video
        target = start - PREROLL_S
        while target > source.start(guide):
            try:
                source.select([source.audio])
                source.container.seek(source.ticks(guide, target), stream=guide)
                packets = source.container.demux(source.audio)
                first = next((p for p in packets if p.pts is not None), None)
            except av.FFmpegError:
                break
            if first is not None and source.time(source.audio, first.pts) <= start - PREROLL_S / 2:
                return chain([first], packets)
            target = 2 * target - start
    source.rewind()
    source.select([source.audio])
    return source.container.demux(source.audio)


def _placed(source: Source, pieces: list[Piece]) -> list[Stretch]:
    """Decoded frames joined wherever they follow one another.

    Counting samples is exact where the container's own times are rounded, so times only anchor each stretch.
    """
    own_rate = source.sample_rate_hz
    per_tick, per_sample = _units(source)
    hole = max(HOLE_S, 2 * source.audio.time_base) * own_rate * per_sample
    runs: list[list[Piece]] = []
    expected = 0
    for piece in pieces:
        if not runs or abs(piece.at * per_tick - expected) > hole:
            runs.append([])
            expected = piece.at * per_tick
        runs[-1].append(piece)
        expected += piece.size * per_sample
    opens, closes = source.shown(source.audio)
    low = ceil(opens * own_rate - Fraction(1, 2))
    stretches = []
    for run in runs:
        first, wave = _anchor(source, run), _joined(source, run)
        at = first + sum(piece.size - piece.wave.shape[-1] for piece in run)  # of what is kept of it
        high = at + wave.shape[-1] if closes is None else ceil(closes * own_rate)
        begin, stop = max(first, low), min(at + wave.shape[-1], high)
        if begin < stop:
            begin = min(max(begin, at), stop)
            stretches.append(Stretch(begin, wave[:, begin - at : stop - at]))
    return stretches


def _units(source: Source) -> tuple[int, int]:
    """A tick and a sample in a unit of which both are whole numbers: dozens of frames a second pass here."""
    tick = source.audio.time_base * source.sample_rate_hz
    return tick.numerator, tick.denominator


def _anchor(source: Source, run: list[Piece]) -> int:
    """Where a run of frames starts, in samples: the median over what each of them says."""
    own_rate = source.sample_rate_hz
    sizes = [piece.size for piece in run]
    offsets = [0, *accumulate(sizes)][:-1]
    usual = max(set(sizes), key=sizes.count)
    full = [i for i, size in enumerate(sizes) if size == usual]  # a trimmed frame's time is the most rounded
    per_tick, per_sample = _units(source)
    votes = sorted(run[i].at * per_tick - offsets[i] * per_sample for i in full)
    anchor = source.time(source.audio, 0) * own_rate + Fraction(votes[len(votes) // 2], per_sample)
    tick = Fraction(per_tick, per_sample)
    if tick > 2 and len(full) >= len(sizes) - 2:
        # Coarse times, constant frames: the stream's own frame grid says where they were before rounding, and
        # says the same to every window. The codec's delay is what the container took off the first frame.
        # A start of 0 was not rounded, so there the grid is exact; a later one is off by as much as it explains.
        doubt = tick / 2 + 2 if not source.audio.start_time else tick / 4
        origin = floor(source.start(source.audio) * own_rate + Fraction(1, 2)) - source.audio.codec_context.delay
        first = offsets[full[0]]
        snapped = origin + floor((anchor + first - origin) / usual + Fraction(1, 2)) * usual - first
        if abs(snapped - anchor) <= doubt:
            return snapped
    return floor(anchor + Fraction(1, 2))


def _joined(source: Source, run: list[Piece]) -> np.ndarray:
    """A run of frames as one wave, without the padding that encoders add after the end."""
    if len({len(piece.wave) for piece in run}) > 1:
        raise source.error("changes its number of channels midway")
    last = run[-1]
    length = last.wave.shape[-1]
    tick = source.audio.time_base * source.sample_rate_hz
    if tick <= 1 and 0 < (stated := round(last.stated * tick)) < length:
        length = stated
    return np.concatenate([*(piece.wave for piece in run[:-1]), last.wave[:, :length]], axis=1)


def _rendered(
    source: Source, stretches: list[Stretch], start: Fraction, rate: int, count: int, channels: int | None
) -> tuple[np.ndarray, tuple[Span, ...]]:
    own_rate = source.sample_rate_hz
    layout = source.audio.codec_context.layout
    if not stretches and layout.nb_channels < 1:
        raise source.error("claims sound of no channels")
    up, down = ratio(own_rate, rate)
    margin = reach(own_rate, rate) + 1
    low = floor(start * own_rate) - margin
    high = ceil((start + Fraction(count, rate)) * own_rate) + margin
    wave = np.zeros((len(stretches[0].wave) if stretches else layout.nb_channels, high - low), np.float32)
    grid = floor(start * own_rate * up + Fraction(1, 2))  # the first output sample, as resample() rounds it
    spans: list[Span] = []
    for stretch in stretches:
        if len(stretch.wave) != len(wave):
            raise source.error("changes its number of channels midway")
        begin, stop = max(stretch.at, low), min(stretch.end, high)
        if begin < stop:
            wave[:, begin - low : stop - low] = stretch.wave[:, begin - stretch.at : stop - stretch.at]
        first = max(0, -((grid - stretch.at * up) // down))
        last = min(count, -((grid - stretch.end * up) // down))
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
    return out, _merged(spans)


def _merged(spans: list[Span]) -> tuple[Span, ...]:
    merged: list[Span] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)
