"""The picture of a window: which frame is on screen when, and how to get to it without decoding the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from math import ceil
from typing import Any

import numpy as np

from avgen.data.media.picture import Renderer
from avgen.data.media.source import Counter, Source, Span, average_fps, refuse_truncation

# Containers that round times to milliseconds are right to half of one; finer ones to half a tick.
ROUNDING_S = Fraction(1, 2000)


@dataclass(frozen=True)
class Instants:
    """When to look: the middle of each output frame's interval."""

    start: Fraction
    fps: Fraction
    count: int

    def __getitem__(self, index: int) -> Fraction:
        return self.start + (index + Fraction(1, 2)) / self.fps

    def span(self, low: Fraction, high: Fraction) -> tuple[Span, ...]:
        """The frames whose instants lie in [low, high)."""
        first = max(0, ceil((low - self.start) * self.fps - Fraction(1, 2)))
        last = min(self.count, ceil((high - self.start) * self.fps - Fraction(1, 2)))
        return ((first, last),) if first < last else ()


def read_frames(
    source: Source, counter: Counter, instants: Instants, renderer: Renderer
) -> tuple[np.ndarray, tuple[Span, ...]]:
    """(T, H, W, 3) uint8 and the frames of it that the file really shows.

    The frame on screen at an instant is the last that started before it; before the first and after the last
    frame the nearest is held.
    """
    decoded = _decoded(
        source, counter, *_packets_from_keyframe(source, max(instants[0], source.shown(source.video)[0]))
    )
    stream = source.video  # not before: positioning may open the file anew
    rounding = min(stream.time_base / 2, ROUNDING_S)
    opens, closes = source.shown(stream)  # what an edit list cuts off is never looked at
    out: np.ndarray | None = None
    filled = 0
    current: Any = None
    first_at = starts_at = ends_at = Fraction(0)

    def show(until: Fraction | None) -> None:
        """Give the current frame to every instant before the next one's start."""
        nonlocal out, filled
        first = filled
        while filled < instants.count:
            instant = max(instants[filled], opens + rounding * 2)
            instant = instant if closes is None else min(instant, closes)
            if until is not None and instant > until + rounding:
                return
            if current.is_corrupt:
                raise source.error(f"the picture at {float(starts_at):.3f} s is damaged")
            if out is None:
                size = renderer.size_of(current, stream.sample_aspect_ratio)
                out = np.empty((instants.count, *size, 3), np.uint8)
            if filled == first:
                renderer.paint(current, stream.sample_aspect_ratio, into=out[filled])
            else:
                out[filled] = out[first]
            filled += 1

    for frame in decoded:
        at = source.time(stream, frame.pts)
        if current is None:
            first_at = at
        elif at <= starts_at:
            continue  # two frames for one moment: the later was never seen
        else:
            show(at)
            if filled == instants.count:
                break
        current, starts_at = frame, at
        ends_at = at + (frame.duration * frame.time_base if frame.duration else 1 / average_fps(stream))
    if current is None:
        raise source.error("holds a video stream from which no frame can be decoded")
    if filled < instants.count:
        refuse_truncation(source, stream, ends_at, instants[instants.count - 1])
        show(None)
        high = ends_at if closes is None else min(ends_at, closes)
    else:
        high = instants[instants.count] if closes is None else closes
    assert out is not None
    return out, instants.span(max(first_at, opens) - rounding, high + rounding)


def walk_frames(
    source: Source, counter: Counter, start: Fraction, end: Fraction | None
) -> Iterator[tuple[Fraction, Fraction, Any]]:
    """Every frame shown within [start, end): when it comes on screen, how long its own header holds it, the frame."""
    opens, closes = source.shown(source.video)
    last: Fraction | None = None
    for frame in _decoded(source, counter, *_packets_from_keyframe(source, max(start, opens))):
        stream = source.video  # not before: positioning may open the file anew
        at = source.time(stream, frame.pts)
        if (end is not None and at >= end) or (closes is not None and at >= closes):
            return
        lasts = frame.duration * frame.time_base if frame.duration else 1 / average_fps(stream)
        if (last is None or at > last) and at + lasts > max(start, opens):
            if frame.is_corrupt:
                raise source.error(f"the picture at {float(at):.3f} s is damaged")
            last = at
            yield at, lasts, frame


def _decoded(source: Source, counter: Counter, packets: Iterator[Any], clean_from: int | None) -> Iterator[Any]:
    """Frames in presentation order; those before the keyframe at `clean_from` lean on frames we never saw."""
    context = source.video.codec_context
    context.thread_type = "AUTO"
    context.thread_count = source.threads
    for packet in packets:
        counter.packets += 1
        for frame in packet.decode():
            counter.frames += 1
            if frame.pts is None:
                raise source.error("has video frames without timestamps")
            if clean_from is None or frame.pts >= clean_from:
                yield frame


def _packets_from_keyframe(source: Source, at: Fraction) -> tuple[Iterator[Any], int | None]:
    """Video packets from the last keyframe shown at or before `at`, and that keyframe's pts (None: from the top)."""
    import av

    stream = source.video
    if source.seekable and at > source.start(stream) + 1:
        source.select([stream])
        target = source.ticks(stream, at)
        for _ in range(8):
            try:
                source.container.seek(target, stream=stream)
                packets = source.container.demux(stream)
                key = next((p for p in packets if p.is_keyframe and p.pts is not None), None)
            except av.FFmpegError:
                break
            if key is None:
                target -= ceil(1 / stream.time_base)
            elif source.time(stream, key.pts) <= at:
                return chain([key], packets), key.pts
            else:  # indexes go by decoding time, which runs ahead: step to the keyframe before
                target = min(target, key.pts if key.dts is None else key.dts) - 1
    source.rewind()
    stream = source.video
    source.select([stream])
    return source.container.demux(stream), None
