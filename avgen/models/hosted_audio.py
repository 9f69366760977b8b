"""Audio codecs hosted by diffusers, each with the front end and the vocoder that it was trained with."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  # a pipeline that loads a codec looks for its base class in this module
from torch import Tensor, nn

from avgen.models.codecs import Posterior
from avgen.models.hosted import HostedCodec, Pieces, Reach, scale_of
from avgen.types import AudioGeometry, TimeGrid


class HostedAudioCodec(HostedCodec):
    """(B, A, S) waves to normalised latents (B, C, N) and back; a part step is filled with silence."""

    pieces: Pieces | None = None

    def __init__(self, network: nn.Module, vocoder: nn.Module | None = None) -> None:
        super().__init__(network)
        self.vocoder: Any = vocoder
        self.eval().requires_grad_(False)
        self.geometry = self.measured()
        self.scale = scale_of(network, self.geometry.channels)

    @abstractmethod
    def measured(self) -> AudioGeometry:
        """Rates and strides as the configurations of the network and its vocoder have them."""

    @property
    @abstractmethod
    def encode_reach(self) -> Reach | None:
        """Samples that a latent depends on past its interval; None = all."""

    @property
    @abstractmethod
    def decode_reach(self) -> Reach | None:
        """Samples past its interval that a latent has a part in; None = all."""

    @abstractmethod
    def posterior(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """(B, A, S), S whole steps -> mean and standard deviation (B, C, N) in the codec's own numbers."""

    @abstractmethod
    def wave(self, z: Tensor) -> Tensor:
        """(B, C, N) in the codec's own numbers -> (B, A, S), S = geometry.time.units(N)."""

    @torch.no_grad()
    def encode(self, wave: Tensor) -> Posterior:
        channels, grid = self.geometry.audio_channels, self.geometry.time
        if wave.ndim != 3 or wave.shape[1] != channels:
            raise ValueError(f"the wave must be (B, {channels}, S), not {tuple(wave.shape)}")
        missing = grid.units(grid.steps(wave.shape[-1])) - wave.shape[-1]
        wave = nn.functional.pad(wave.to(self.device, torch.float32), (0, missing))

        def run(part: Tensor) -> Tensor:
            return torch.cat(self.posterior(part), dim=1)

        both = run(wave) if self.pieces is None else self.pieces.encode(run, wave)
        return self.scale.latents(*both.chunk(2, dim=1))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        if latents.ndim != 3 or latents.shape[1] != self.geometry.channels:
            raise ValueError(f"latents must be (B, {self.geometry.channels}, N), not {tuple(latents.shape)}")
        z = self.scale.raw(latents.to(self.device)).to(self.dtype)

        def run(part: Tensor) -> Tensor:
            return self.wave(part).float()

        return run(z) if self.pieces is None else self.pieces.decode(run, z)


class OobleckAudioCodec(HostedAudioCodec):
    """Stable Audio's: waves in, waves out, convolutions alone."""

    def measured(self) -> AudioGeometry:
        config = self.network.config
        ratios = list(config.downsampling_ratios)
        if any(ratio % 2 for ratio in ratios):
            raise ValueError(f"downsampling_ratios={ratios}: an odd one shifts the sound by a part of a sample")
        stride = math.prod(ratios)
        grid = TimeGrid(stride, stride)
        return AudioGeometry(config.decoder_input_channels, grid, config.sampling_rate, config.audio_channels)

    @property
    def encode_reach(self) -> Reach:
        reach = _centred_samples(self.network.encoder, 1)
        return Reach(reach, reach)

    @property
    def decode_reach(self) -> Reach:
        reach = _centred_samples(self.network.decoder, self.geometry.time.stride)
        return Reach(reach, reach)

    def posterior(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        distribution = self.network.encode(wave.to(self.dtype)).latent_dist
        return distribution.mean, distribution.std

    def wave(self, z: Tensor) -> Tensor:
        return self.network.decode(z).sample


def _centred_samples(module: nn.Module, jump: float) -> int:
    """Samples on either side of a step's interval that a chain of centred convolutions connects with it.

    Layers are listed in the order in which they run; a resampling layer of ratio r has a kernel of 2 r, half of
    a step on either side. `jump` is how many samples apart the entries of the current layer are.
    """
    samples = 0.0
    for layer in module.modules():
        if isinstance(layer, nn.ConvTranspose1d):
            samples += jump / 2
            jump = jump / layer.stride[0]
        elif isinstance(layer, nn.Conv1d) and layer.stride[0] > 1:
            jump = jump * layer.stride[0]
            samples += jump / 2
        elif isinstance(layer, nn.Conv1d):
            samples += (layer.kernel_size[0] - 1) // 2 * layer.dilation[0] * jump
    return math.ceil(samples)
