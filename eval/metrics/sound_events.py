"""What sounds, by an AudioSet classifier (AST): divergence from the real clip, inception score, distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from eval.hosted import Source, chunks, mono
from eval.metric import Definition, Embedder, Measure, Metric, Needs, Result, Setup, Take
from eval.metrics.distances import set_metrics

DEFAULT = "MIT/ast-finetuned-audioset-10-10-0.4593"
HOP_S = 0.01  # of its spectrogram
LICENCE = "that of the weights"


def metrics(setup: Setup) -> Sequence[Metric]:
    model = Ast(Source.of(setup, "ast", DEFAULT))
    said = dict(model.source.parameters)
    return (
        Measure(
            Definition(
                "ast.kl",
                "Kullback-Leibler divergence from the real clip's class distribution (softmax of the logits averaged"
                " over equal chunks) to the made one's.",
                "nat",
                "lower",
                needs=Needs(sound=True, reference=True, licence=LICENCE),
                parameters=said,
            ),
            model.divergence,
        ),
        InceptionScore(
            Definition(
                "ast.inception_score",
                "exp of the mean divergence of clips' class distributions from their mean, over all clips at once.",
                "",
                "higher",
                needs=Needs(sound=True, licence=LICENCE),
                parameters=said,
            ),
            Classes(model),
        ),
        *set_metrics(model, "ast", Needs(sound=True, reference=True, licence=LICENCE)),
    )


@dataclass(frozen=True)
class Ast:
    """Embeds as what its classifier reads."""

    source: Source

    @property
    def definition(self) -> Definition:
        return Definition("ast.sound", "mean pooled AST state of equal chunks", parameters=dict(self.source.parameters))

    def embed(self, take: Take) -> np.ndarray:
        return self.run(take)[1]

    def classes(self, take: Take) -> np.ndarray:
        """(C,) probabilities."""
        logits = self.run(take)[0]
        found = np.exp(logits - logits.max())
        return np.asarray(found / found.sum())

    def divergence(self, take: Take) -> Result:
        made, real = self.classes(take), self.classes(take.reference)
        return Result(kl(real, made))

    def run(self, take: Take) -> tuple[np.ndarray, np.ndarray]:
        """(C,) logits and (D,) states."""
        model, extractor = (
            self.source.load("ASTForAudioClassification"),
            self.source.load("ASTFeatureExtractor"),
        )
        rate = extractor.sampling_rate
        parts = chunks(mono(take.sound, rate), round(extractor.max_length * HOP_S * rate))
        batch = extractor(parts, sampling_rate=rate, return_tensors="pt").to(self.source.device)
        with torch.inference_mode():
            pooled = model.audio_spectrogram_transformer(**batch).pooler_output
            logits = model.classifier(pooled)
        return logits.float().mean(0).cpu().numpy(), pooled.float().mean(0).cpu().numpy()


@dataclass(frozen=True)
class Classes:
    """Class probabilities as an embedding."""

    model: Ast

    @property
    def definition(self) -> Definition:
        return Definition("ast.classes", "class probabilities", parameters=dict(self.model.source.parameters))

    def embed(self, take: Take) -> np.ndarray:
        return self.model.classes(take)


@dataclass(frozen=True)
class InceptionScore:
    definition: Definition
    embedder: Embedder

    def over(self, made: np.ndarray, reference: np.ndarray | None, seed: int) -> Result:
        mean = made.mean(0)
        return Result(float(np.exp(np.mean([kl(row, mean) for row in made]))), extras={"clips": len(made)})


def kl(of: np.ndarray, to: np.ndarray) -> float:
    of, to = np.maximum(of, 1e-9), np.maximum(to, 1e-9)
    return float((of * np.log(of / to)).sum())
