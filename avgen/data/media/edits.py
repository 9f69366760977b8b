"""Edit lists of mp4 and mov, read from the file itself.

FFmpeg applies them by whole frames and then moves the first frame it kept to the start, so a list that begins
within a frame puts picture and sound apart by up to a frame. An edit is only a shift and two cuts: we do that exactly.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

NORMAL_RATE = 1 << 16


@dataclass(frozen=True)
class Edit:
    """What a track's edit list does to its media times."""

    shift: Fraction  # presentation time - media time, in seconds
    start: Fraction  # presentation times outside [start, end) are not shown
    end: Fraction | None  # None = until the media ends


def read_edits(path: Path) -> dict[int, Edit] | None:
    """Track id -> its edit, of picture and sound. None where there is nothing to apply or more than one piece."""
    with path.open("rb") as file:
        try:
            return _movie(file, path.stat().st_size)
        except (struct.error, ValueError, ZeroDivisionError):
            return None  # not an ISO file, or a broken one, about which FFmpeg has more to say


def _movie(file: BinaryIO, size: int) -> dict[int, Edit] | None:
    moov = child(file, 0, size, b"moov")
    scale, tracks = None, []
    for kind, start, end in boxes(file, *moov):
        if kind == b"mvhd":
            scale = _timescale(file, start)
        elif kind == b"trak":
            tracks.append((start, end))
    if scale is None:
        return None
    edits = {}
    for start, end in tracks:
        header, _ = child(file, start, end, b"tkhd")
        file.seek(header)
        version = file.read(1)[0]
        file.seek(header + (20 if version else 12))
        (track,) = struct.unpack(">I", file.read(4))
        media = child(file, start, end, b"mdia")
        if _handler(file, *media) not in (b"vide", b"soun"):  # chapters, subtitles: nothing here is cut by their lists
            continue
        edit = _edit(file, start, end, scale, _timescale(file, child(file, *media, b"mdhd")[0]))
        if edit is None:
            return None
        edits[track] = edit
    return edits


def _edit(file: BinaryIO, start: int, end: int, movie_scale: int, media_scale: int) -> Edit | None:
    edts = next(((s, e) for kind, s, e in boxes(file, start, end) if kind == b"edts"), None)
    entries = [] if edts is None else _entries(file, *child(file, *edts, b"elst"))
    pieces = [entry for entry in entries if entry[1] >= 0]
    if not pieces:
        return Edit(Fraction(0), Fraction(0), None)
    if len(pieces) > 1 or entries[-1] != pieces[0] or pieces[0][2] != NORMAL_RATE:
        return None
    empty = Fraction(sum(duration for duration, media, _ in entries if media < 0), movie_scale)
    duration, media_time, _ = pieces[0]
    # The length is rounded to the movie's ticks: one more cuts nothing that was meant to stay.
    until = empty + Fraction(duration + 1, movie_scale) if duration else None
    return Edit(empty - Fraction(media_time, media_scale), empty, until)


def _entries(file: BinaryIO, start: int, end: int) -> list[tuple[int, int, int]]:
    """(duration in movie ticks, media time or -1 for nothing, rate) of each line of an elst box."""
    file.seek(start)
    version, count = struct.unpack(">B3xI", file.read(8))
    form = ">QqI" if version else ">IiI"
    length = struct.calcsize(form)
    if count * length > end - start - 8:
        raise ValueError("more edits than fit into their box")
    return [struct.unpack(form, file.read(length)) for _ in range(count)]


def _handler(file: BinaryIO, start: int, end: int) -> bytes:
    """Of which kind a track is."""
    file.seek(child(file, start, end, b"hdlr")[0] + 8)
    return file.read(4)


def _timescale(file: BinaryIO, start: int) -> int:
    """Ticks per second out of an mvhd or mdhd box."""
    file.seek(start)
    version = file.read(1)[0]
    file.seek(start + (20 if version else 12))
    (scale,) = struct.unpack(">I", file.read(4))
    if scale == 0:
        raise ValueError("a timescale of 0")
    return int(scale)


def child(file: BinaryIO, start: int, end: int, name: bytes) -> tuple[int, int]:
    for kind, first, last in boxes(file, start, end):
        if kind == name:
            return first, last
    raise ValueError(f"no {name!r} box")


def boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, start and end of the content) of each box between two offsets."""
    while start + 8 <= end:
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            (size,) = struct.unpack(">Q", file.read(8))
            head = 16
        elif size == 0:
            size = end - start
        if size < head or start + size > end or not kind.strip().isalnum():
            raise ValueError(f"a broken box at {start}")
        yield kind, start + head, start + size
        start += size
