"""Clips to files: H.264 + AAC in mp4 with exact times, and wav. A file appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avgen.data.media.sound import resample
from avgen.data.media.source import exact_fps
from avgen.types import Clip

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import OutputContainer
    from av.video.stream import VideoStream

SUFFIXES = (".mp4", ".m4v", ".mov", ".m4a")
AAC_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


@dataclass(frozen=True)
class Film:
    """A picture in pieces, for what is too long to be held at once."""

    pieces: Iterable[np.ndarray]  # each (T, H, W, 3) uint8, of one size
    fps: float


def write_clip(
    path: str | Path,
    clip: Clip,
    *,
    film: Film | None = None,
    crf: int = 18,
    preset: str = "veryfast",
    audio_bitrate: int | None = None,
    comment: str | None = None,
) -> None:
    """H.264 (yuv420p, BT.709) and AAC in mp4, both streams starting at 0 whatever clip.start_s is.

    H.264 4:2:0 has no odd sizes: an odd edge is repeated once, so 33x47 is stored as 34x48. Rates that AAC
    lacks are resampled to the next one it has. `film` is the picture of a clip without one. `comment` is kept in the
    file's metadata (provenance).
    """
    import av

    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: write_clip makes {', '.join(SUFFIXES)}; change the suffix")
    if clip.video is not None and film is not None:
        raise ValueError(f"{path}: the clip has a picture and film is another: leave one out")
    if clip.video is None and clip.audio is None and film is None:
        raise ValueError(f"{path}: the clip has neither video nor audio, there is nothing to write")
    if clip.video is not None and clip.fps is not None:
        film = Film((clip.video,), clip.fps)
    _check(path, clip)
    pieces = None if film is None else _checked(path, film)
    with (
        _whole(path) as partial,
        av.open(f"file:{partial}", "w", format="mp4", options={"movflags": "+faststart"}) as out,
    ):
        if comment is not None:
            out.metadata["comment"] = comment
        video, images = None, None
        if film is not None and pieces is not None:
            first = next(pieces)
            video = _video_stream(out, first.shape[1:3], film.fps, crf, preset)
            images = chain(first, chain.from_iterable(pieces))
            del first  # or it would be held to the end
        audio, wave = (None, None) if clip.audio is None else _audio_stream(out, clip, audio_bitrate)
        if video is not None and images is not None:
            _encode_video(out, video, images)
        if audio is not None and wave is not None:
            _encode_audio(out, audio, wave)


def write_wav(path: str | Path, audio: np.ndarray, sample_rate_hz: int, *, bits: int = 16) -> None:
    """(channels, S) float32 in [-1, 1] to wav: 16 bits (clipped, rounded) or 32 (float, as it is)."""
    from scipy.io import wavfile

    path = Path(path)
    wave = np.asarray(audio)
    if wave.ndim != 2 or wave.shape[1] == 0 or wave.dtype.kind != "f":
        raise ValueError(f"{path}: audio must be (channels, samples) floats, not {wave.dtype} of shape {wave.shape}")
    if bits not in (16, 32):
        raise ValueError(f"bits={bits} must be 16 or 32")
    data = wave.T.astype(np.float32)
    if bits == 16:
        data = np.clip(np.rint(data * 32768), -32768, 32767).astype(np.int16)
    with _whole(path) as partial:
        wavfile.write(partial, sample_rate_hz, data)


def _checked(path: Path, film: Film) -> Iterator[np.ndarray]:
    """The pieces, at least one."""
    size = None
    for piece in film.pieces:
        if piece.ndim != 4 or piece.shape[-1] != 3 or piece.dtype != np.uint8 or 0 in piece.shape:
            raise ValueError(
                f"{path}: video must be (frames, height, width, 3) uint8, not {piece.dtype} of shape {piece.shape}"
            )
        if size is not None and piece.shape[1:3] != size:
            raise ValueError(f"{path}: a piece of the film has the size {piece.shape[1:3]}, those before it {size}")
        size = piece.shape[1:3]
        yield piece
        del piece  # or it would be held while the next is read
    if size is None:
        raise ValueError(f"{path}: the film has no piece, there is nothing to write")


def _check(path: Path, clip: Clip) -> None:
    if clip.audio is None:
        return
    if clip.audio.ndim != 2 or clip.audio.shape[1] == 0 or clip.audio.dtype.kind != "f":
        raise ValueError(
            f"{path}: audio must be (channels, samples) floats, not {clip.audio.dtype} of shape {clip.audio.shape}"
        )
    if len(clip.audio) not in LAYOUTS:
        raise ValueError(f"{path}: {len(clip.audio)} audio channels cannot be written: mix to 1, 2 or 6")
    if not np.isfinite(clip.audio).all():
        raise ValueError(f"{path}: the audio holds NaN or infinity")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to write beside `path` that takes its name only when everything is in it."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _video_stream(out: OutputContainer, size: tuple[int, int], rate_hz: float, crf: int, preset: str) -> VideoStream:
    fps = exact_fps(rate_hz)
    stream = out.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": preset})
    height, width = size
    stream.height, stream.width = height + height % 2, width + width % 2
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.time_base = 1 / fps
    context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
    context.color_range = 1  # limited
    return stream


def _encode_video(out: OutputContainer, stream: VideoStream, images: Iterable[np.ndarray]) -> None:
    import av
    from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

    reformatter = VideoReformatter()
    flags = int(Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP)
    for index, image in enumerate(images):
        height, width = image.shape[:2]
        even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(even), "rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range="MPEG",
            interpolation=flags,
            threads=1,
        )
        frame.pts, frame.time_base = index, stream.codec_context.time_base
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def _audio_stream(out: OutputContainer, clip: Clip, bitrate: int | None) -> tuple[AudioStream, np.ndarray]:
    """The AAC stream and the wave at a rate that AAC has."""
    assert clip.audio is not None
    assert clip.sample_rate_hz is not None
    rate = next((r for r in AAC_RATES_HZ if r >= clip.sample_rate_hz), AAC_RATES_HZ[-1])
    wave = clip.audio.astype(np.float32)
    if rate != clip.sample_rate_hz:
        count = round(Fraction(wave.shape[1] * rate, clip.sample_rate_hz))
        wave = resample(wave, Fraction(0), count, clip.sample_rate_hz, rate)
    # Noise substitution would sound the same but be other noise each time, depending on where decoding begins.
    stream = out.add_stream("aac", rate=rate, options={"aac_pns": "0"})
    stream.layout = LAYOUTS[len(wave)]
    stream.format = "fltp"
    # Above about 6 bits a sample the encoder gains nothing and refuses.
    stream.bit_rate = min(bitrate or 64_000 + 64_000 * len(wave), 6 * rate * len(wave))
    return stream, np.clip(wave, -1, 1)


def _encode_audio(out: OutputContainer, stream: AudioStream, wave: np.ndarray) -> None:
    """Sample j gets pts j; the encoder's priming gets negative times, which the muxer turns into an edit list."""
    import av

    for begin in range(0, wave.shape[1], 1024):
        part = np.ascontiguousarray(wave[:, begin : begin + 1024])
        frame = av.AudioFrame.from_ndarray(part, "fltp", layout=stream.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = stream.rate, begin, Fraction(1, stream.rate)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
