"""Fragments of mp4 in which samples are shown before the moment at which they are decoded, read from the file itself.

Where a fragment's composition offsets are negative (CMAF and DASH write them so, in place of an edit list), FFmpeg says
the whole track later by the most negative one it has met so far: the picture is then late against its sound.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from avgen.data.media.edits import boxes, child

FIELDS = (0x100, 0x200, 0x400, 0x800)  # of each sample in a trun box; the last is the composition offset
OFFSETS = FIELDS[-1]


@dataclass(frozen=True)
class Fragmented:
    """A track whose fragments have negative composition offsets; in ticks of the track."""

    first: int  # when its first sample is shown
    delay: int  # by how much FFmpeg says everything later
    steady: bool  # whether it does so from the first sample on


def read_fragmented(path: Path) -> dict[int, Fragmented]:
    """Track id -> what its fragments say, of tracks with negative offsets: of most files nothing."""
    with path.open("rb", buffering=0) as file:  # a few bytes here and there
        try:
            size = path.stat().st_size
            moov = child(file, 0, size, b"moov")
            if all(kind != b"mvex" for kind, _, _ in boxes(file, *moov)):
                return {}
            whole = any(_samples(file, start, end) for kind, start, end in boxes(file, *moov) if kind == b"trak")
            return _tracks(file, size, whole)
        except (struct.error, ValueError):
            return {}  # not an ISO file, or a broken one, about which FFmpeg has more to say


def _tracks(file: BinaryIO, size: int, whole: bool) -> dict[int, Fragmented]:
    first: dict[int, int] = {}
    delays: dict[int, list[int]] = {}  # by fragment
    for start, end in _fragments(file, size):
        here: dict[int, int] = {}
        for kind, *place in boxes(file, start, end):
            if kind == b"traf":
                track, begin, offsets = _fragment(file, *place)
                if len(offsets):
                    first.setdefault(track, begin + int(offsets[0]))
                    here[track] = max(here.get(track, 0), -int(offsets.min()))
        for track, delay in here.items():
            delays.setdefault(track, []).append(delay)
    return {
        # the moov's own samples are not said later, the fragments behind them are
        track: Fragmented(first[track], max(found), max(found) == found[0] and not whole)
        for track, found in delays.items()
        if max(found)
    }


def _fragment(file: BinaryIO, start: int, end: int) -> tuple[int, int, np.ndarray]:
    """Track, decoding time of the first sample, and the composition offsets of all."""
    track, begin, offsets = 0, 0, [np.zeros(0, np.int64)]
    for kind, at, until in boxes(file, start, end):
        file.seek(at)
        if kind == b"tfhd":
            (track,) = struct.unpack(">4xI", file.read(8))
        elif kind == b"tfdt":
            version = file.read(4)[0]
            (begin,) = struct.unpack(">Q" if version else ">I", file.read(8 if version else 4))
        elif kind == b"trun":
            flags, count = struct.unpack(">II", file.read(8))
            file.seek(4 * bool(flags & 0x1) + 4 * bool(flags & 0x4), 1)
            if not flags & OFFSETS:
                offsets.append(np.zeros(count, np.int64))
                continue
            width = sum(bool(flags & field) for field in FIELDS)
            if 4 * count * width > until - at:
                raise ValueError("more samples than fit into their box")
            values = np.frombuffer(file.read(4 * count * width), ">i4").reshape(count, width)
            offsets.append(values[:, -1].astype(np.int64))
    return track, begin, np.concatenate(offsets)


def _samples(file: BinaryIO, start: int, end: int) -> int:
    """How many samples of a trak lie outside fragments."""
    table = child(file, *child(file, *child(file, start, end, b"mdia"), b"minf"), b"stbl")
    for kind, at, _ in boxes(file, *table):
        if kind in (b"stsz", b"stz2"):
            file.seek(at + 8)
            return int(struct.unpack(">I", file.read(4))[0])
    return 0


def _fragments(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """The content of each moof box, up to where the file is cut short."""
    walk = boxes(file, 0, size)
    while True:
        try:
            kind, start, end = next(walk)
        except (StopIteration, ValueError, struct.error):
            return
        if kind == b"moof":
            yield start, end
