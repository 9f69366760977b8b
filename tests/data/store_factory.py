"""Small stores for tests: of random latents, or of toybox clips through their codecs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avgen.data.buckets import Shape
from avgen.data.store import NUMBERS, Header, Store
from avgen.data.store_write import Notes, StoreWriter, row_batch
from avgen.data.toybox_source import ToyboxSource
from avgen.types import AudioGeometry, TimeGrid, VideoGeometry

VIDEO = VideoGeometry(channels=6, time=TimeGrid(2, 2), space_stride=8)
AUDIO = AudioGeometry(channels=5, time=TimeGrid(640, 640), sample_rate_hz=16000)
BOTH = Shape(16, 16, 8.0, 1.0)
WIDE = Shape(16, 32, 8.0, 1.0)
MUTE = Shape(16, 16, 8.0, 1.0, audio=False)
BLIND = Shape(None, None, None, 1.0)


def header(shapes: Sequence[Shape] = (BOTH,), **changes: Any) -> Header:
    made_by = {"video": "v", "audio": "a", "text": "", "windows": "w", "clips": "c"}
    return Header(made_by | changes.pop("made_by", {}), tuple(shapes), VIDEO, AUDIO, **changes)


def row(head: Header, number: int, bucket: int = 0, std: float | None = 0.1, **changes: Any) -> dict[str, Any]:
    """Random latents that depend on the number alone."""
    rng = np.random.default_rng(number)
    shape = head.shapes[bucket]
    made: dict[str, Any] = {
        "clip": number,
        "path": f"clips/{number}.mp4",
        "start_s": 0.5 * number,
        "bucket": bucket,
        "captions": json.dumps([f"caption {number}"]),
        "tags": "[]",
    }
    sizes = {"video": head.video_shape(shape) if shape.height else None}
    sizes["audio"] = head.audio_shape(shape) if shape.audio else None
    for name, size in sizes.items():
        if size is not None:
            made[f"{name}_mean"] = rng.standard_normal(size).astype(NUMBERS).tobytes()
            if std is not None:
                made[f"{name}_std"] = np.full(size, std, NUMBERS).tobytes()
    return made | changes


def write_store(folder: Path, head: Header, rows: Sequence[Mapping[str, Any]], per_shard: int = 8) -> Store:
    chunks = [rows[i : i + per_shard] for i in range(0, len(rows), per_shard)]
    writer = StoreWriter.begin(folder, head, len(chunks))
    for number, chunk in enumerate(chunks):
        writer.write(number, batches(head, chunk), Notes())
    writer.commit()
    return Store.open(folder)


def batches(head: Header, rows: Sequence[Mapping[str, Any]], size: int = 3) -> Iterator[Any]:
    for first in range(0, len(rows), size):
        yield row_batch(head, list(rows[first : first + size]))


def toybox_store(folder: Path, source: ToyboxSource, count: int) -> Store:
    """The first clips of a toybox source, as its codecs encode them."""
    shape = source.shape
    head = header((shape,), made_by={"video": source.video.fingerprint, "audio": source.audio.fingerprint})
    head = replace(head, video=source.video.geometry, audio=source.audio.geometry)
    rows = []
    for i in range(count):
        item = source.world[i]
        video = source.video.encode(torch.from_numpy(item.clip.video)[None]).mean
        audio = source.audio.encode(torch.from_numpy(item.clip.audio)[None]).mean
        made = {"clip": i, "path": f"{i}.mp4", "start_s": 0.0, "bucket": 0, "tags": "[]"}
        made |= {"captions": json.dumps([item.caption])}
        made |= {f"{m}_mean": x.numpy().astype(NUMBERS).tobytes() for m, x in (("video", video), ("audio", audio))}
        rows.append(made)
    return write_store(folder, head, rows, per_shard=7)
