"""What the embedded codecs share: a linear analysis fitted in closed form, and an identity.

Both codecs make latents by principal components (of space-time patches, of short-time spectra) and give
them back through a small convolutional decoder fitted on *noised* latents. A linear analysis keeps the
latents smooth and low-dimensional, so a small flow model learns them quickly; the decoder's training
noise is why latents that a model got slightly wrong still decode to clean edges and steady tones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor, nn
from torch.nn import functional

from avgen.models.identity import fingerprint_of

# Exponent of a component's standard deviation in its latent scale. 1 would whiten: weak components would cost
# a flow model as much as strong ones. 0 would keep their raw ratio: all but the first few would vanish in the
# noise at every level but the lowest.
SPREAD = 0.5


class EmbeddedCodec(ModelMixin, ConfigMixin):
    """Settings, weights, save_pretrained / from_pretrained, and a fingerprint of them all."""

    config_name = "config.json"

    @property
    def fingerprint(self) -> str:
        """16 hex digits: a hash of class, settings and weights."""
        settings = {k: v for k, v in cast(dict[str, Any], self.config).items() if not k.startswith("_")}
        return fingerprint_of(f"{type(self).__name__} {json.dumps(settings, sort_keys=True)}", self.state_dict())


class Components(nn.Module):
    """Principal components as a pair of affine maps: (..., F) features <-> (..., C) latents."""

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("basis", torch.zeros(features, channels))  # orthonormal columns
        self.register_buffer("scale", torch.ones(channels))  # of a component, per unit of its latent
        self.mean: Tensor
        self.basis: Tensor
        self.scale: Tensor

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.basis / self.scale

    def inverse(self, latents: Tensor) -> Tensor:
        return (latents * self.scale) @ self.basis.T + self.mean

    @torch.no_grad()
    def fit(self, features: Tensor, spread: float = SPREAD) -> Tensor:
        """Fit to (N, F) features; returns the share of variance that each component holds, (C,).

        Latents get mean variance 1 over the channels, channel k a variance in proportion to its component's
        to the power 1 - spread.
        """
        mean = features.mean(0, dtype=torch.float64)
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for part in features.split(8192):  # products in float32, sums of many in float64
            centred = part - mean.float()
            covariance += centred.T @ centred
        variance, vectors = torch.linalg.eigh(covariance / len(features))
        channels = self.basis.shape[1]
        variance, vectors = variance.flip(0).clamp_min(1e-12), vectors.flip(1)
        kept, vectors = variance[:channels], vectors[:, :channels]
        # eigenvectors have no sign of their own: fix it, so that a fit does not depend on the linear algebra library
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        scale = kept.sqrt() ** spread
        if spread:
            scale = scale * (kept / scale**2).mean().sqrt()
        self.mean.copy_(mean)
        self.basis.copy_(vectors)
        self.scale.copy_(scale)
        return (kept / variance.sum()).float()


class Refiner(nn.Module):
    """A small network of each latent and its neighbours; answers 0 until it is fitted.

    `reach` is 1 or 2: how many neighbours it sees on every side.
    """

    def __init__(
        self,
        convolution: type[nn.Conv1d] | type[nn.Conv3d],
        channels: int,
        hidden: int,
        features: int,
        reach: int,
        pad: bool,
    ) -> None:
        super().__init__()
        self.gather = convolution(channels, hidden, 3, padding=int(pad))
        self.mix = convolution(hidden, hidden, 2 * reach - 1, padding=(reach - 1) * int(pad))
        self.out = convolution(hidden, features, 1)
        nn.init.zeros_(self.out.weight)
        if self.out.bias is not None:
            nn.init.zeros_(self.out.bias)

    def forward(self, latents: Tensor) -> Tensor:
        return self.out(functional.gelu(self.mix(functional.gelu(self.gather(latents)))))

    def reset(self, seed: int) -> None:
        """Weights of a fresh start, whatever the global generator's state."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.gather.reset_parameters()
            self.mix.reset_parameters()
        nn.init.zeros_(self.out.weight)


def fit_decoder(
    parameters: Iterable[nn.Parameter],
    latents: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    seed: int,
    batch: int = 16,
    rate: float = 2e-3,
    noise: float = 0.2,
) -> None:
    """Minimise loss(noised latents, their rows) over clips of (N, C, ...) latents.

    The noise is up to `noise` of each channel's spread, a level per clip: what a generator's small errors look like.
    """
    kept = list(parameters)
    spread = latents.std(dim=[0, *range(2, latents.ndim)], keepdim=True)
    draw = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(kept, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=max(steps, 2))
    for _ in range(steps):
        rows = torch.randint(len(latents), (batch,), generator=draw)
        level = noise * torch.rand(batch, *[1] * (latents.ndim - 1), generator=draw)
        x = latents[rows] + level * spread * torch.randn(batch, *latents.shape[1:], generator=draw)
        optimiser.zero_grad()
        loss(x, rows).backward()
        optimiser.step()
        schedule.step()
