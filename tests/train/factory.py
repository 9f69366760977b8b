"""A tiny training run's settings, of which each test says what it changes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from einops import repeat
from rich.console import Console

from avgen.train.config import OptimizerConfig, TrainConfig
from avgen.train.data_config import ToyboxData
from tests.models.factory import AUDIO, VIDEO
from tests.models.factory import config as model_config


def config(folder: Path, **changes: Any) -> TrainConfig:
    defaults = TrainConfig(
        model=model_config(),
        steps=6,
        batch=4,
        out=folder,
        data=ToyboxData(workers=0),
        tasks={"t2av": 2, "i2av": 1, "v2a": 1, "a2v": 1},
        optimizer=OptimizerConfig(warmup_steps=2, muon_precision="fp32"),
        precision="fp32",
        validate_every=1000,
        validation_clips=4,
        save_every=1000,
        log_every=1,
    )
    return replace(defaults, **changes)


def quiet() -> Console:
    return Console(file=open(os.devnull, "w"))  # noqa: PTH123


class Pixels:
    """A picture codec that shows three channels of the latents as they are."""

    geometry = VIDEO
    fingerprint = "pixels"

    def decode(self, latents):
        colours = latents[:, :3].sigmoid().mul(255).round().to(torch.uint8)
        return repeat(colours, "b c t h w -> b (t k) (h p) (w q) c", k=2, p=8, q=8).contiguous()


class Waves:
    """A sound codec that plays the latents' mean."""

    geometry = AUDIO
    fingerprint = "waves"

    def decode(self, latents):
        return repeat(latents.mean(1).tanh(), "b n -> b 1 (n k)", k=640).contiguous()


CODECS = (Pixels(), Waves())
