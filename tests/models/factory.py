"""Small models and batches for the model's tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from avgen.models.architecture import BridgeConfig, ModelConfig, TextConfig, TowerConfig
from avgen.models.dit import AVTransformer
from avgen.models.text import bytes_of
from avgen.types import AudioGeometry, Batch, Stream, TimeGrid, VideoGeometry

VIDEO = VideoGeometry(channels=6, time=TimeGrid(2, 2), space_stride=8)
AUDIO = AudioGeometry(channels=5, time=TimeGrid(640, 640), sample_rate_hz=16000)


def config(coupling: str = "cross", anchored: bool = False, local: bool = False, **changes: object) -> ModelConfig:
    same, told = coupling == "joint", {"anchored": anchored, "local": local}
    video = TowerConfig(channels=6, width=48, heads=2, depth=3, **told)
    audio = TowerConfig(channels=5, width=48 if same else 32, heads=2, depth=3 if same else 2, **told)
    defaults = ModelConfig(video, audio, TextConfig(width=16, depth=1, heads=2), BridgeConfig(2, 16), coupling)
    return replace(defaults, **changes)


def model(coupling: str = "cross", seed: int = 0, **changes: object) -> AVTransformer:
    """A model none of whose weights is zero, so that nothing is hidden by a closed gate."""
    torch.manual_seed(seed)
    built = AVTransformer.of(config(coupling, **changes)).eval()
    return scatter(built, seed)


def scatter(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module


def batch(
    captions: Sequence[str] = ("a red ball", "a lamp"),
    fps: float = 8.0,
    frames: int = 3,
    rows: int = 2,
    columns: int = 3,
    audio_steps: int = 7,
    start_s: float = 0.0,
    level: float = 0.6,
    seed: int = 1,
) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    count = len(captions)
    video = VIDEO.stream(torch.randn(count, 6, frames, rows, columns, generator=generator), fps, start_s)
    audio = AUDIO.stream(torch.randn(count, 5, audio_steps, generator=generator), start_s)
    text = bytes_of(captions, 64)
    return Batch(at(video, level), at(audio, level), text, text)


def at(stream: Stream, level: float) -> Stream:
    return replace(stream, levels=torch.full_like(stream.levels, level))
