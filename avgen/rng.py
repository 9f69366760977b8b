"""Randomness as an argument: every stream of it follows from what it is for, never from who draws it.

A sample's noise, level, task and caption dropout depend on (seed, step, place in the global batch) alone, so
they are the same at any number of ranks, differ between ranks, and come back exactly after a resume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def word_of(*parts: int | str) -> int:
    """64 bits from a seed and what it is for."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def seed_of(*parts: int | str) -> int:
    """63 of them: what torch takes."""
    return word_of(*parts) >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed_of(*parts))


def uniforms(count: int, seed: int, purpose: str, step: int, samples: Sequence[int]) -> Tensor:
    """(count, B) float64 in (0, 1), one column per sample of the global batch."""
    columns = [torch.rand(count, generator=generator(seed, purpose, step, i), dtype=torch.float64) for i in samples]
    return torch.stack(columns, dim=1).clamp(1e-12, 1 - 1e-12)


def gaussian(shape: torch.Size, *parts: int | str) -> Tensor:
    """One sample's noise, drawn on the CPU in whole blocks of 16: so what is drawn first does not depend on how much
    is drawn, and is the same on any hardware and behind any padding."""
    size = shape.numel()
    return torch.randn(-(-size // 16) * 16, generator=generator(*parts))[:size].view(shape)


def noise_like(x: Tensor, seed: int, purpose: str, step: int, samples: Sequence[int]) -> Tensor:
    """Gaussian noise of x's shape (B, N, C), one generator per sample."""
    rows = [gaussian(x.shape[1:], seed, purpose, step, i) for i in samples]
    return torch.stack(rows).to(x.device, x.dtype, non_blocking=True)
