"""Tiny random codecs of the real classes, as deep as the published ones where that decides what sees what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, AutoencoderOobleck

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


def saved(network: Any, folder: Path) -> Path:
    network.save_pretrained(folder)
    return folder
