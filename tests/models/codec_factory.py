"""Tiny random codecs of the real classes, as deep as the published ones where that decides what sees what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLWan,
    AutoencoderOobleck,
    MMAudioVAE,
    MMAudioVocoder,
)
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from avgen.models.embedded_audio import SpectralAudioCodec
from avgen.models.embedded_video import PatchVideoCodec
from tests.models.factory import scatter

# A made-up scale, unlike any default
MEAN, STD = (0.3, -0.2, 0.1, 0.0), (0.5, 2.0, 1.5, 0.7)


def wan21(**changes: Any) -> AutoencoderKLWan:
    """Wan 2.1's layers at a width of 6, one block a level instead of two."""
    torch.manual_seed(1)
    settings = {"base_dim": 6, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    settings |= {"latents_mean": MEAN, "latents_std": STD}
    return AutoencoderKLWan(**settings | changes)


def wan22() -> AutoencoderKLWan:
    """Wan 2.2's 16x16x4 form: pixels in patches of 2, residual down- and upsampling."""
    return wan21(is_residual=True, patch_size=2, in_channels=12, out_channels=12)


def oobleck(ratios: tuple[int, ...] = (2, 4, 4, 8, 8)) -> AutoencoderOobleck:
    """Stable Audio's layers and strides."""
    torch.manual_seed(2)
    return AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=list(ratios),
        channel_multiples=[1] * len(ratios),
        decoder_channels=4,
        decoder_input_channels=3,
    )


def ltx2_video(**changes: Any) -> AutoencoderKLLTX2Video:
    """LTX-2's kinds of layers in their order, one block a level; a decoder that sees both ways."""
    torch.manual_seed(3)
    settings: dict[str, Any] = {"latent_channels": 4, "block_out_channels": (8, 8, 8, 8)}
    settings |= {"decoder_block_out_channels": (8, 16, 32), "layers_per_block": (1, 1, 1, 1, 1)}
    settings |= {"decoder_layers_per_block": (1, 1, 1, 1), "decoder_causal": False, "scaling_factor": 0.8}
    network = AutoencoderKLLTX2Video(**settings | changes)
    network.latents_mean.copy_(torch.tensor(MEAN))
    network.latents_std.copy_(torch.tensor(STD))
    return network


def ltx2_audio() -> AutoencoderKLLTX2Audio:
    torch.manual_seed(4)
    network = AutoencoderKLLTX2Audio(
        base_channels=8, ch_mult=(1, 1, 1), num_res_blocks=1, resolution=16, latent_channels=2, mel_bins=16
    )
    network.latents_mean.copy_(torch.linspace(-1, 1, 8))
    network.latents_std.copy_(torch.linspace(0.5, 2, 8))
    return network


def ltx2_vocoder() -> LTX2Vocoder:
    """The published strides: 240 samples a frame at 24 kHz."""
    torch.manual_seed(5)
    return LTX2Vocoder(in_channels=32, hidden_channels=32)


def ltx2_vocoder_with_bwe() -> LTX2VocoderWithBWE:
    """The published strides: 480 samples a frame at 48 kHz, by way of 16 kHz."""
    torch.manual_seed(6)
    chains: dict[str, Any] = {"resnet_kernel_sizes": [3], "resnet_dilations": [[1, 3]]}
    chains |= {f"bwe_{key}": value for key, value in chains.items()}
    widths = {"in_channels": 32, "hidden_channels": 64, "bwe_in_channels": 32, "bwe_hidden_channels": 32}
    network = LTX2VocoderWithBWE(num_mel_channels=16, **widths, **chains)
    stft = network.mel_stft.stft_fn
    torch.nn.init.normal_(stft.forward_basis, std=0.05)
    torch.nn.init.uniform_(network.mel_stft.mel_basis, 0, 0.05)
    return network


def audioldm2() -> AutoencoderKL:
    torch.manual_seed(7)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    sizes = {"block_out_channels": (8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 2}
    return AutoencoderKL(in_channels=1, out_channels=1, scaling_factor=0.4, **blocks, **sizes)


def hifigan() -> SpeechT5HifiGan:
    """The published strides, whose first level makes a sample too many."""
    torch.manual_seed(8)
    config = SpeechT5HifiGanConfig(
        model_in_dim=16,
        upsample_initial_channel=32,
        upsample_rates=[5, 4, 2, 2, 2],
        upsample_kernel_sizes=[16, 16, 8, 4, 4],
        normalize_before=False,
        initializer_range=0.2,
    )
    return SpeechT5HifiGan(config)


def mmaudio() -> MMAudioVAE:
    torch.manual_seed(9)
    return MMAudioVAE(mel_bins=16, latent_channels=3, hidden_channels=8, layers_per_block=1)


def mmaudio_vocoder() -> MMAudioVocoder:
    torch.manual_seed(10)
    return MMAudioVocoder(num_mels=16, upsample_initial_channel=64)


def embedded(codec: PatchVideoCodec | SpectralAudioCodec) -> PatchVideoCodec | SpectralAudioCodec:
    """Unfitted: random where a fit would have put components."""
    scatter(codec, 0)
    codec.components.basis.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.05)
    return codec


def saved(network: Any, folder: Path, vocoder: Any = None) -> Path:
    network.save_pretrained(folder)
    if vocoder is not None:
        vocoder.save_pretrained(folder / "vocoder")
    return folder
