"""Made clips to files. What was given whole is copied from its file, packet by packet, where that is possible."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from avgen.data.media import Film, MediaError, open_source, probe, read_clip, unit_count, write_clip
from avgen.sample.inputs import whole
from avgen.sample.pipeline import Made
from avgen.types import Clip

# what players expect to find in an mp4
COPIED_PICTURE = ("h264", "hevc", "av1", "vp9", "mpeg4")
COPIED_SOUND = ("aac", "mp3", "ac3", "eac3", "opus", "alac", "flac")
MOST_APART_S = 0.002  # of a frame's two times: less is rounding to a container's milliseconds
HELD_BYTES = 2**28  # of frames at a time: a minute of 1080p is 11 GB


def suffix(made: Made) -> str:
    return ".m4a" if made.clip.video is None else ".mp4"


def write_made(path: Path, made: Made, comment: str) -> str:
    """Write the clip; says what became of the given stream, "" where there was none."""
    picture_given, sound_given = whole(made.given.task)
    request = made.request
    source = request.video if picture_given else (request.audio or request.video) if sound_given else None
    if source is None or (picture_given and sound_given):
        write_clip(path, made.clip, comment=comment)
        return ""
    kind = "picture" if picture_given else "sound"
    clip = made.clip
    obstacle = why_not_copied(source, kind, clip) or copied(path, clip, source, kind, comment)
    if not obstacle:
        return f"{kind} of {source} copied bit for bit"
    # at least at the file's own size and rate
    film = None
    if kind == "picture":
        film = own_film(source, clip.video_duration_s)
        clip = replace(clip, video=None, fps=None)
    else:
        own = read_clip(source, 0, clip.audio_duration_s, video=False, audio=True, channels=channels_of(source)).clip
        clip = replace(clip, audio=own.audio, sample_rate_hz=own.sample_rate_hz)
    write_clip(path, clip, film=film, comment=comment)
    return f"{kind} of {source} encoded anew: {obstacle}"


def own_film(source: Path, duration_s: float) -> Film:
    """The file's picture at its own size and rate: frame by frame what `read_clip` gives of all of it."""
    video = probe(source).video
    assert video is not None
    fps, count = video.fps, unit_count(0, duration_s, video.fps)
    held = max(1, HELD_BYTES // (3 * video.height * video.width))

    def piece(first: int) -> np.ndarray:
        start, end = Fraction(first) / fps, Fraction(min(first + held, count)) / fps
        # empty: behind the file's last frame, which is held there
        read = read_clip(source, start, end, video=True, audio=False, may_be_empty=True).clip
        assert read.video is not None
        return read.video

    return Film(map(piece, range(0, count, held)), float(fps))


def copied(path: Path, clip: Clip, source: Path, kind: str, comment: str) -> str:
    """Write the clip with the stream's packets; "", or why FFmpeg would not have them: only it knows all its rules."""
    import av

    partial = path.with_name(f".{path.stem}.{os.getpid()}.made{path.suffix}")
    try:
        rest = (
            replace(clip, video=None, fps=None) if kind == "picture" else replace(clip, audio=None, sample_rate_hz=None)
        )
        write_clip(partial, rest, comment=comment)
        try:
            join(source, kind, partial, path, comment)
        except MediaError as error:
            return str(error)
        except av.FFmpegError as error:
            return f"an mp4 does not take its packets ({error.strerror})"
    finally:
        partial.unlink(missing_ok=True)
    return ""


def why_not_copied(source: Path, kind: str, clip: Clip) -> str:
    """The rule that forbids copying the stream's packets; "" where none does."""
    info = probe(source)
    stream = info.video if kind == "picture" else info.audio
    assert stream is not None
    allowed = COPIED_PICTURE if kind == "picture" else COPIED_SOUND
    if stream.codec not in allowed:
        return f"{stream.codec} has no place in an mp4"
    length_s = clip.video_duration_s if kind == "picture" else clip.audio_duration_s
    slack_s = 1 / float(info.video.fps) if kind == "picture" and info.video is not None else 0.05
    if stream.duration_s is None:
        return "it does not say how long it lasts"
    if abs(stream.duration_s - length_s) > slack_s + 0.5 / (clip.fps or 8.0):
        return f"it lasts {stream.duration_s:.4g} s and the clip {length_s:.4g} s"
    return why_at_another_time(source, kind)


def why_at_another_time(source: Path, kind: str) -> str:
    """FFmpeg copies packets by the times that it reads in them, and some files it reads otherwise than the clock does
    by which the clip was made."""
    import av

    with open_source(source) as file:
        stream = file.video if kind == "picture" else file.audio
        if stream.index in file.late:
            return "FFmpeg would put its fragments late"
        if kind == "sound":  # whose first packets only prime the decoder
            return ""
        begins_s, which = file.start(stream), stream.index
    with av.open(f"file:{source}") as container:
        packets = container.demux(container.streams[which])
        shown = [p.pts * p.time_base for p in packets if p.pts is not None and not p.is_discard]
    if shown and abs(min(shown) - begins_s) < MOST_APART_S:
        return ""
    return f"FFmpeg would not show its first frame at {float(begins_s):.3g} s"


def channels_of(source: Path) -> int:
    """Of its sound, as every player plays it: more than two are mixed."""
    sound = probe(source).audio
    assert sound is not None
    return min(sound.channels, 2)


def join(source: Path, kind: str, other: Path, out: Path, comment: str) -> None:
    """One mp4 of a stream of `source` and the other stream of `other`, packets untouched, picture first.

    Like every file here it takes its name when it is whole.
    """
    partial = out.with_name(f".{out.stem}.{os.getpid()}.joined{out.suffix}")
    try:
        _join(source, kind, other, partial, comment)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _join(source: Path, kind: str, other: Path, out: Path, comment: str) -> None:
    import av

    packets: list[tuple[Fraction, int, Any]] = []
    # file:, or what stands before a colon in a name is taken for a protocol
    with (
        av.open(f"file:{source}") as given,
        av.open(f"file:{other}") as made,
        av.open(f"file:{out}", "w", format="mp4", options={"movflags": "+faststart"}) as target,
    ):
        target.metadata["comment"] = comment
        copied = given.streams.video[0] if kind == "picture" else given.streams.audio[0]
        ours = made.streams.audio[0] if kind == "picture" else made.streams.video[0]
        order = [copied, ours] if kind == "picture" else [ours, copied]
        # opaque: the template is that of a decoder, and not every decoder has an encoder of its name
        streams = {id(s): target.add_stream_from_template(s, opaque=s is copied) for s in order}
        for container, stream in ((given, copied), (made, ours)):
            path = source if container is given else other
            packets += [(p.dts * Fraction(p.time_base), id(stream), p) for p in timed(container, stream, path)]
        for _, key, packet in sorted(packets, key=lambda p: p[0]):
            packet.stream = streams[key]
            target.mux(packet)


def timed(container: Any, stream: Any, path: Path) -> list[Any]:
    """All of the stream's packets, each with the times that a muxer needs.

    Matroska keeps no decoding times: FFmpeg works them out, but not of the first packets where frames are reordered.
    Those are decoded one after the other before the first that is known.
    """
    packets = [packet for packet in container.demux(stream) if packet.size]  # the last is empty: it flushes decoders
    known = next((i for i, packet in enumerate(packets) if packet.dts is not None), None)
    if known is None or any(packet.pts is None or packet.dts is None for packet in packets[known:]):
        raise MediaError(f"{path}: its packets do not say when they are decoded and shown")
    at = packets[known].dts
    for packet in reversed(packets[:known]):
        at -= packet.duration or 0
        if not packet.duration or packet.pts is None or packet.pts < at:
            raise MediaError(f"{path}: its first packets do not say when they are decoded")
        packet.dts = at
    return packets
