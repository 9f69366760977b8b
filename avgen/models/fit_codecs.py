"""`python -m avgen.models.fit_codecs out=DIR`: fit the embedded codecs to a toybox world."""

from __future__ import annotations

import torch

from avgen.data.toybox import Toybox, ToyboxConfig
from avgen.models.embedded_audio import SpectralAudioCodec, fit_audio
from avgen.models.embedded_video import PatchVideoCodec, fit_video


def fit_embedded(
    world_config: ToyboxConfig, n_clips: int = 384, seed: int = 0
) -> tuple[PatchVideoCodec, SpectralAudioCodec]:
    """Both codecs, fitted to the first `n_clips` training clips of the world; the same for the same arguments."""
    world = Toybox(world_config, split="train", seed=seed)
    clips = [world[i].clip for i in range(n_clips)]
    frames = torch.stack([torch.from_numpy(c.video) for c in clips if c.video is not None])
    waves = torch.stack([torch.from_numpy(c.audio) for c in clips if c.audio is not None])
    video, audio = PatchVideoCodec(), SpectralAudioCodec(sample_rate_hz=world_config.sample_rate_hz,
                                                        audio_channels=world_config.audio_channels)  # fmt: skip
    fit_video(video, frames, seed=seed)
    fit_audio(audio, waves, seed=seed)
    return video.eval(), audio.eval()
