"""The embedded audio codec: principal components of short-time spectra in, a phase-propagating vocoder out.

What a log-spectrogram codec loses is phase, and with it steady pitch (a tone warbles) and attack (a strike
smears). Here the decoder predicts, next to each bin's magnitude, how its phase *advances* from frame to frame
as a vector whose length is how predictable that advance is: long in tones, whose exact frequency it carries,
short in noise, where the synthesis fills in random phase. A gain envelope finer than the spectral frames
restores attacks, loudness and silence.
"""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from avgen.models.codecs import Posterior
from avgen.models.embedded import Components, EmbeddedCodec, Refiner, fit_decoder
from avgen.types import AudioGeometry, TimeGrid

# Powers are relative to a full-scale sine. Below the floor is silence: a decade above it the ear is still in a quiet
# room, and every decade kept costs latents.
FLOOR_DECADES = 6.5
FLOOR = 10.0**-FLOOR_DECADES


ENVELOPE_WEIGHT = 1.0


class SpectralAudioCodec(EmbeddedCodec):
    """Latents of `frames_per_token` spectral frames, `hop` samples apart; any duration.

    Token n covers samples [n * stride, (n + 1) * stride) with stride = hop * frames_per_token, and depends on
    (window - hop) / 2 samples more on either side.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 32,
        sample_rate_hz: int = 16000,
        audio_channels: int = 1,
        hop: int = 128,
        window: int = 512,
        frames_per_token: int = 5,
        hidden: int = 256,
        rank: int = 64,
        refinements: int = 6,
    ) -> None:
        super().__init__()
        if hop % 2 or window % (2 * hop):
            raise ValueError(f"window={window} must be a multiple of twice the hop={hop}, and the hop even")
        stride = hop * frames_per_token
        self.geometry = AudioGeometry(channels, TimeGrid(stride, stride), sample_rate_hz, audio_channels)
        self.hop, self.window, self.frames_per_token, self.refinements = hop, window, frames_per_token, refinements
        bins, blocks = window // 2 + 1, 2 * frames_per_token
        self.components = Components((frames_per_token * bins + blocks) * audio_channels, channels)
        self.frames = Components(3 * bins, rank)
        described = (frames_per_token * rank + blocks) * audio_channels
        self.linear = nn.Conv1d(channels, described, 3)
        self.refine = Refiner(nn.Conv1d, channels, hidden, described, padding=0)
        self.register_buffer("silence", torch.zeros(channels))
        self.silence: Tensor

    # -- analysis

    def encode(self, wave: Tensor) -> Posterior:
        """(B, A, S) float32 -> (B, C, N); a last token that S does not fill is filled with silence."""
        return Posterior(rearrange(self.components(self.features(wave)), "b n c -> b c n"))

    def features(self, wave: Tensor) -> Tensor:
        """(B, N, F): weighted log powers of each token's frames and envelope blocks."""
        wave = self.padded(wave)
        loud = loudness(self.spectrum(wave).abs().square()) * self._bin_weights()
        return self.tokens(loud, self._envelope(wave))

    def descriptions(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder is to predict: (B, A, M, 3K) weighted frames and (B, A, E) envelope blocks."""
        wave = self.padded(wave)
        spectrum = self.spectrum(wave)
        loud = loudness(spectrum.abs().square())
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
        return loudness(self.block_power(wave)) * ENVELOPE_WEIGHT

    def tokens(self, frames: Tensor, envelope: Tensor) -> Tensor:
        """(B, A, M, R) frames and (B, A, E) envelope blocks -> (B, N, F)."""
        spectra = rearrange(frames, "b a (n j) r -> b n (a j r)", j=self.frames_per_token)
        blocks = rearrange(envelope, "b a (n e) -> b n (a e)", e=2 * self.frames_per_token)
        return torch.cat([spectra, blocks], dim=-1)

    def spectrum(self, wave: Tensor) -> Tensor:
        """(..., S) -> (..., M, K): frame m is centred on sample (m + 1/2) * hop; a full-scale sine has magnitude 1."""
        side = (self.window - self.hop) // 2
        frames = F.pad(wave, (side, side)).unfold(-1, self.window, self.hop)
        taper = self._taper(wave)
        return torch.fft.rfft(frames * taper) * (2 / taper.sum())

    def wave(self, spectrum: Tensor) -> Tensor:
        """The least-squares inverse of `spectrum`: (B, M, K) -> (B, M * hop)."""
        taper = self._taper(spectrum.real)
        frames = torch.fft.irfft(spectrum, n=self.window) * taper * (taper.sum() / 2)
        count, side = spectrum.shape[1], (self.window - self.hop) // 2

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

    # -- synthesis

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, N) -> (B, A, S) float32, S = N * stride. Deterministic: the noise in it is always the same noise."""
        j, channels = self.frames_per_token, self.geometry.audio_channels
        tokens = rearrange(self.predict(latents), "b f n -> b n f")
        blocks = 2 * j * channels
        spectra, envelope = tokens.split([tokens.shape[-1] - blocks, blocks], -1)
        frames = self.frames.inverse(rearrange(spectra, "b n (a j r) -> (b a) (n j) r", a=channels, j=j))
        loud, real, imag = rearrange(frames, "b m (p k) -> p b m k", p=3) / self._bin_weights()
        advance = torch.complex(real, imag) / loud.clamp_min(0.05)
        wave = self.wave(self._phased(unloudness(loud).sqrt(), advance))
        power = unloudness(rearrange(envelope, "b n (a e) -> (b a) (n e)", a=channels) / ENVELOPE_WEIGHT)
        return rearrange(self._enveloped(wave, power), "(b a) s -> b a s", a=channels)

    def predict(self, latents: Tensor) -> Tensor:
        """(B, F, N): frames, by their components, and envelope blocks of each token."""
        still = self.silence[:, None].expand(len(latents), -1, 1)
        padded = torch.cat([still, latents, still], dim=-1)
        return self.linear(padded) + self.refine(padded)

    def _phased(self, magnitude: Tensor, advance: Tensor) -> Tensor:
        """Phases for (B, M, K) magnitudes: carried from frame to frame, then made consistent."""
        # Referred to a frame's centre, the bins of one partial have one phase
        alternate = 1 - 2 * (torch.arange(magnitude.shape[-1], device=magnitude.device) % 2)
        certainty = advance.abs()
        drive = advance / certainty.clamp_min(1).clamp_min(1e-6) * self._bin_turn()
        draw = torch.Generator().manual_seed(0)
        random = torch.randn(magnitude.shape[1:], dtype=torch.complex64, generator=draw).to(magnitude.device)
        random = random * (1 - certainty.clamp(max=1).square()).sqrt()
        state = magnitude[:, 0].to(random.dtype)
        out = []
        floor = 0.1 * magnitude
        for m in range(magnitude.shape[1]):
            carried = state * drive[:, m]
            spread = carried.clone()
            spread[:, 1:] += 0.5 * carried[:, :-1]
            spread[:, :-1] += 0.5 * carried[:, 1:]
            spread = spread + floor[:, m]
            unit = spread / spread.abs().clamp_min(1e-9) * certainty[:, m].clamp(max=1) + random[:, m]
            state = magnitude[:, m] * unit / unit.abs().clamp_min(1e-9)
            out.append(state)
        spectrum = torch.stack(out, 1) * alternate
        for _ in range(self.refinements):
            again = self.spectrum(self.wave(spectrum))
            spectrum = magnitude * again / again.abs().clamp_min(1e-9)
        return spectrum

    def _enveloped(self, wave: Tensor, power: Tensor) -> Tensor:
        """The wave with the power of each half hop corrected to `power` (B, E)."""
        gain = (power / self.block_power(wave).clamp_min(1e-9)).sqrt().clamp(max=4)
        gain = torch.where(power > FLOOR, gain, 0)
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


def loudness(power: Tensor) -> Tensor:
    return ((power + FLOOR) / FLOOR).log10() / FLOOR_DECADES


def unloudness(loud: Tensor) -> Tensor:
    return (torch.pow(10.0, (loud * FLOOR_DECADES).clamp(max=FLOOR_DECADES + 1)) - 1).clamp_min(0) * FLOOR


@torch.no_grad()
def _analyse(codec: SpectralAudioCodec, waves: Tensor) -> tuple[Tensor, Tensor, float]:
    kept = codec.components.fit(codec.features(waves).flatten(0, 1)).sum().item()
    frames, envelope = codec.descriptions(waves)
    codec.frames.fit(frames.flatten(0, 2), spread=0.0)
    targets = rearrange(codec.tokens(codec.frames(frames), envelope), "b n f -> b f n")
    quiet = waves.new_zeros(1, waves.shape[1], 3 * codec.geometry.time.stride)
    codec.silence.copy_(codec.encode(quiet).mean[0, :, 1])
    return targets, codec.encode(waves).mean, kept


def fit_audio(codec: SpectralAudioCodec, waves: Tensor, steps: int = 600, noise: float = 0.2, seed: int = 0) -> float:
    """Fit to (N, A, S) clips; returns the share of variance the latents keep."""
    targets, latents, kept = _analyse(codec, waves)
    codec.refine.reset(seed)
    _fit_linear(codec, latents, targets, noise / 2 * latents.std(dim=(0, 2)))

    def loss(x: Tensor, rows: Tensor) -> Tensor:
        return F.mse_loss(codec.predict(x), targets[rows])

    fit_decoder([*codec.linear.parameters(), *codec.refine.parameters()], latents, loss, steps, seed, noise=noise)
    return kept


@torch.no_grad()
def _fit_linear(codec: SpectralAudioCodec, latents: Tensor, targets: Tensor, noise: Tensor) -> None:
    """The best linear decoder of three tokens in closed form, so that training starts from it."""
    still = codec.silence[:, None].expand(len(latents), -1, 1)
    context = torch.cat([still, latents, still], dim=-1).unfold(-1, 3, 1)  # (B, C, N, 3)
    x = rearrange(context, "b c n k -> (b n) (c k)")
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=-1).double()
    y = rearrange(targets, "b f n -> (b n) f").double()
    ridge = torch.cat([noise.repeat_interleave(3).square(), noise.new_zeros(1)]).double() * len(x)
    solution = torch.linalg.solve(x.T @ x + torch.diag(ridge), x.T @ y)
    codec.linear.weight.copy_(rearrange(solution[:-1], "(c k) f -> f c k", k=3))
    if codec.linear.bias is not None:
        codec.linear.bias.copy_(solution[-1])
