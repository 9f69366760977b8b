"""Text against sound by CLAP, in equal chunks: its own extractor would crop a long sound at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from eval.hosted import Source, chunks, encoded, mono, pieces, token_limit, vectors
from eval.metric import Definition, Measure, Metric, Needs, Result, Setup, Take
from eval.metrics.distances import set_metrics

DEFAULT = "laion/clap-htsat-unfused"


def metrics(setup: Setup) -> Sequence[Metric]:
    clap = Clap(Source.of(setup, "clap", DEFAULT))
    return (
        Measure(
            Definition(
                "clap.text_audio",
                "Cosine of text and each chunk of the sound (equal parts, none longer than the model hears), averaged."
                " A prompt longer than the model reads is split between sentences, and the parts averaged too.",
                direction="higher",
                needs=Needs(sound=True, text=True, licence="that of the weights"),
                parameters=dict(clap.source.parameters),
            ),
            clap.text_audio,
        ),
        *set_metrics(clap, "clap", Needs(sound=True, reference=True, licence="that of the weights")),
    )


@dataclass(frozen=True)
class Clap:
    source: Source

    @property
    def definition(self) -> Definition:
        return Definition("clap.sound", "mean audio embedding of equal chunks", parameters=dict(self.source.parameters))

    def text_audio(self, take: Take) -> Result:
        texts = self.texts(take.prompt.audio_text or take.prompt.text)
        heard = self.heard(take)
        return Result(float((heard @ texts.T).mean()), extras={"text_parts": len(texts), "chunks": len(heard)})

    def embed(self, take: Take) -> np.ndarray:
        return np.asarray(self.heard(take).mean(0))

    def texts(self, text: str) -> np.ndarray:
        model, processor = self.source.load("ClapModel"), self.source.load("ClapProcessor")
        limit = token_limit(processor.tokenizer, model.config)
        batch = encoded(pieces(text, processor.tokenizer, limit), processor.tokenizer, limit, self.source.device)
        with torch.inference_mode():
            return vectors(model.get_text_features(**batch))

    def heard(self, take: Take) -> np.ndarray:
        model, processor = self.source.load("ClapModel"), self.source.load("ClapProcessor")
        extractor = processor.feature_extractor
        rate = extractor.sampling_rate
        parts = chunks(mono(take.sound, rate), extractor.nb_max_samples)
        # one by one: among several, extractors of fused models call one drawn at random the long one
        batches = [extractor(part, sampling_rate=rate, return_tensors="pt").to(self.source.device) for part in parts]
        with torch.inference_mode():
            return np.concatenate([vectors(model.get_audio_features(**batch)) for batch in batches])
