"""A look at a finished store: some windows decoded back, original and decoded one above the other."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from avgen.data.buckets import Shape
from avgen.data.contact_sheet import stacked, strip
from avgen.data.encode import Encoders, read_media
from avgen.data.manifest import Record, scan_manifest
from avgen.data.media import write_clip
from avgen.data.media.source import exact_seconds
from avgen.data.store import NUMBERS, Header, Store
from avgen.data.windows import Cut
from avgen.types import Clip

COLUMNS = ("clip", "start_s", "bucket", "captions", "video_mean", "audio_mean")
STYLE = "body{background:#18191c;color:#dedee4;font:16px sans-serif;margin:2em}img{max-width:100%}a{color:#7aaad6}"


def verify(store: Store, encoders: Encoders, manifest: Path, count: int, out: Path) -> Path:
    """Write `out`/index.html with sheets and clips of `count` windows spread over the store; its path."""
    out.mkdir(parents=True, exist_ok=True)
    rows = sorted(set(np.linspace(0, store.totals.rows - 1, count).round().astype(int).tolist()))
    found = store.take(rows, COLUMNS).to_pylist()
    wanted = {row["clip"] for row in found}
    records = {i: record for i, record in enumerate(scan_manifest(manifest)) if i in wanted}
    parts = [f"<!doctype html><title>{html.escape(store.path)}</title><style>{STYLE}</style>"]
    parts.append(f"<h1>{html.escape(store.path)}</h1><p>Each window as it was read, and decoded from the store.</p>")
    for number, row in zip(rows, found, strict=True):
        record = records[row["clip"]]
        assert isinstance(record, Record)
        shape = store.header.shapes[row["bucket"]]
        media = read_media(record, Cut(row["bucket"], exact_seconds(row["start_s"])), shape, store.header)
        rate = None if store.header.audio is None or media.wave is None else store.header.audio.sample_rate_hz
        original = Clip(media.frames, media.wave, None if media.frames is None else shape.fps, rate)
        made = decoded(row, shape, store.header, encoders)
        name = f"window_{number:06d}"
        sheet(original, made, json.loads(row["captions"])[0]).save(out / f"{name}.png")
        links = []
        for kind, clip in (("original", original), ("decoded", made)):
            write_clip(out / f"{name}_{kind}.mp4", clip)
            links.append(f'<a href="{name}_{kind}.mp4">{kind}</a>')
        about = f"{record.path.name} at {row['start_s']:g} s{fidelity(original, made)}"
        parts.append(f'<h2>{html.escape(about)}</h2><p>{" ".join(links)}</p><img src="{name}.png">')
    (out / "index.html").write_text("\n".join(parts) + "\n", encoding="utf-8")
    return out / "index.html"


@torch.no_grad()
def decoded(row: Mapping[str, Any], shape: Shape, header: Header, encoders: Encoders) -> Clip:
    """The row's posterior means as media, cut to the window: codecs fill their last step up."""
    frames = wave = rate = None
    if row["video_mean"] is not None and encoders.video is not None:
        latents = numbers(row["video_mean"], header.video_shape(shape)).to(encoders.device)
        frames = encoders.video.decode(latents)[0].cpu().numpy()[: header.frames(shape)]
    if row["audio_mean"] is not None and encoders.audio is not None:
        latents = numbers(row["audio_mean"], header.audio_shape(shape)).to(encoders.device)
        wave = encoders.audio.decode(latents)[0].cpu().numpy()[:, : header.samples(shape)]
        rate = encoders.audio.geometry.sample_rate_hz
    return Clip(frames, wave, None if frames is None else shape.fps, rate)


def numbers(raw: bytes, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(raw, NUMBERS).astype(np.float32).reshape(1, *shape))


def sheet(original: Clip, made: Clip, caption: str) -> Image.Image:
    return stacked([strip(original, f"original: {caption}"), strip(made, "decoded")])


def fidelity(original: Clip, made: Clip) -> str:
    """How near the picture came, in words."""
    if original.video is None or made.video is None:
        return ""
    error = float(np.square(original.video.astype(np.float32) - made.video).mean())
    return ": the same pixels" if error == 0 else f": {10 * math.log10(255**2 / error):.1f} dB"
