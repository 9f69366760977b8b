"""Distances between sets of pictures in motion, on VideoMAE's features: what FVD asks, from weights that are hosted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from eval.hosted import Source, spread_frames
from eval.metric import Definition, Metric, Needs, Setup, Take
from eval.metrics.distances import set_metrics

DEFAULT = "MCG-NJU/videomae-base"


def metrics(setup: Setup) -> Sequence[Metric]:
    model = VideoMae(Source.of(setup, "videomae", DEFAULT))
    ours = model.source.place == DEFAULT
    needs = Needs(
        picture=True,
        reference=True,
        packages=("torchvision",),
        licence="CC BY-NC 4.0" if ours else "that of the weights",
        commercial=not ours,
        install="pip install -e '.[eval]'",
    )
    return set_metrics(model, "videomae", needs)


@dataclass(frozen=True)
class VideoMae:
    source: Source

    @property
    def definition(self) -> Definition:
        return Definition(
            "videomae.motion",
            "mean VideoMAE state of frames spread over the whole clip",
            parameters=dict(self.source.parameters),
        )

    def embed(self, take: Take) -> np.ndarray:
        model, processor = self.source.load("VideoMAEModel"), self.source.load("VideoMAEImageProcessor")
        frames = spread_frames(take.picture, model.config.num_frames)
        # a shorter clip is slowed down: the model takes no other number of frames
        places = (np.arange(model.config.num_frames) * len(frames) / model.config.num_frames).astype(int)
        batch = processor(list(frames[places]), return_tensors="pt").to(self.source.device)
        with torch.inference_mode():
            return np.asarray(model(**batch).last_hidden_state.float().mean((0, 1)).cpu())
