"""Opening media files: what a file holds, on which clock, and one clear error when it cannot be read.

The only module that knows container families. PyAV is imported when a file is opened, not before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avgen.data.media.edits import Edit, read_edits
from avgen.data.media.fragments import Fragmented, read_fragmented

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

# Playlists, device grabbers and text renderers would let a stray file name another one, or turn a log into a film.
FORMATS = (
    "mov,matroska,avi,flv,mpegts,mpeg,ogg,wav,w64,flac,mp3,aac,ac3,eac3,aiff,caf,asf,mxf,nut,gif,apng,ivf,"
    "m4v,h264,hevc,mpegvideo,image2,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
# These carry a zero of their own; everywhere else the clock starts with the first thing presented.
OWN_ZERO = ("mov", "matroska")
# Timestamps survive a seek here; elsewhere (MP3, ADTS) they are guessed from the bit rate: read from the top.
SEEKABLE = ("mov", "matroska", "mpegts", "avi", "wav", "flac", "nut")
RATES_HZ = range(1_000, 768_001)
Span = tuple[int, int]
NTSC = (24, 30, 48, 60, 120)


class MediaError(ValueError):
    """A file that cannot give what was asked. The message names the file and the reason."""


@dataclass(frozen=True)
class VideoInfo:
    """The picture as it is shown: sizes are after rotation and with square pixels."""

    width: int
    height: int
    fps: Fraction  # average
    variable: bool  # frame intervals differ by more than the container's rounding
    rotation_deg: int  # clockwise turn that the file asks of the player, already counted in width and height
    codec: str
    pixel_format: str
    start_s: float
    duration_s: float | None  # None where the container does not say


@dataclass(frozen=True)
class AudioInfo:
    sample_rate_hz: int
    channels: int
    layout: str
    codec: str
    sample_format: str
    start_s: float
    duration_s: float | None


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds. Times are on the file's presentation clock."""

    container: str
    start_s: float
    end_s: float
    video: VideoInfo | None
    audio: AudioInfo | None
    comment: str | None

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    def end_of(self, stream: VideoInfo | AudioInfo) -> float:
        """When one stream ends, which the other may outlast; of one that does not say so when the file does."""
        return self.end_s if stream.duration_s is None else stream.start_s + stream.duration_s


def exact_seconds(seconds: float | Fraction) -> Fraction:
    """Seconds as a fraction, so that 3 / 29.97 is the frame time that was meant and not its nearest float.

    A fraction is exact already: to round the ends of a window would change how many frames lie between them.
    """
    return seconds if isinstance(seconds, Fraction) else Fraction(seconds).limit_denominator(10_000_000)


def exact_fps(fps: float | Fraction) -> Fraction:
    """A frame rate as a fraction: 23.976 is 24000/1001, as broadcast means it."""
    if not 0 < fps <= 1000:
        raise ValueError(f"fps={fps} must lie in (0, 1000]")
    for whole in NTSC:
        if abs(float(fps) - whole * 1000 / 1001) < 0.005:
            return Fraction(whole * 1000, 1001)
    return Fraction(fps).limit_denominator(1001)


@dataclass
class Counter:
    """What a read takes, as it goes."""

    packets: int = 0
    frames: int = 0


class Source:
    """One open file. `rewind` gives it back as if just opened: seeking to 0 would lose the codec's priming."""

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        self.path = Path(path)
        self.threads = threads
        self._untouched = True
        self._check()
        self.edits = read_edits(self.path)
        self.late: dict[int, int] = {}  # ticks by which FFmpeg says a stream's times later than the file does
        self.container = self._open()
        family = self.container.format.name
        self.is_mov = family.startswith("mov")
        if self.is_mov and (fragmented := read_fragmented(self.path)):
            self.late = self._lateness(fragmented)
        self.seekable = family.startswith(SEEKABLE)
        self.zero = Fraction(0) if family.startswith(OWN_ZERO) else self._first_start()

    def close(self) -> None:
        self.container.close()

    def error(self, reason: str) -> MediaError:
        return MediaError(f"{self.path}: {reason}")

    def rewind(self) -> None:
        if not self._untouched:
            self.container.close()
            self.container = self._open()

    def select(self, wanted: Sequence[Any]) -> None:
        """Read only these streams from now on: packets of the others are not even fetched from disk."""
        from av.stream import Discard

        self._untouched = False
        for stream in self.container.streams:
            stream.discard = Discard.default if stream in wanted else Discard.all

    @property
    def video(self) -> Any:
        """The first moving picture that can be decoded, or None; cover art is not one."""
        for stream in self.container.streams.video:
            if stream.codec_context is not None and not stream.disposition & 1024:
                return stream
        return None

    @property
    def audio(self) -> Any:
        """The first sound that can be decoded, or None."""
        for stream in self.container.streams.audio:
            if stream.codec_context is not None:
                return stream
        return None

    @property
    def sample_rate_hz(self) -> int:
        rate = int(self.audio.codec_context.sample_rate)
        if rate not in RATES_HZ:
            raise self.error(f"claims a sample rate of {rate} Hz, outside {RATES_HZ[0]}..{RATES_HZ[-1]}")
        return rate

    def time(self, stream: Any, ticks: int) -> Fraction:
        """Seconds on the clock of one of the stream's own times."""
        return ticks * stream.time_base + self._shift(stream)

    def ticks(self, stream: Any, time: Fraction) -> int:
        """The stream's own time at, or the last before, a time on the clock."""
        return floor((time - self._shift(stream)) / stream.time_base)

    def shown(self, stream: Any) -> tuple[Fraction, Fraction | None]:
        """The part of the clock to which the edit list cuts the stream; an end of None is open."""
        edit = self._edit(stream)
        return (edit.start, edit.end) if edit is not None else (Fraction(-(10**9)), None)

    def start(self, stream: Any) -> Fraction:
        """When the stream's first unit is presented."""
        return max(self.shown(stream)[0], _stream_start(stream) + self._shift(stream))

    def claimed_end(self, stream: Any) -> Fraction | None:
        """Where the header says the stream ends; None where it does not say."""
        if self.is_mov and stream.duration:
            end = _stream_start(stream) + stream.duration * stream.time_base + self._shift(stream)
            cut = self.shown(stream)[1]
            return end if cut is None else min(end, cut)
        tag = _tagged_seconds(stream.metadata)
        total = self.container_end()
        return min(tag, total) if tag is not None and total is not None else None

    def container_end(self) -> Fraction | None:
        """Where the header says the whole file ends."""
        if self.is_mov:
            ends = [self.claimed_end(s) for s in (self.video, self.audio) if s is not None and s.duration]
            return max((end for end in ends if end is not None), default=None)
        if self.container.duration is None:
            return None
        said = Fraction(self.container.duration, 1_000_000) - self.zero
        writer = next((text for name, text in self.container.metadata.items() if name.lower() == "encoder"), "")
        if self.container.format.name.startswith("matroska") and writer.startswith("Lavf"):
            return said  # FFmpeg writes when the last frame ends, others how long all of it lasts
        return said + Fraction(self.container.start_time or 0, 1_000_000)

    def _edit(self, stream: Any) -> Edit | None:
        return self.edits.get(stream.id) if self.edits and self.is_mov else None

    def _shift(self, stream: Any) -> Fraction:
        edit = self._edit(stream)
        shift = -self.zero if edit is None else edit.shift
        return shift - self.late[stream.index] * stream.time_base if stream.index in self.late else shift

    def _lateness(self, fragmented: dict[int, Fragmented]) -> dict[int, int]:
        """From the first packet of each stream: some files have an index by which FFmpeg gets the times right."""
        import av

        late: dict[int, int] = {}
        for kind in ("video", "audio"):
            stream = getattr(self, kind)
            track = None if stream is None else fragmented.get(stream.id)
            if track is None:
                continue
            index = stream.index
            self.select([stream])
            try:
                said = next((packet.pts for packet in self.container.demux(stream) if packet.pts is not None), None)
            except av.FFmpegError as error:
                raise self.error(f"is damaged: {_reason(error)}") from error
            self.rewind()  # which ends the life of `stream`
            if track.steady and said in (None, track.first):
                continue
            if not track.steady or said != track.first + track.delay or self.edits is None:
                raise self.error(
                    f"has fragments whose {kind} FFmpeg reads late, and not all of them alike: write it without "
                    "fragments where it was made (FFmpeg itself, copying it, would keep the error)"
                )
            late[index] = track.delay
        return late

    def _check(self) -> None:
        if self.path.is_dir():
            raise self.error("is a directory, not a media file")
        if not self.path.exists():
            raise self.error("does not exist")
        if self.path.stat().st_size == 0:
            raise self.error("is empty (0 bytes)")

    def _open(self) -> InputContainer:
        import av

        options = {"format_whitelist": FORMATS}
        if self.edits is not None:
            options["ignore_editlist"] = "1"
        try:
            # The explicit protocol keeps a colon in a file name from being read as one.
            container = av.open(f"file:{self.path}", container_options=options, metadata_errors="replace")
        except (av.FFmpegError, OSError) as error:
            raise self.error(f"cannot be opened as media: {_reason(error)}") from error
        self._untouched = True
        if not (container.streams.video or container.streams.audio):
            container.close()
            raise self.error("holds neither picture nor sound")
        return container

    def _first_start(self) -> Fraction:
        streams = (*self.container.streams.video, *self.container.streams.audio)
        return min((_stream_start(s) for s in streams if s.start_time is not None), default=Fraction(0))


@contextmanager
def open_source(path: str | Path, threads: int = 0) -> Iterator[Source]:
    """A Source whose every native error becomes a MediaError that names the file."""
    import av

    source = Source(path, threads)
    try:
        yield source
    except MediaError:
        raise
    except MemoryError as error:  # FFmpeg's too
        raise source.error(
            f"takes more memory than there is ({_reason(error)}): read less of it, or smaller"
        ) from error
    except av.FFmpegError as error:
        raise source.error(f"is damaged: {_reason(error)}") from error
    finally:
        source.close()


def probe(path: str | Path) -> MediaInfo:
    """What a file holds. Decodes one frame (rotation is only known then) and looks at up to 120 frame times."""
    with open_source(path) as source:
        audio = None if source.audio is None else _audio_info(source)
        video = None if source.video is None else _video_info(source)
        present = [s for s in (source.video, source.audio) if s is not None]
        if not present:
            raise source.error("holds no stream that can be decoded")
        start = min(source.start(s) for s in present)
        ends = [e for e in (source.claimed_end(s) for s in present) if e is not None]
        total = source.container_end()
        ends += [] if total is None else [total]
        end = max(ends) if ends else scanned_end(source)
        comment = source.container.metadata.get("comment") or source.container.metadata.get("COMMENT")
        return MediaInfo(source.container.format.name, float(start), float(end), video, audio, comment)


def orientation(frame: Any) -> tuple[bool, bool, bool]:
    """(transpose, then flip rows, then flip columns) that puts a decoded frame the way it is meant to be seen."""
    import numpy as np
    from av.sidedata.sidedata import Type

    for item in frame.side_data:
        if item.type is Type.DISPLAYMATRIX:
            a, b, _, c, d = np.frombuffer(bytes(item), np.int32)[:5].tolist()
            # Where the picture's x and y axes go; only the eight right-angled answers have a meaning here.
            transposed = abs(b) + abs(c) > abs(a) + abs(d)
            return (True, b < 0, c < 0) if transposed else (False, d < 0, a < 0)
    return False, False, False


def display_size(frame: VideoFrame, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """(height, width) with square pixels, before rotation."""
    aspect = pixel_aspect or Fraction(1)
    if not Fraction(1, 8) <= aspect <= 8:
        aspect = Fraction(1)
    return frame.height, max(1, round(frame.width * aspect))


def refuse_truncation(source: Source, stream: Any, reached: Fraction, wanted: Fraction) -> None:
    """A stream that stops before its header says so, inside the window, has lost data."""
    claimed = source.claimed_end(stream)
    if claimed is None:
        return
    missing_from = max(reached, source.start(stream))
    if missing_from < min(claimed, wanted) - Fraction(1, 4):
        what = "picture" if stream.type == "video" else "sound"
        raise source.error(
            f"is truncated: the header promises {what} until {float(claimed):.3f} s, it stops at {float(reached):.3f} s"
        )


def _audio_info(source: Source) -> AudioInfo:
    stream = source.audio
    context = stream.codec_context
    start, end = source.start(stream), source.claimed_end(stream)
    return AudioInfo(
        sample_rate_hz=source.sample_rate_hz,
        channels=context.layout.nb_channels,
        layout=context.layout.name,
        codec=context.codec.canonical_name,  # context.name is the decoder's: libdav1d, mp3float
        sample_format=context.format.name if context.format else "unknown",
        start_s=float(start),
        duration_s=None if end is None else float(end - start),
    )


def _video_info(source: Source) -> VideoInfo:
    source.rewind()
    stream = source.video
    source.select([stream])
    times: list[int] = []
    frame = None
    for packet in source.container.demux(stream):
        if packet.pts is not None:
            times.append(packet.pts)
        if frame is None:
            frame = next(iter(packet.decode()), None)
        if frame is not None and len(times) >= 120:
            break
    if frame is None:
        raise source.error("holds a video stream from which no frame can be decoded")
    times.sort()
    gaps = [b - a for a, b in pairwise(times)]
    transposed, rows_flipped, columns_flipped = orientation(frame)
    height, width = display_size(frame, stream.sample_aspect_ratio)
    turn = {(False, False): 0, (True, True): 180} if not transposed else {(False, True): 90, (True, False): 270}
    start, end = source.start(stream), source.claimed_end(stream)
    return VideoInfo(
        width=height if transposed else width,
        height=width if transposed else height,
        fps=average_fps(stream),
        # Reordering leaves a hole at the cut after 120 packets, and rounding to ticks one of two neighbours.
        variable=bool(gaps) and max(gaps[:100]) - min(gaps[:100]) > 2,
        rotation_deg=turn.get((rows_flipped, columns_flipped), 0),
        codec=stream.codec_context.codec.canonical_name,
        pixel_format=frame.format.name,
        start_s=float(start),
        duration_s=None if end is None else float(end - start),
    )


def average_fps(stream: Any) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    return exact_fps(min(max(rate, Fraction(1, 1000)), Fraction(1000)))


def scanned_end(source: Source) -> Fraction:
    """The end of a file whose header gives no duration (live recordings): the last packet's end."""
    source.rewind()
    source.select(tuple(source.container.streams))
    end = Fraction(0)
    for packet in source.container.demux():
        if packet.pts is not None:
            end = max(end, source.time(packet.stream, packet.pts + (packet.duration or 0)))
    return end


def _stream_start(stream: Any) -> Fraction:
    return Fraction(0) if stream.start_time is None else stream.start_time * stream.time_base


def _tagged_seconds(metadata: dict[str, str]) -> Fraction | None:
    """Matroska's per-track DURATION tag, 00:00:02.023000000."""
    parts = metadata.get("DURATION", "").split(":")
    try:
        hours, minutes, seconds = (Fraction(part) for part in parts)
    except ValueError:
        return None
    return 3600 * hours + 60 * minutes + seconds


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
