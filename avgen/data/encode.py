"""Clips to rows of a store: media read by timestamps, through the codecs, with the captions that are true of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avgen.data.buckets import Shape
from avgen.data.manifest import Captions, Record
from avgen.data.media import MediaInfo, Window, probe, read_clip
from avgen.data.media.source import exact_seconds
from avgen.data.store import NUMBERS, Header
from avgen.data.windows import Cut, WindowRule
from avgen.models.codecs import AudioCodec, Posterior, VideoCodec
from avgen.models.text import TextEncoder

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Media:
    """What one window of a clip holds; a stream that its bucket lacks is None."""

    frames: np.ndarray | None  # (T, H, W, 3) uint8
    wave: np.ndarray | None  # (channels, S) float32
    real: str | None  # JSON: seconds of either stream that the file has; None: all


@dataclass(frozen=True)
class Encoders:
    """What turns media and captions into numbers."""

    video: VideoCodec | None
    audio: AudioCodec | None
    text: TextEncoder | None  # None: captions are kept as they are
    device: torch.device

    def header(
        self, rule: WindowRule, made_by: dict[str, str], codec: dict[str, Any], text: dict[str, Any] | None = None
    ) -> Header:
        prints = {name: getattr(self, name).fingerprint for name in ("video", "audio", "text") if getattr(self, name)}
        return Header(
            prints | made_by,
            rule.buckets,
            self.video.geometry if self.video else None,
            self.audio.geometry if self.audio else None,
            self.text.width if self.text else None,
            codec,
            text,
        )

    @torch.no_grad()
    def row(self, number: int, record: Record, cut: Cut, shape: Shape, media: Media) -> dict[str, Any]:
        """A row of the store. Latents that are not finite are refused."""
        told = captions_told(record.captions, shape, cut.whole)
        made: dict[str, Any] = {
            "clip": number,
            "path": str(record.path),
            "start_s": float(cut.start),
            "bucket": cut.bucket,
            "captions": json.dumps(told, ensure_ascii=False),
            "tags": json.dumps(list(record.tags), ensure_ascii=False),
            "real": media.real,
        }
        if media.frames is not None:
            assert self.video is not None
            made |= stored("video", self.video.encode(torch.from_numpy(media.frames)[None].to(self.device)))
        if media.wave is not None:
            assert self.audio is not None
            made |= stored("audio", self.audio.encode(torch.from_numpy(media.wave)[None].to(self.device)))
        if self.text is not None:
            made |= features(self.text, told)
        return made


class NotFinite(ValueError):
    """Latents or features that hold NaN or infinity, or more than a half can."""


def stored(name: str, posterior: Posterior) -> dict[str, bytes]:
    parts = {f"{name}_mean": posterior.mean}
    if posterior.std is not None:
        parts[f"{name}_std"] = posterior.std
    return {column: halves(column, value[0]) for column, value in parts.items()}


def halves(what: str, value: Tensor) -> bytes:
    made = value.float().cpu().numpy().astype(NUMBERS)
    if not np.isfinite(made).all():
        raise NotFinite(f"its {what.replace('_', ' ')} is not finite: the codec cannot encode it")
    return made.tobytes()


def features(encoder: TextEncoder, told: Sequence[str]) -> dict[str, Any]:
    """Features of each caption, without padding, one after the other."""
    texts = [encoder.encode([caption]) for caption in told]
    rows = [text.x[0][text.valid[0]] for text in texts]
    return {"text": halves("text features", torch.cat(rows)), "text_tokens": json.dumps([len(row) for row in rows])}


def captions_told(captions: Captions, shape: Shape, whole: bool) -> list[str]:
    """Texts of which each describes what a row of this shape holds; at least one.

    Where no caption speaks of both streams, one of each is joined; where none speaks of the only stream, that of both
    is told. Words that are spoken follow in quotes, where the window is the `whole` clip: nothing says when each falls.
    """
    seen, heard = shape.height is not None, shape.audio
    if seen and heard:
        told = list(captions.joint) or joined(captions.video, captions.audio)
    else:
        told = list(captions.video if seen else captions.audio) or list(captions.joint)
    if heard and whole and captions.speech:
        told = [f'{text} Speech: "{captions.speech[0]}"'.strip() for text in told or [""]]
    return told or [""]


def joined(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Each of one list with one of the other."""
    if not first or not second:
        return list(first or second)
    count = max(len(first), len(second))
    return [f"{first[i % len(first)]} {second[i % len(second)]}" for i in range(count)]


def looked_at(record: Record) -> tuple[MediaInfo, MediaInfo]:
    """The files of picture and sound, which are one unless the manifest names another for the sound."""
    info = probe(record.path)
    return info, info if record.audio_path is None else probe(record.audio_path)


def read_media(record: Record, cut: Cut, shape: Shape, header: Header) -> Media:
    """A window as its bucket wants it, both streams from the same instant on."""
    end = cut.start + exact_seconds(shape.duration_s)
    size = None if shape.height is None or shape.width is None else (shape.height, shape.width)
    sound = None if header.audio is None or not shape.audio else header.audio
    heard: dict[str, Any] = {}
    if sound is not None:
        heard = {"sample_rate_hz": sound.sample_rate_hz, "channels": sound.audio_channels}
    seen: dict[str, Any] = {} if size is None else {"fps": shape.fps, "size": size}
    if record.audio_path is None or sound is None or size is None:
        path = record.path if record.audio_path is None or sound is None else record.audio_path
        wanted: dict[str, Any] = {"video": size is not None, "audio": sound is not None}
        window = read_clip(path, cut.start, end, **wanted, threads=1, **seen, **heard)
        picture = hearing = window
    else:
        picture = read_clip(record.path, cut.start, end, video=True, audio=False, threads=1, **seen)
        heard |= {"threads": 1, "may_be_empty": True}  # windows are cut by the picture
        hearing = read_clip(record.audio_path, cut.start, end, video=False, audio=True, **heard)
    return Media(picture.clip.video if size else None, hearing.clip.audio if sound else None, real(picture, hearing))


def real(picture: Window, hearing: Window) -> str | None:
    """Which seconds of the window the file has, where it does not have all."""
    spans: dict[str, list[tuple[float, float]]] = {}
    if picture.clip.video is not None and not picture.frame_mask().all():
        spans["video"] = seconds(picture.video_real, picture.clip.fps or 1.0)
    if hearing.clip.audio is not None and not hearing.sample_mask().all():
        spans["audio"] = seconds(hearing.audio_real, hearing.clip.sample_rate_hz or 1)
    return json.dumps(spans) if spans else None


def seconds(spans: Spans, rate: float) -> list[tuple[float, float]]:
    return [(round(first / rate, 9), round(last / rate, 9)) for first, last in spans]
