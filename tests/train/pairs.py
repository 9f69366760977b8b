"""Pairs without files: clip 2 k wins against clip 2 k + 1, and a model to start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from avgen.data.stream import InTurn
from avgen.prefer.source import Couples, only
from avgen.train.config import CheatingConfig, LoraConfig, OptimizerConfig, PreferenceConfig, TrackingConfig
from avgen.train.data_config import PairsData
from avgen.types import stack_batches
from tests.models.factory import batch, model
from tests.train.factory import config as tiny

NEVER = CheatingConfig(every=0)
TRAINS = (("video", "audio"), ("video",), ("audio",))


class Pairs:
    """Each pair's clips are of one form; pairs in turn train both modalities, the picture alone, the sound alone."""

    def batch(self, indices, at=None):
        clips = []
        for i in indices:
            pair = i // 2
            form = {"frames": 2 + pair % 2, "audio_steps": 4 + pair % 3}
            clip = batch((f"clip {pair}",), level=1.0, seed=i, **form)
            trains = TRAINS[pair % 3]
            video, audio = (
                only(stream, torch.tensor([m in trains]))
                for m, stream in (("video", clip.video), ("audio", clip.audio))
            )
            clips.append(replace(clip, video=video, audio=audio))
        return stack_batches(clips)


def config(folder: Path, **changes):
    start = folder / "start"
    if not start.exists():
        model().save_pretrained(start)
    defaults = {
        "start": start,
        "lora": LoraConfig(rank=4),
        "data": PairsData(pairs=folder / "pairs", pipeline=folder / "pipeline"),
        "preference": PreferenceConfig(cheating=NEVER),
        "tasks": {"t2av": 1.0},
        "optimizer": OptimizerConfig(kind="adamw", lr=1e-3, warmup_steps=2),
        "tracking": TrackingConfig(to=()),
        "batch": 12,
    }
    return tiny(folder / "run", **defaults | changes)


def order(settings):
    return Couples(InTurn(settings.batch // 2))
