"""The embedded audio codec: principal components of short-time spectra in, a phase-propagating vocoder out.

What a log-spectrogram codec loses is phase, and with it steady pitch (a tone warbles) and attack (a strike
smears). Here the decoder predicts, next to each bin's magnitude, how its phase *advances* from frame to frame
as a vector whose length is how predictable that advance is: long in tones, whose exact frequency it carries,
short in noise, where the synthesis fills in random phase. A gain envelope finer than the spectral frames
restores attacks, loudness and silence.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from diffusers import ModelMixin  # noqa: F401  # a pipeline that loads a codec looks for its base class in this module
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from avgen.models.codecs import Posterior, Reach
from avgen.models.embedded import Components, EmbeddedCodec, Refiner, fit_decoder
from avgen.types import AudioGeometry, TimeGrid

# Powers are relative to a full-scale sine. Below the floor is silence: a decade above it the ear is still in a quiet
# room, and every decade kept costs latents.
FLOOR_DECADES = 6.5
FLOOR = 10.0**-FLOOR_DECADES


PART = 256  # clips analysed at once: of a second of sound several megabytes of spectra live at a time
RATE = 7e-4  # of the decoder's fit: at 2e-3 its error rises threefold on the way, which the end does not make up for
REACH = 2  # tokens that the decoder sees before and after its own
# Share of a bin's magnitude that starts at phase 0 in each frame: nothing against a partial that goes on, everything
# where one begins, so that the bins of an attack agree.
ONSET = 0.1


class SpectralAudioCodec(EmbeddedCodec):
    """Latents of `frames_per_token` spectral frames, `hop` samples apart; any duration.

    Token n covers samples [n * stride, (n + 1) * stride) with stride = hop * frames_per_token, and depends on
    `reach_samples` more on either side. Channels keep their levels; the phase between them is not kept.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 32,
        sample_rate_hz: int = 16000,
        audio_channels: int = 1,
        hop: int = 160,
        window: int = 640,
        frames_per_token: int = 5,
        hidden: int = 384,
        rank: int = 96,
        refinements: int = 2,
    ) -> None:
        super().__init__()
        if hop % 4 or window % (2 * hop):
            raise ValueError(f"hop={hop} must be a multiple of 4, and window={window} a multiple of two hops")
        stride = hop * frames_per_token
        self.geometry = AudioGeometry(channels, TimeGrid(stride, stride), sample_rate_hz, audio_channels)
        self.hop, self.window, self.frames_per_token, self.refinements = hop, window, frames_per_token, refinements
        self.reach_samples = (window - hop) // 2
        bins, blocks = window // 2 + 1, 2 * frames_per_token
        self.components = Components((frames_per_token * bins + blocks) * audio_channels, channels)
        self.frames = Components(3 * bins, rank)
        described = (frames_per_token * rank + blocks) * audio_channels
        self.linear = nn.Conv1d(channels, described, 2 * REACH + 1)
        self.refine = Refiner(nn.Conv1d, channels, hidden, described, reach=REACH, pad=False)
        self.register_buffer("silence", torch.zeros(channels))
        self.silence: Tensor

    @classmethod
    def at_rate(cls, sample_rate_hz: int, channels: int = 32, audio_channels: int = 1) -> Self:
        """Unfitted, with frames of 40 ms every 10 ms and tokens of 50 ms, or the nearest the rate allows."""
        hop = max(4 * round(sample_rate_hz / 400), 4)
        return cls(channels, sample_rate_hz, audio_channels, hop=hop, window=4 * hop)

    @property
    def encode_reach(self) -> Reach:
        return Reach(self.reach_samples, self.reach_samples)

    @property
    def decode_reach(self) -> None:
        """Phase runs on from token to token."""

    def encode(self, wave: Tensor) -> Posterior:
        """(B, A, S) float32 -> (B, C, N); a last token that S does not fill is filled with silence."""
        return Posterior(rearrange(self.components(self.features(wave)), "b n c -> b c n"))

    def features(self, wave: Tensor) -> Tensor:
        """(B, N, F): weighted log powers of each token's frames and envelope blocks."""
        wave = self.padded(wave)
        loud = loudness(squared(self.spectrum(wave))) * self._bin_weights()
        return self.tokens(loud, self._envelope(wave))

    def descriptions(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder is to predict: (B, A, M, 3K) weighted frames and (B, A, E) envelope blocks."""
        wave = self.padded(wave)
        spectrum = self.spectrum(wave)
        loud = loudness(squared(spectrum))
        before = F.pad(spectrum, (0, 0, 1, 0))[..., :-1, :]
        turn = torch.polar(loud, (spectrum * before.conj() * self._bin_turn().conj()).angle())
        weights = self._bin_weights()
        frames = torch.cat([loud * weights, turn.real * weights, turn.imag * weights], dim=-1)
        return frames, self._envelope(wave)

    def padded(self, wave: Tensor) -> Tensor:
        channels = self.geometry.audio_channels
        if wave.ndim != 3 or wave.shape[1] != channels:
            raise ValueError(f"the wave must be (B, {channels}, S), not {tuple(wave.shape)}")
        length = wave.shape[-1]
        return F.pad(wave, (0, self.geometry.time.units(self.geometry.time.steps(length)) - length))

    def _envelope(self, wave: Tensor) -> Tensor:
        return loudness(self.block_power(wave))

    def tokens(self, frames: Tensor, envelope: Tensor) -> Tensor:
        """(B, A, M, R) frames and (B, A, E) envelope blocks -> (B, N, F)."""
        spectra = rearrange(frames, "b a (n j) r -> b n (a j r)", j=self.frames_per_token)
        blocks = rearrange(envelope, "b a (n e) -> b n (a e)", e=2 * self.frames_per_token)
        return torch.cat([spectra, blocks], dim=-1)

    def spectrum(self, wave: Tensor) -> Tensor:
        """(..., S) -> (..., M, K): frame m is centred on sample (m + 1/2) * hop; a full-scale sine has magnitude 1."""
        frames = F.pad(wave, (self.reach_samples, self.reach_samples)).unfold(-1, self.window, self.hop)
        taper = self._taper(wave)
        return torch.fft.rfft(frames * (taper * (2 / taper.sum())))

    def wave(self, spectrum: Tensor) -> Tensor:
        """The least-squares inverse of `spectrum`: (B, M, K) -> (B, M * hop)."""
        taper = self._taper(spectrum.real)
        frames = torch.fft.irfft(spectrum, n=self.window) * taper * (taper.sum() / 2)
        count, side = spectrum.shape[1], self.reach_samples

        def overlap_add(parts: Tensor) -> Tensor:
            size = (1, (count - 1) * self.hop + self.window)
            total = F.fold(parts.transpose(1, 2), size, (1, self.window), stride=(1, self.hop))
            return total[:, 0, 0, side : side + count * self.hop]

        return overlap_add(frames) / overlap_add(taper.square().expand(1, count, -1))

    def block_power(self, wave: Tensor) -> Tensor:
        """(..., S) -> (..., 2 * S / hop): power around the centre of each half hop, over one hop."""
        taper = torch.hann_window(self.hop, device=wave.device)
        squares = F.pad(wave.square(), (self.hop // 4, self.hop // 4)).unfold(-1, self.hop, self.hop // 2)
        return squares @ (taper * 2 / taper.sum())

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, N) -> (B, A, S) float32, S = N * stride. Deterministic: the noise in it is always the same noise."""
        if latents.ndim != 3 or latents.shape[1] != self.geometry.channels:
            raise ValueError(f"latents must be (B, {self.geometry.channels}, N), not {tuple(latents.shape)}")
        j, channels = self.frames_per_token, self.geometry.audio_channels
        tokens = rearrange(self.predict(latents), "b f n -> b n f")
        blocks = 2 * j * channels
        spectra, envelope = tokens.split([tokens.shape[-1] - blocks, blocks], -1)
        frames = self.frames.inverse(rearrange(spectra, "b n (a j r) -> (b a) (n j) r", a=channels, j=j))
        envelope = rearrange(envelope, "b n (a e) -> (b a) (n e)", a=channels)
        return rearrange(self.synthesise(frames, envelope), "(b a) s -> b a s", a=channels)

    def synthesise(self, frames: Tensor, envelope: Tensor) -> Tensor:
        """The inverse of `descriptions`, nearly: (B, M, 3K) frames and (B, E) envelope -> (B, M * hop)."""
        loud, real, imag = rearrange(frames, "b m (p k) -> p b m k", p=3) / self._bin_weights()
        advance = torch.complex(real, imag) / loud.clamp_min(0.05)  # quieter bins are nobody's tone
        magnitude = _root(unloudness(loud))
        wave = self.wave(magnitude * self._phases(magnitude, advance))
        return self._enveloped(wave, unloudness(envelope))

    def predict(self, latents: Tensor) -> Tensor:
        """(B, F, N): frames, by their components, and envelope blocks of each token."""
        padded = self.in_silence(latents)
        return self.linear(padded) + self.refine(padded)

    def in_silence(self, latents: Tensor) -> Tensor:
        """Latents between as many silent ones as the decoder looks for on either side of a token."""
        still = self.silence[:, None].expand(len(latents), -1, REACH)
        return torch.cat([still, latents, still], dim=-1)

    @torch.no_grad()
    def _phases(self, magnitude: Tensor, advance: Tensor) -> Tensor:
        """(B, M, K) on the unit circle: carried from frame to frame, then made consistent. Gradients pass it by."""
        # Referred to a frame's centre, the bins of one partial share one phase
        alternate = 1 - 2 * (torch.arange(magnitude.shape[-1], device=magnitude.device) % 2)
        certainty = advance.abs().clamp(max=1)
        draw = torch.Generator().manual_seed(0)
        noise = torch.randn(magnitude.shape[1:], dtype=torch.complex64, generator=draw).to(magnitude.device)
        noise = noise * (1 - certainty.square()).sqrt()
        before = F.pad(magnitude, (0, 0, 1, 0))[:, :-1]
        drive = before * torch.sgn(advance) * self._bin_turn()
        onset = ONSET * magnitude
        unit, units = torch.ones_like(drive[:, 0]), []
        for turn, start, sure, chance in zip(*(x.unbind(1) for x in (drive, onset, certainty, noise)), strict=True):
            carried = unit * turn
            near = start + carried
            near[:, 1:].add_(carried[:, :-1], alpha=0.5)
            near[:, :-1].add_(carried[:, 1:], alpha=0.5)
            unit = torch.sgn(torch.addcmul(chance, torch.sgn(near), sure))
            units.append(unit)
        phases = torch.stack(units, 1) * alternate
        for _ in range(self.refinements):
            phases = torch.sgn(self.spectrum(self.wave(magnitude * phases)))
        return phases

    def _enveloped(self, wave: Tensor, power: Tensor) -> Tensor:
        """The wave with the power of each half hop corrected to `power` (B, E)."""
        gain = _root(power / self.block_power(wave).clamp_min(1e-9)).clamp(max=4)
        smooth = F.interpolate(gain[:, None], scale_factor=self.hop // 2, mode="linear")[:, 0]
        return wave * smooth

    def _taper(self, like: Tensor) -> Tensor:
        return torch.hann_window(self.window, device=like.device)

    def _bin_turn(self) -> Tensor:
        """(K,): how far the centre frequency of each bin turns in one hop."""
        bins = torch.arange(self.window // 2 + 1, device=self.silence.device)
        return torch.polar(torch.ones(len(bins), device=bins.device), 2 * math.pi * bins * self.hop / self.window)

    def _bin_weights(self) -> Tensor:
        """(K,): bins counted by the width of the ear's filters there (ERB, Glasberg and Moore 1990)."""
        hz = torch.linspace(0, self.geometry.sample_rate_hz / 2, self.window // 2 + 1, device=self.silence.device)
        return (1 + 4.37e-3 * hz).rsqrt()


def squared(spectrum: Tensor) -> Tensor:
    """Its squared magnitude, without the root that abs() takes at many times the price."""
    return spectrum.real.square().addcmul(spectrum.imag, spectrum.imag)


def loudness(power: Tensor) -> Tensor:
    return ((power + FLOOR) / FLOOR).log10() / FLOOR_DECADES


def unloudness(loud: Tensor) -> Tensor:
    """The power of a loudness; exactly 0 up to 3 dB above the floor, or decoding errors would make silence hiss."""
    return (torch.pow(10.0, (loud * FLOOR_DECADES).clamp(max=FLOOR_DECADES + 1)) - 2).clamp_min(0) * FLOOR


@torch.no_grad()
def _analyse(codec: SpectralAudioCodec, waves: Tensor, first: int) -> tuple[Tensor, Tensor, float]:
    parts, analysed = waves.split(PART), waves[:first].split(PART)
    kept = codec.components.fit(torch.cat([codec.features(part).flatten(0, 1) for part in analysed])).sum().item()
    # of every third frame: neighbours overlap and say much the same
    frames = torch.cat([codec.descriptions(part)[0][:, :, ::3].flatten(0, 2) for part in analysed])
    codec.frames.fit(frames, spread=0.0)
    targets = torch.cat([_targets(codec, part) for part in parts])
    quiet = waves.new_zeros(1, waves.shape[1], 3 * codec.geometry.time.stride)
    codec.silence.copy_(codec.encode(quiet).mean[0, :, 1])
    return targets, torch.cat([codec.encode(part).mean for part in parts]), kept


def _targets(codec: SpectralAudioCodec, waves: Tensor) -> Tensor:
    """(B, F, N) what `predict` is to say."""
    frames, envelope = codec.descriptions(waves)
    return rearrange(codec.tokens(codec.frames(frames), envelope), "b n f -> b f n")


def _root(power: Tensor) -> Tensor:
    """Square root with a gradient of 0 at 0, where the true one is infinite."""
    return torch.where(power > 0, power.clamp_min(1e-20).sqrt(), 0)


def fit_audio(
    codec: SpectralAudioCodec,
    waves: Tensor,
    steps: int = 800,
    noise: float = 0.5,
    seed: int = 0,
    analysed: int | None = None,
) -> float:
    """Fit to (N, A, S) clips, the components to the first `analysed` of them alone; returns the share of variance the
    latents keep."""
    targets, latents, kept = _analyse(codec, waves, analysed or len(waves))
    codec.refine.reset(seed)
    _fit_linear(codec, latents, targets, noise / 2 * latents.std(dim=(0, 2)))

    def loss(x: Tensor, rows: Tensor) -> Tensor:
        return F.mse_loss(codec.predict(x), targets[rows])

    fitted = [*codec.linear.parameters(), *codec.refine.parameters()]
    fit_decoder(fitted, latents, loss, steps, seed, rate=RATE, noise=noise)
    return kept


@torch.no_grad()
def _fit_linear(codec: SpectralAudioCodec, latents: Tensor, targets: Tensor, noise: Tensor) -> None:
    """The best linear decoder in closed form, so that training starts from it."""
    width = 2 * REACH + 1
    x = rearrange(codec.in_silence(latents).unfold(-1, width, 1), "b c n k -> (b n) (c k)")
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=-1).double()
    y = rearrange(targets, "b f n -> (b n) f").double()
    ridge = torch.cat([noise.repeat_interleave(width).square(), noise.new_zeros(1)]).double() * len(x)
    ridge = ridge.clamp_min(1e-9 * len(x))  # of sounds that never differ, as silence, nothing else makes it solvable
    solution = torch.linalg.solve(x.T @ x + torch.diag(ridge), x.T @ y)
    codec.linear.weight.copy_(rearrange(solution[:-1], "(c k) f -> f c k", k=width))
    if codec.linear.bias is not None:
        codec.linear.bias.copy_(solution[-1])
