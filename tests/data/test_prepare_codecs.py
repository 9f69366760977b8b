"""Real clips through every class of codec: what comes back lies where the window lay, by PyAV's own timestamps."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from scipy.signal import correlate, resample_poly

from avgen.data.buckets import Shape
from avgen.data.encode import read_media
from avgen.data.manifest import Record, read_manifest
from avgen.data.media import write_clip
from avgen.data.prepare import Place, PrepareConfig, opened, prepare
from avgen.data.store import Store
from avgen.data.verify import decoded
from avgen.data.windows import Cut, WindowRule, WindowShape
from avgen.models.codec_files import CodecConfig, CodecFiles
from avgen.models.embedded_audio import SpectralAudioCodec
from avgen.models.embedded_video import PatchVideoCodec
from tests.models import codec_factory as factory
from tests.train.factory import quiet

MS = 1e-3
SHAPE = WindowShape(64, 64, 8.0, 0.75)
RULE = WindowRule((SHAPE,), most=2, most_upscale=4.0)

Pair = tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]  # picture, sound, what makes the sound heard
PAIRS: dict[str, Pair] = {
    "wan21, oobleck": (factory.wan21, factory.oobleck, lambda: None),
    "wan22, audioldm2": (factory.wan22, factory.audioldm2, factory.hifigan),
    "ltx2": (factory.ltx2_video, factory.ltx2_audio, factory.ltx2_vocoder_with_bwe),
    "patches, mmaudio": (
        lambda: factory.embedded(PatchVideoCodec(4, hidden=8)),
        factory.mmaudio,
        factory.mmaudio_vocoder,
    ),
    "patches, spectra": (
        lambda: factory.embedded(PatchVideoCodec(4, hidden=8)),
        lambda: factory.embedded(SpectralAudioCodec(6, hidden=8, rank=8, refinements=1)),
        lambda: None,
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_windows_come_back_as_long_as_they_were_and_where_they_were(pair, clips_dir, tmp_path):
    picture, sound, vocoder = (make() for make in PAIRS[pair])
    video = CodecFiles(str(factory.saved(picture, tmp_path / "video")))
    audio = CodecFiles(str(factory.saved(sound, tmp_path / "audio", vocoder)))
    config = PrepareConfig(clips_dir, tmp_path / "latents", RULE, CodecConfig(video, audio))
    assert prepare(config, quiet(), Place()) == 0
    store, encoders = Store.open(config.out), opened(config, torch.device("cpu"))
    records = list(read_manifest(clips_dir))
    rows = store.take(range(store.totals.rows), ("clip", "start_s", "bucket", "video_mean", "audio_mean")).to_pylist()
    assert {row["clip"] for row in rows} == set(range(len(records)))
    for row in rows:
        record, shape = records[row["clip"]], store.header.shapes[row["bucket"]]
        assert shape.audio == has_sound(record.path)
        made = decoded(row, shape, store.header, encoders)
        assert made.video_duration_s == pytest.approx(SHAPE.duration_s, abs=MS)
        assert not shape.audio or made.audio_duration_s == pytest.approx(SHAPE.duration_s, abs=MS)
        check_latents(store, row, shape)
    write_clip(tmp_path / "one.mp4", made)
    with av.open(str(tmp_path / "one.mp4")) as container:  # what a player is told
        for stream in container.streams:
            assert float((stream.start_time or 0) * stream.time_base) == pytest.approx(0.0, abs=MS)
            assert float(stream.duration * stream.time_base) == pytest.approx(SHAPE.duration_s, abs=MS)


def check_latents(store: Store, row: dict[str, Any], shape: Any) -> None:
    """Latents cover the window, from its start to its end, with no step too many."""
    header = store.header
    grids = {"video": (header.video.time, header.frames(shape), shape.fps)}
    if shape.audio:
        grids["audio"] = (header.audio.time, header.samples(shape), header.audio.sample_rate_hz)
    for name, (grid, units, rate) in grids.items():
        size = header.video_shape(shape) if name == "video" else header.audio_shape(shape)
        assert len(row[f"{name}_mean"]) == 2 * np.prod(size)
        begin = grid.units(size[1] - 1) / rate if size[1] > 1 else 0.0
        assert begin < SHAPE.duration_s <= grid.units(size[1]) / rate + MS
        assert units / rate == pytest.approx(SHAPE.duration_s, abs=MS)


@pytest.mark.parametrize("start_s", [0.0, 0.4])
def test_what_codecs_are_given_is_what_pyav_shows_then(start_s, clips_dir, tmp_path):
    """The same instants found without the media layer: frames by pts, sound placed by pts."""
    video = CodecFiles(str(factory.saved(factory.embedded(PatchVideoCodec(4, hidden=8)), tmp_path / "video")))
    sound = factory.embedded(SpectralAudioCodec(6, hidden=8, rank=8, refinements=1))
    audio = CodecFiles(str(factory.saved(sound, tmp_path / "audio")))
    config = PrepareConfig(clips_dir, tmp_path / "latents", RULE, CodecConfig(video, audio))
    header = opened(config, torch.device("cpu")).header(RULE, {}, {})
    told_apart = 0
    for record in read_manifest(clips_dir):
        begin = Fraction(start_s).limit_denominator(1000) + Fraction(3, 10)
        shown = frames_by_pts(record)
        shape = Shape(*own_size(record.path), SHAPE.fps, SHAPE.duration_s, has_sound(record.path))
        media = read_media(record, Cut(0, begin), shape, header)
        lie = [pts for pts, _ in shown]
        for i, frame in enumerate(media.frames):
            middle = float(begin) + (i + 0.5) / shape.fps
            at = max(k for k, pts in enumerate(lie) if pts <= middle)
            near = {k: apart(frame[::4, ::4], shown[k][1]) for k in range(max(0, at - 3), min(len(lie), at + 4))}
            assert near[at] <= min(near.values()) + 0.1, (record.name, i, near)
            told_apart += sorted(near.values())[1] > near[at] + 0.2
        if shape.audio:
            rate = header.audio.sample_rate_hz
            wave = placed_sound(record, rate)
            first = round(float(begin) * rate)
            wanted = wave[first : first + media.wave.shape[1]]
            lags = correlate(media.wave.mean(0), wanted, mode="full")
            lag = int(np.argmax(lags)) - (len(wanted) - 1)
            assert abs(lag) / rate <= MS, (record.name, lag)
    assert told_apart > 30  # most of the clips move, so a frame too early or late would be seen


def has_sound(path: Path) -> bool:
    with av.open(str(path)) as container:
        return bool(container.streams.audio)


def own_size(path: Path) -> tuple[int, int]:
    """At which nothing is scaled."""
    with av.open(str(path)) as container:
        return container.streams.video[0].height, container.streams.video[0].width


def apart(frame: np.ndarray, luma: np.ndarray) -> float:
    """What no weights of red, green and blue explain of a picture's luma: so the colour matrix has no part in it."""
    rgb = np.column_stack([frame.reshape(-1, 3), np.ones(luma.size)])
    weights, *_ = np.linalg.lstsq(rgb, luma.ravel(), rcond=None)
    return float(np.abs(rgb @ weights - luma.ravel()).mean())


def frames_by_pts(record: Record, until_s: float = 2.0) -> list[tuple[float, np.ndarray]]:
    """(pts in seconds, every fourth pixel's luma) of every frame that begins before."""
    found = []
    with av.open(str(record.path)) as container:
        for frame in container.decode(video=0):
            if frame.time > until_s:
                break
            luma = frame.to_ndarray(format="yuv420p")[: frame.height, : frame.width]
            found.append((frame.time, luma[::4, ::4].astype(np.float64)))
    return found


def placed_sound(record: Record, rate: int, until_s: float = 2.0) -> np.ndarray:
    """Mono, every decoded piece where its pts says, at another rate."""
    with av.open(str(record.path)) as container:
        own = container.streams.audio[0].rate
        wave = np.zeros(round((until_s + 1) * own), np.float32)
        for frame in container.decode(audio=0):
            if frame.time > until_s:
                break
            piece = frame.to_ndarray().astype(np.float32).reshape(-1, frame.samples).mean(0)
            at = round(frame.time * own)
            piece = piece[max(0, -at) :]
            wave[max(0, at) : max(0, at) + len(piece)] = piece
    ratio = Fraction(rate, own)
    return resample_poly(wave, ratio.numerator, ratio.denominator)
