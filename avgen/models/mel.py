"""Log-mel spectrograms as audio codecs were trained on them: magnitudes, Slaney's filters, natural logarithm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks

FLOOR = 1e-5  # of a band's magnitude, before the logarithm


@dataclass(frozen=True)
class LogMel:
    """Frame m is centred on sample m * hop; the sound is mirrored at its ends."""

    sample_rate_hz: int
    bands: int
    hop: int
    window: int = 1024  # samples of a frame

    def __call__(self, wave: Tensor, frames: int) -> Tensor:
        """(..., S) -> (..., frames, bands) float32; sound too short for a mirror, or for the frames, goes on silent."""
        needed = max((frames - 1) * self.hop, self.window)
        wave = F.pad(wave.float(), (0, max(0, needed - wave.shape[-1])))
        taper = torch.hann_window(self.window, device=wave.device)
        flat = wave.flatten(0, -2)
        spectrum = torch.stft(flat, self.window, self.hop, window=taper, pad_mode="reflect", return_complex=True)
        magnitudes = spectrum[..., :frames].abs().transpose(1, 2)
        mel = (magnitudes @ self._filters(wave.device)).clamp_min(FLOOR).log()
        return mel.unflatten(0, wave.shape[:-1])

    def _filters(self, device: torch.device) -> Tensor:
        half = self.sample_rate_hz / 2
        bins = self.window // 2 + 1
        return melscale_fbanks(bins, 0.0, half, self.bands, self.sample_rate_hz, "slaney", "slaney").to(device)
