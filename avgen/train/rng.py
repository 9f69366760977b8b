"""Randomness as an argument: every stream of it follows from what it is for, never from who draws it.

A sample's noise, level, task and caption dropout depend on (seed, step, place in the global batch) alone, so
they are the same at any number of ranks, differ between ranks, and come back exactly after a resume.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def seed_of(*parts: int | str) -> int:
    """63 bits from a seed and what it is for."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed_of(*parts))


def uniforms(count: int, seed: int, purpose: str, step: int, samples: range) -> Tensor:
    """(count, B) float64 in (0, 1), one column per sample of the global batch."""
    columns = [torch.rand(count, generator=generator(seed, purpose, step, i), dtype=torch.float64) for i in samples]
    return torch.stack(columns, dim=1).clamp(1e-12, 1 - 1e-12)


def noise_like(x: Tensor, seed: int, purpose: str, step: int, samples: range) -> Tensor:
    """Gaussian noise of x's shape (B, N, C), one generator per sample.

    It is drawn on the CPU, whatever x's device, in whole blocks of 16: so a sample's noise is the same on
    any hardware and behind any padding.
    """
    size = x.shape[1:].numel()
    rows = [
        torch.randn(-(-size // 16) * 16, generator=generator(seed, purpose, step, i))[:size].view(x.shape[1:])
        for i in samples
    ]
    return torch.stack(rows).to(x.device, x.dtype, non_blocking=True)
