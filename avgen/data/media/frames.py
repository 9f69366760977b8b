"""The picture of a window: which frame is on screen when, and how to get to it without decoding the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from math import ceil, lcm
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
    due = _Due(source, instants, rounding)
    out: np.ndarray | None = None
    filled = 0
    current: Any = None
    first: int | None = None  # pts
    last = 0

    def show(until: int | None) -> None:
        """Give the current frame to every instant before the next one's start."""
        nonlocal out, filled
        painted = filled
        while filled < instants.count:
            if until is not None and due[filled] > until:
                return
            if current.is_corrupt:
                raise source.error(f"the picture at {float(source.time(stream, last)):.3f} s is damaged")
            if out is None:
                out = renderer.canvas(instants.count, renderer.size_of(current, stream.sample_aspect_ratio))
            if filled == painted:
                renderer.paint(current, stream.sample_aspect_ratio, into=out[filled])
            else:
                out[filled] = out[painted]
            filled += 1

    for frame in decoded:
        if first is None:
            first = frame.pts
        elif frame.pts <= last:
            continue  # two frames for one moment: the later was never seen
        else:
            show(frame.pts)
            if filled == instants.count:
                break
        current, last = frame, frame.pts
    if first is None:
        raise source.error("holds a video stream from which no frame can be decoded")
    first_at, ends_at = source.time(stream, first), source.time(stream, last) + _lasting(stream, current)
    if filled < instants.count:
        refuse_truncation(source, stream, ends_at, instants[instants.count - 1])
        show(None)
        high = ends_at if closes is None else min(ends_at, closes)
    else:
        high = instants[instants.count] if closes is None else closes
    assert out is not None
    return out, instants.span(max(first_at, opens) - rounding, high + rounding)


class _Due:
    """Per output frame, the first tick of the stream at which a new frame no longer comes too late to be shown in it.

    Fractions in whole numbers: thousands of frames a second pass here, and each would cost a dozen of the slow kind.
    """

    def __init__(self, source: Source, instants: Instants, rounding: Fraction) -> None:
        stream = source.video
        opens, closes = source.shown(stream)

        def ticks(time: Fraction) -> Fraction:
            return (time - rounding - source.time(stream, 0)) / stream.time_base

        start, half = ticks(instants.start), 1 / (2 * instants.fps * stream.time_base)
        self.whole = lcm(start.denominator, half.denominator)
        self.start, self.half = int(start * self.whole), int(half * self.whole)
        self.low = ceil(ticks(opens + rounding * 2))
        self.high = None if closes is None else ceil(ticks(closes))

    def __getitem__(self, index: int) -> int:
        due = max(-(-(self.start + self.half * (2 * index + 1)) // self.whole), self.low)
        return due if self.high is None else min(due, self.high)


def _lasting(stream: Any, frame: Any) -> Fraction:
    """Seconds for which a frame's own header holds it."""
    return frame.duration * frame.time_base if frame.duration else 1 / average_fps(stream)


def walk_frames(
    source: Source, counter: Counter, start: Fraction, end: Fraction | None
) -> Iterator[tuple[Fraction, Fraction, Any]]:
    """Every frame shown within [start, end): when it comes on screen, for how long, the frame.

    It stays until the next one comes. Its own header often does not know (Matroska; mp4 with B-frames), so only the
    last one is held for as long as that says.
    """
    opens, closes = source.shown(source.video)
    begins = max(start, opens)
    shown: Any = None
    since = begins
    for frame in chain(_decoded(source, counter, *_packets_from_keyframe(source, begins)), [None]):
        stream = source.video  # not before: positioning may open the file anew
        if frame is not None:
            at = source.time(stream, frame.pts)
        elif shown is not None:
            at = since + _lasting(stream, shown)
        else:
            return
        if shown is not None:
            if at <= since:
                continue  # two frames for one moment: the later was never seen
            until = at if closes is None else min(at, closes)
            if until > begins:
                if shown.is_corrupt:
                    raise source.error(f"the picture at {float(since):.3f} s is damaged")
                yield since, until - since, shown
        if (end is not None and at >= end) or (closes is not None and at >= closes):
            return
        shown, since = frame, at


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
