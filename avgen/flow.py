"""Flow matching in the one convention of the package.

    x_t = (1 - t) data + t noise,    v = noise - data,    t = 0 is data, t = 1 is noise

Levels are drawn through uniforms: a law is a quantile function, a coupling says which uniforms two
modalities share. Nothing here draws a random number by itself.

Shape letters: B samples, N tokens, C latent channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from avgen.types import Batch, Stream, Velocity


@dataclass(frozen=True)
class LevelLaw:
    """How noise levels of one modality are distributed in training."""

    kind: Literal["logit_normal", "uniform", "mode"] = "logit_normal"
    mean: float = 0.0  # of the logit
    std: float = 1.0  # of the logit
    mode_scale: float = 1.29  # of kind=mode: how strongly middle levels are preferred, in [-1, 1.75]
    shift: float = 1.0  # > 1 moves mass to high noise: t -> shift t / (1 + (shift - 1) t)
    reference_tokens: int | None = None  # with it, shift grows with sqrt(tokens / reference_tokens)

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std={self.std} must be positive")
        if self.shift <= 0:
            raise ValueError(f"shift={self.shift} must be positive; 1 is no shift")
        if not -1 <= self.mode_scale <= 1.75:
            raise ValueError(f"mode_scale={self.mode_scale} must lie in [-1, 1.75], where the law stays monotone")
        if self.reference_tokens is not None and self.reference_tokens < 1:
            raise ValueError(f"reference_tokens={self.reference_tokens} must be at least 1")

    def quantile(self, u: Tensor, tokens: Tensor | int = 1) -> Tensor:
        """(B,) uniforms in (0, 1) and token counts -> (B,) levels in [0, 1], float32; rises with u."""
        u = u.double()
        if self.kind == "uniform":
            t = u
        elif self.kind == "mode":
            # Esser et al. 2024, eq. 20, with u turned round so that the level rises with it
            t = u - self.mode_scale * (torch.sin(math.pi / 2 * u) ** 2 - u)
        else:
            t = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))
        return shifted(t, self.shift_for(tokens)).float()

    def shift_for(self, tokens: Tensor | int) -> Tensor | float:
        """More tokens carry the same picture through more noise, so their levels are moved up."""
        if self.reference_tokens is None:
            return self.shift
        return self.shift * (torch.as_tensor(tokens).double() / self.reference_tokens).sqrt()


def shifted(t: Tensor, shift: Tensor | float) -> Tensor:
    return shift * t / (1 + (shift - 1) * t)


@dataclass(frozen=True)
class FlowConfig:
    """The training objective."""

    video: LevelLaw = field(default_factory=LevelLaw)
    audio: LevelLaw = field(default_factory=LevelLaw)
    coupling: Literal["independent", "shared", "mixed"] = "mixed"  # of the two modalities' levels
    shared_share: float = 0.5  # of coupling=mixed: how often the two draw the same quantile
    video_weight: float = 1.0  # of the video loss
    audio_weight: float = 1.0  # of the audio loss
    predict: Literal["velocity", "data"] = "velocity"  # what the network puts out; the loss is the same

    def __post_init__(self) -> None:
        if not 0 <= self.shared_share <= 1:
            raise ValueError(f"shared_share={self.shared_share} must lie in [0, 1]")
        if min(self.video_weight, self.audio_weight) < 0:
            raise ValueError(
                f"video_weight={self.video_weight} and audio_weight={self.audio_weight} cannot be negative"
            )

    def levels(self, u: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(3, B) uniforms -> (B,) levels of video and of audio."""
        joined = {"independent": 0.0, "shared": 1.0, "mixed": self.shared_share}[self.coupling]
        audio_u = torch.where(u[2] < joined, u[0], u[1])
        return self.video.quantile(u[0], tokens(batch.video)), self.audio.quantile(audio_u, tokens(batch.audio))


def tokens(stream: Stream | None) -> Tensor | int:
    """(B,) real tokens of each sample."""
    return 1 if stream is None else stream.mask().sum(1).clamp(min=1)


def noised(stream: Stream, noise: Tensor, level: Tensor | None = None) -> Stream:
    """The stream at its levels times (B,) `level`; given tokens, whose level is 0, stay bit for bit."""
    levels = stream.levels if level is None else stream.levels * level[:, None]
    stream = replace(stream, levels=levels)
    t = stream.level[..., None]
    return replace(stream, x=torch.where(t == 0, stream.x, (1 - t) * stream.x + t * noise))


def velocity_of(data: Tensor, noised_stream: Stream, least: float = 0.02) -> Tensor:
    """The velocity that a prediction of the data implies. Levels under `least` are read as that: in training the
    division would only amplify rounding there."""
    t = noised_stream.level[..., None].clamp(min=least)
    return (noised_stream.x - data) / t


def as_velocity(output: Tensor, noisy: Stream, predict: str) -> Tensor:
    """What the network put out, as a velocity."""
    return output if predict == "velocity" else velocity_of(output, noisy)


class Loss(NamedTuple):
    """Squared error of one stream, summed so that any number of ranks and micro-batches can be added up."""

    tokens: Tensor  # (B, N) weighted squared error of every token, mean over channels
    weight: Tensor  # () total weight of the supervised tokens


def stream_loss(output: Tensor, clean: Stream, noisy: Stream, noise: Tensor, predict: str) -> Loss:
    """Velocity error of (B, N, C) outputs; tokens of weight 0 are cut off before the square, so that even
    an infinite output there has no gradient."""
    predicted = as_velocity(output.float(), noisy, predict)
    error = torch.where(clean.weight[..., None] > 0, predicted - (noise - clean.x), 0.0)
    return Loss(error.square().mean(-1) * clean.weight, clean.weight.sum())


def losses(output: Velocity, clean: Batch, noisy: Batch, noise: Velocity, predict: str) -> dict[str, Loss]:
    """Per modality that the batch has, and the model a tower for."""
    found = {}
    for m in ("video", "audio"):
        out, data, x_t, eps = (getattr(source, m) for source in (output, clean, noisy, noise))
        if data is not None and out is not None:
            found[m] = stream_loss(out, data, x_t, eps, predict)
    return found
