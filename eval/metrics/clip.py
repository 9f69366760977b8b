"""Text against picture by CLIP or SigLIP 2: whichever the weights are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from eval.hosted import Source, encoded, pieces, spread_frames, token_limit, vectors
from eval.metric import Definition, Measure, Metric, Needs, Result, Setup, Take
from eval.metrics.distances import set_metrics

DEFAULT = "openai/clip-vit-base-patch32"
FRAMES = 16
INSTALL = "pip install -e '.[eval]'"


def metrics(setup: Setup) -> Sequence[Metric]:
    clip = Clip(Source.of(setup, "clip", DEFAULT))
    needs = Needs(picture=True, text=True, packages=("torchvision",), licence="that of the weights", install=INSTALL)
    embedder = Frames(clip)
    return (
        Measure(
            Definition(
                "clip.text_video",
                f"Cosine of text and each of {FRAMES} frames spread over the clip, averaged. A prompt longer than the"
                " model reads is split between sentences, and the parts averaged too.",
                direction="higher",
                needs=needs,
                parameters={"frames": FRAMES, **clip.source.parameters},
            ),
            clip.text_video,
        ),
        *set_metrics(embedder, "clip", Needs(picture=True, reference=True, packages=("torchvision",), install=INSTALL)),
    )


@dataclass(frozen=True)
class Clip:
    source: Source

    def text_video(self, take: Take) -> Result:
        texts = self.texts(take.prompt.video_text or take.prompt.text)
        shown = self.frames(take)
        return Result(float((shown @ texts.T).mean()), extras={"text_parts": len(texts)})

    def texts(self, text: str) -> np.ndarray:
        """(parts, D)"""
        model, processor = self.source.load("AutoModel"), self.source.load("AutoProcessor")
        limit = token_limit(processor.tokenizer, model.config)
        parts = pieces(text, processor.tokenizer, limit)
        # SigLIP was trained on texts padded to its length, and has no mask; CLIP's mask makes padding harmless
        options = {} if model.config.model_type == "clip" else {"padding": "max_length"}
        tokenizer = processor.tokenizer
        batch = (
            tokenizer(parts, truncation=True, max_length=limit, return_tensors="pt", **options).to(self.source.device)
            if options
            else encoded(parts, tokenizer, limit, self.source.device)
        )
        with torch.inference_mode():
            return vectors(model.get_text_features(**batch))

    def frames(self, take: Take) -> np.ndarray:
        """(frames, D)"""
        model, processor = self.source.load("AutoModel"), self.source.load("AutoProcessor")
        images = list(spread_frames(take.picture, FRAMES))
        batch = processor.image_processor(images=images, return_tensors="pt").to(self.source.device)
        with torch.inference_mode():
            return vectors(model.get_image_features(**batch))


@dataclass(frozen=True)
class Frames:
    """A clip's mean frame, for distances between sets."""

    clip: Clip

    @property
    def definition(self) -> Definition:
        said = f"mean image embedding of {FRAMES} frames"
        return Definition("clip.frames", said, parameters={"frames": FRAMES, **self.clip.source.parameters})

    def embed(self, take: Take) -> np.ndarray:
        return np.asarray(self.clip.frames(take).mean(0))
