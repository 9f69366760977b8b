"""The codec protocols: pictures and sound to latents and back.

Every codec, embedded or hosted by diffusers, is one of these two protocols. Latents leave `encode`
normalised (about zero mean and unit variance per channel), so the model never sees a codec's scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from avgen.types import AudioGeometry, VideoGeometry


@dataclass(frozen=True)
class Posterior:
    """What an encoder says of a clip; `std` is None for codecs without a distribution."""

    mean: Tensor
    std: Tensor | None = None

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        if self.std is None:
            return self.mean
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + self.std * noise


@dataclass(frozen=True)
class Reach:
    """How far, in frames or samples, one end of a codec sees past the interval of a latent, at most."""

    before: int
    after: int


@runtime_checkable
class VideoCodec(Protocol):
    geometry: VideoGeometry

    @property
    def encode_reach(self) -> Reach | None:
        """Frames past its interval that a latent depends on; None = the whole clip."""
        ...

    @property
    def decode_reach(self) -> Reach | None:
        """Frames past its interval that a latent has a part in; None = the whole clip."""
        ...

    @property
    def fingerprint(self) -> str:
        """A short hash of everything that decides what latents mean: class, settings and weights."""
        ...

    def encode(self, frames: Tensor) -> Posterior:
        """(B, T, H, W, 3) uint8 RGB -> latents (B, C, T', H', W') float32, T' = geometry.time.steps(T)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, T', H', W') -> (B, T, H, W, 3) uint8 RGB, T = geometry.time.units(T')."""
        ...


@runtime_checkable
class AudioCodec(Protocol):
    geometry: AudioGeometry

    @property
    def encode_reach(self) -> Reach | None:
        """Samples past its interval that a latent depends on; None = the whole clip."""
        ...

    @property
    def decode_reach(self) -> Reach | None:
        """Samples past its interval that a latent has a part in; None = the whole clip."""
        ...

    @property
    def fingerprint(self) -> str:
        """A short hash of everything that decides what latents mean: class, settings and weights."""
        ...

    def encode(self, wave: Tensor) -> Posterior:
        """(B, audio_channels, S) float32 at the geometry's rate -> latents (B, C, N), N = geometry.time.steps(S)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, N) -> (B, audio_channels, S) float32, S = geometry.time.units(N)."""
        ...
