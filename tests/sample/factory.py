"""A whole pipeline too small to make anything but noise, and files to hand it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from avgen.data.media import write_clip
from avgen.models.architecture import BridgeConfig, ModelConfig, TextConfig, TowerConfig
from avgen.models.dit import AVTransformer
from avgen.models.embedded_audio import SpectralAudioCodec
from avgen.models.embedded_video import PatchVideoCodec
from avgen.sample.pipeline import AVPipeline
from avgen.types import Clip
from tests.models.factory import scatter

MODEL = ModelConfig(
    TowerConfig(channels=4, width=24, heads=2, depth=2),
    TowerConfig(channels=6, width=24, heads=2, depth=2),
    TextConfig(width=16, depth=1, heads=2, max_length=64),
    BridgeConfig(heads=2, head_dim=12),
)


def pipeline(seed: int = 0, **form: float) -> AVPipeline:
    """No weight is zero, so that captions, levels and the other modality all matter."""
    torch.manual_seed(seed)
    model = scatter(AVTransformer.of(MODEL).eval(), seed)
    video = PatchVideoCodec(4, hidden=8).eval()
    audio = SpectralAudioCodec(6, hidden=8, rank=8, refinements=1).eval()
    for codec in (video, audio):
        scatter(codec, seed)
        codec.components.basis.normal_(generator=torch.Generator().manual_seed(seed)).mul_(0.05)
        codec.requires_grad_(False)
    return AVPipeline(model, video, audio, **{"height": 16, "width": 16, "fps": 8.0, "duration_s": 1.0, **form})


def clip(duration_s: float = 1.0, fps: float = 8.0, height: int = 16, width: int = 16, rate_hz: int = 16000) -> Clip:
    """Smooth motion and a tone, so that files of it are small and their codecs faithful."""
    t = np.arange(round(duration_s * fps))[:, None, None] / fps
    y, x = np.mgrid[:height, :width]
    picture = 128 + 100 * np.sin(2 * np.pi * (t + x / width + 0.3 * y / height))
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(duration_s * rate_hz)) / rate_hz)
    video = np.repeat(picture[..., None], 3, axis=-1).astype(np.uint8)
    return Clip(video, wave[None].astype(np.float32), fps, rate_hz)


def files(folder: Path, **form: float) -> dict[str, Path]:
    """An image, a video with sound, the same without, and the sound alone."""
    made = clip(**form)
    paths = {
        "image": folder / "in.png",
        "video": folder / "in.mp4",
        "mute": folder / "mute.mp4",
        "audio": folder / "in.m4a",
    }
    Image.fromarray(made.video[0]).save(paths["image"])
    write_clip(paths["video"], made)
    write_clip(paths["mute"], Clip(made.video, None, made.fps, None))
    write_clip(paths["audio"], Clip(None, made.audio, None, made.sample_rate_hz))
    return paths
