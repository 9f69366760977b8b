"""Audio codecs hosted by diffusers, each with the front end and the vocoder that it was trained with."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  # a pipeline that loads a codec looks for its base class in this module
from einops import rearrange
from torch import Tensor, nn
from torchaudio.functional import resample

from avgen.models.codecs import Posterior, Reach
from avgen.models.hosted import HostedCodec, Pieces, scale_of, span_of_layers
from avgen.models.identity import chosen
from avgen.models.mel import LogMel
from avgen.types import AudioGeometry, TimeGrid

AROUND_S = 2.0  # context of a piece for codecs that see the whole clip
RESAMPLING = 16  # samples at the lower rate on either side of one that torchaudio's filter looks at, rounded up


class HostedAudioCodec(HostedCodec):
    """(B, A, S) waves to normalised latents (B, C, N) and back; a part step is filled with silence."""

    pieces: Pieces | None = None

    def __init__(self, network: nn.Module, vocoder: nn.Module | None = None) -> None:
        super().__init__(network)
        self.vocoder: Any = vocoder
        self.eval().requires_grad_(False)
        self.geometry = self.measured()
        self.scale = scale_of(network, self.geometry.channels)

    def in_pieces(self, steps: int) -> None:
        """At most so many latent steps at once, beside those around them: memory no longer grows with the clip.

        The numbers stay the same where the codec states its reach. One that sees the whole clip is given
        `AROUND` seconds of it on either side, and says something else than of the whole.
        """
        stride, reaches = self.geometry.time.stride, (self.encode_reach, self.decode_reach)
        known = [max(reach.before, reach.after) for reach in reaches if reach is not None]
        around = max(known) if len(known) == 2 else round(AROUND_S * self.geometry.sample_rate_hz)
        self.pieces = Pieces(self.geometry.time, steps, 1 - (-around // stride))
        self.piece_steps = steps

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        super().save_pretrained(folder, **options)
        if self.vocoder is not None:
            self.vocoder.save_pretrained(Path(folder) / "vocoder", **options)

    @property
    def settings(self) -> dict[str, Any]:
        if self.vocoder is None:
            return super().settings
        return {**super().settings, "vocoder": chosen(self.vocoder.config, type(self.vocoder))}

    @abstractmethod
    def measured(self) -> AudioGeometry:
        """Rates and strides as the configurations of the network and its vocoder have them."""

    @property
    @abstractmethod
    def encode_reach(self) -> Reach | None: ...

    @property
    @abstractmethod
    def decode_reach(self) -> Reach | None: ...

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


class LTX2AudioCodec(HostedAudioCodec):
    """LTX-2's: log-mel frames of 16 kHz sound, causal in time, heard through a vocoder of a higher rate.

    The clock is LTX-2's own: mel frame m counts as the 10 ms from its centre on, so a latent's interval lies
    half a frame (5 ms) later than what it was computed from.
    """

    def measured(self) -> AudioGeometry:
        config = self.network.config
        rate, hop = config.sample_rate, config.mel_hop_length
        if config.causality_axis != "height" or config.norm_type != "pixel" or config.mid_block_add_attention:
            raise ValueError(
                f"causality_axis={config.causality_axis}, norm_type={config.norm_type}, "
                f"mid_block_add_attention={config.mid_block_add_attention}: only height, pixel and false are hosted"
            )
        out_rate, per_frame = _heard(self.vocoder)
        if per_frame * rate != hop * out_rate:
            raise ValueError(
                f"the vocoder makes {per_frame} samples a frame at {out_rate} Hz, but the codec's frames are "
                f"{hop} samples at {rate} Hz: they do not belong together"
            )
        self.frames = 2 ** (len(config.ch_mult) - 1)  # mel frames of a latent
        bands = config.mel_bins // self.frames
        self.mel = LogMel(rate, config.mel_bins, hop)
        channels = config.latent_channels * bands
        return AudioGeometry(channels, TimeGrid(self.frames * per_frame, per_frame), out_rate, config.in_channels)

    @cached_property
    def encode_reach(self) -> Reach:
        per_frame = self.geometry.time.first
        frames = 4 * 32 + 1
        mel = torch.zeros(1, self.geometry.audio_channels, frames, self.mel.bands, device=self.device, dtype=self.dtype)
        span = span_of_layers(self.network.encoder, lambda: self.network.encoder(mel), frames)
        window = self._in_units(self.mel.window // 2 + RESAMPLING)
        return Reach(span * per_frame + window, window)

    @cached_property
    def decode_reach(self) -> Reach:
        z = torch.zeros(1, self.network.config.latent_channels, 33, self._bands, device=self.device, dtype=self.dtype)
        span = span_of_layers(self.network.decoder, lambda: self.network.decoder(z), 4 * 32 + 1)
        heard = _vocoder_reach(self.vocoder)
        return Reach(heard, span * self.geometry.time.first + heard)

    def posterior(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        frames = (wave.shape[-1] - self.geometry.time.first) // self.geometry.time.first + 1
        wave = resample(wave, self.geometry.sample_rate_hz, self.mel.sample_rate_hz)
        mel = self.mel(wave, frames)
        distribution = self.network.encode(mel.to(self.dtype)).latent_dist
        return _folded(distribution.mean), _folded(distribution.std)

    def wave(self, z: Tensor) -> Tensor:
        mel = self.network.decode(rearrange(z, "b (c f) t -> b c t f", f=self._bands)).sample
        return fitted(self.vocoder(mel), self.geometry.time.units(z.shape[2]))

    @property
    def _bands(self) -> int:
        return self.geometry.channels // self.network.config.latent_channels

    def _in_units(self, samples: int) -> int:
        return -(-samples * self.geometry.sample_rate_hz // self.mel.sample_rate_hz)


class AudioLDM2AudioCodec(HostedAudioCodec):
    """AudioLDM 2's, which JavisDiT uses: an image autoencoder on log-mel frames of 16 kHz sound, and HiFi-GAN.

    It normalises over the whole clip and attends to all of it, so every latent sees the whole clip.
    """

    encode_reach = None
    decode_reach = None

    def measured(self) -> AudioGeometry:
        config = self.network.config
        if config.in_channels != 1:
            raise ValueError(f"in_channels={config.in_channels}: the autoencoder of a mel spectrogram has 1")
        rate, per_frame = _heard(self.vocoder)
        self.frames = 2 ** (len(config.block_out_channels) - 1)  # mel frames of a latent
        self.mel = LogMel(rate, self.vocoder.config.model_in_dim, per_frame)
        if self.mel.bands % self.frames:
            raise ValueError(f"the vocoder's {self.mel.bands} bands cannot be divided by {self.frames}")
        stride = self.frames * per_frame
        return AudioGeometry(config.latent_channels * self.mel.bands // self.frames, TimeGrid(stride, stride), rate)

    def posterior(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        mel = self.mel(wave, wave.shape[-1] // self.mel.hop)
        distribution = self.network.encode(mel.to(self.dtype)).latent_dist
        return _folded(distribution.mean), _folded(distribution.std)

    def wave(self, z: Tensor) -> Tensor:
        bands = self.mel.bands // self.frames
        mel = self.network.decode(rearrange(z, "b (c f) t -> b c t f", f=bands)).sample
        return fitted(self.vocoder(mel[:, 0]), self.geometry.time.units(z.shape[2]))[:, None]


class MMAudioCodec(HostedAudioCodec):
    """MMAudio's at 44.1 kHz: an autoencoder of log-mel frames that it makes itself, and BigVGAN. Mono.

    It attends to the whole clip, so every latent sees all of it.
    """

    encode_reach = None
    decode_reach = None

    def measured(self) -> AudioGeometry:
        config = self.network.config
        if self.dtype != torch.float32:  # spectra are computed in float32, so the filters must not have been rounded
            mel = type(self.network.mel_converter)
            filters = mel(config.sample_rate, config.n_fft, config.mel_bins, config.hop_length)
            self.network.mel_converter = filters.to(self.device)
        per_frame = math.prod(self.vocoder.config.upsample_rates)
        if per_frame != config.hop_length:
            raise ValueError(
                f"the vocoder makes {per_frame} samples a frame, but hop_length={config.hop_length}: they do not "
                "belong together"
            )
        stride = self.network.latent_hop_length
        return AudioGeometry(config.latent_channels, TimeGrid(stride, stride), config.sample_rate)

    def posterior(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        distribution = self.network.encode(wave[:, 0]).latent_dist
        return distribution.mean, distribution.std

    def wave(self, z: Tensor) -> Tensor:
        mel = self.network.decode(z).sample
        return fitted(self.vocoder(mel).sample, self.geometry.time.units(z.shape[2]))


def fitted(wave: Tensor, samples: int) -> Tensor:
    """Some vocoders add a few samples at the end."""
    return nn.functional.pad(wave, (0, max(0, samples - wave.shape[-1])))[..., :samples]


def _folded(latents: Tensor) -> Tensor:
    """(B, C, T, F) -> (B, C F, T): the bands of an instant are one token."""
    return rearrange(latents, "b c t f -> b (c f) t")


def _heard(vocoder: Any) -> tuple[int, int]:
    """The rate of a vocoder's sound, and its samples per mel frame."""
    config = vocoder.config
    if hasattr(config, "bwe_upsample_factors"):
        rate, low = config.output_sampling_rate, config.input_sampling_rate
        return rate, math.prod(config.upsample_factors) * rate // low
    if hasattr(config, "upsample_factors"):
        return config.output_sampling_rate, math.prod(config.upsample_factors)
    return config.sampling_rate, math.prod(config.upsample_rates)


def _vocoder_reach(vocoder: Any) -> int:
    """Samples on either side of a mel frame's own that it has a part in."""
    config = vocoder.config
    if not hasattr(config, "bwe_upsample_factors"):
        return _generator_reach(config, "")
    ratio = config.output_sampling_rate // config.input_sampling_rate
    first = _generator_reach(config, "") + config.window_length + config.hop_length
    return first * ratio + _generator_reach(config, "bwe_")


def _generator_reach(config: Any, prefix: str) -> int:
    """Of one generator of the HiFi-GAN family: ever finer levels, in each several chains side by side."""

    def of(name: str) -> Any:
        return getattr(config, prefix + name)

    # an antialiased activation looks through two filters, at twice the rate and back
    act = of("antialias_kernel_size") if of("antialias") else 0
    apart = math.prod(of("upsample_factors"))
    reach = 3 * apart
    for factor, kernel in zip(of("upsample_factors"), of("upsample_kernel_sizes"), strict=True):
        reach += -(-(kernel - factor) // 2) * apart // factor
        apart //= factor
        chains = zip(of("resnet_kernel_sizes"), of("resnet_dilations"), strict=True)
        reach += apart * max(
            sum((width - 1) // 2 * (d + 1) + 2 * act for d in dilations) for width, dilations in chains
        )
    return reach + 3 + act


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
