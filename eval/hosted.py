"""Weights that others host: found, loaded once a process, and named by what they are.

A model is a transformers class and a source: a hub id, or a folder given as `weights.GROUP=DIR`. What is not on this
machine and cannot be fetched is no failure of a clip: the metric is skipped, and says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avgen.data.media.sound import resample
from avgen.models.identity import folder_mark
from eval.metric import Setup, Skipped
from eval.take import Picture, Sound


@dataclass(frozen=True)
class Source:
    """Where a metric group's weights come from."""

    group: str
    place: str  # hub id or folder
    device: str
    digest: str  # of a folder's weights; of a hub id nothing but its name is known before it is loaded

    @classmethod
    def of(cls, setup: Setup, group: str, default: str) -> Source:
        place = setup.weights.get(group, default)
        return cls(group, place, setup.device, digest_of(Path(place)) if place and Path(place).is_dir() else "")

    @property
    def parameters(self) -> Mapping[str, str]:
        """For a definition: other weights make another metric. A folder is known by its content, wherever it lies."""
        return {"weights": f"sha256:{self.digest}" if self.digest else self.place}

    def load(self, kind: str, **options: Any) -> Any:
        """The transformers class `kind`, from here: a model on the device and in eval mode, or a processor."""
        found = loaded(kind, self.place, self.device, self.group, tuple(sorted(options.items())))
        if isinstance(found, str):
            raise Skipped(found)
        return found


@lru_cache(maxsize=32)
def loaded(kind: str, place: str, device: str, group: str, options: tuple[tuple[str, Any], ...]) -> Any:
    """The thing, or why it cannot be had, which is not asked for again at the next clip."""
    import transformers

    if not hasattr(transformers, kind):
        return f"transformers {transformers.__version__} has no {kind}: install a newer one"
    cls, given = mended(getattr(transformers, kind)), dict(options)
    try:
        if not issubclass(cls, transformers.PreTrainedModel):
            return cls.from_pretrained(place, **given)
        model, info = cls.from_pretrained(place, output_loading_info=True, **given)
        if lacks := sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])}):
            # transformers draws those at random and only warns
            return (
                f"{place!r} lacks {len(lacks)} weights of {kind}, {lacks[0]} among them: give weights.{group}=FOLDER "
                "of that class"
            )
        return model.to(device).eval()
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        return f"{kind} of {place!r} cannot be loaded; give weights.{group}=FOLDER, or fetch it: {said}"


def mended(kind: Any) -> Any:
    """transformers 5.23 looks every tied tensor of PE-AV up among the parameters, where one is a buffer, and fails."""
    if kind.__name__ != "PeAudioVideoModel":
        return kind

    class Mended(kind):
        def get_parameter(self, target: str) -> torch.Tensor:
            try:
                return super().get_parameter(target)
            except AttributeError:
                return self.get_buffer(target)

    return Mended


digest_of = lru_cache(maxsize=32)(folder_mark)  # many metrics ask for it


def vectors(found: Any) -> np.ndarray:
    """(N, D) of unit length, from what get_*_features gives: a tensor, or an output that pools into one."""
    pooled = found if isinstance(found, torch.Tensor) else found.pooler_output
    rows = pooled.float().cpu().numpy()
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12))


def mono(sound: Sound, rate_hz: int) -> np.ndarray:
    """(S,) float32 at a model's rate."""
    wave = sound.wave.mean(0, keepdims=True).astype(np.float32)
    if sound.rate_hz == rate_hz:
        return np.asarray(wave[0])
    count = max(1, round(wave.shape[1] * rate_hz / sound.rate_hz))
    return np.asarray(resample(wave, Fraction(0), count, sound.rate_hz, rate_hz)[0])


def spread_frames(picture: Picture, most: int) -> np.ndarray:
    """(at most `most`, H, W, 3): the middles of equal parts, the same for the same clip wherever it is scored."""
    count = min(most, len(picture.frames))
    places = ((np.arange(count) + 0.5) * len(picture.frames) / count).astype(int)
    return picture.frames[places]


def chunks(wave: np.ndarray, length: int) -> list[np.ndarray]:
    """Equal parts of at most `length` samples: models that crop long sounds at random are never given one."""
    parts = max(1, -(-len(wave) // length))
    edges = np.linspace(0, len(wave), parts + 1).astype(int)
    return [wave[a:b] for a, b in pairwise(edges)]


def pieces(text: str, tokenizer: Any, most: int) -> list[str]:
    """Sentences, joined as far as they fit in `most` tokens; one that is too long is cut between words, and a word that
    is too long (of writing without spaces) between characters."""
    found: list[str] = []
    for sentence in re.split(r"(?<=[.!?;])(?=\s)|(?<=[。！？；])", text.strip()):
        if found and fits(found[-1] + sentence, tokenizer, most):
            found[-1] += sentence
        else:
            found += halves(sentence.strip(), tokenizer, most)
    return [part for part in found if part]


def halves(text: str, tokenizer: Any, most: int) -> list[str]:
    if len(text) < 2 or fits(text, tokenizer, most):
        return [text]
    words = text.split()
    cut, between = (words, " ") if len(words) > 1 else (list(text), "")
    middle = len(cut) // 2
    return [p for part in (cut[:middle], cut[middle:]) for p in halves(between.join(part), tokenizer, most)]


def fits(text: str, tokenizer: Any, most: int) -> bool:
    return len(tokenizer(text)["input_ids"]) <= most


def token_limit(tokenizer: Any, config: Any) -> int:
    """Of the tokenizer or of the text model's positions, whichever is less; tokenizers say 1e30 for unknown."""
    limits = [tokenizer.model_max_length]
    for section in (getattr(config, "text_config", None), config):
        positions = getattr(section, "max_position_embeddings", None)
        if positions:
            # RoBERTa counts positions from its padding index on
            limits.append(
                positions - 2 if getattr(section, "model_type", "") in ("roberta", "clap_text_model") else positions
            )
            break
    return int(min(limits))


def encoded(texts: Sequence[str], tokenizer: Any, limit: int, device: str, **options: Any) -> Any:
    return tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt", **options).to(
        device
    )
