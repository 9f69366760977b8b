"""Captions: an embedded byte-level encoder that trains with the model, and transformers' encoders frozen before it.

Shape letters: B captions, L tokens, D text features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avgen.models.architecture import TextConfig
from avgen.models.attention import attend
from avgen.types import Text

BEGIN = 256  # stands before every caption, so that an empty one still has a token
VOCABULARY = 257
# Runs of bytes that end at a place, hashed into one table: words are told apart from the first step, where bytes alone
# must first be put together by the layers (Pagnoni et al. 2024, Byte Latent Transformer, section 3.2.1).
GRAMS = (3, 5)
GRAM_ROWS = 1792  # so many that the toy stays under four million weights


@runtime_checkable
class TextEncoder(Protocol):
    """Captions to what a model reads of them: a frozen encoder's features, or bytes."""

    @property
    def width(self) -> int | None:
        """Of the features; None for bytes, whose features the model learns itself."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def fingerprint(self) -> str:
        """A short hash of everything that decides what the features mean."""
        ...

    def encode(self, captions: Sequence[str]) -> Text:
        """Text on the encoder's device, none of its captions dropped; an empty caption is a caption."""
        ...


class ByteText:
    """The embedded encoder's side before the model: captions as bytes."""

    width = None
    device = torch.device("cpu")
    dtype = torch.int64

    def __init__(self, max_length: int) -> None:
        if max_length < 1:
            raise ValueError(f"max_length={max_length} must be at least 1: a caption begins with a mark of its own")
        self.max_length = max_length

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"bytes {BEGIN} {self.max_length}".encode()).hexdigest()[:16]

    def encode(self, captions: Sequence[str]) -> Text:
        return bytes_of(captions, self.max_length)


def bytes_of(captions: Sequence[str], max_length: int, multiple: int = 1, least: int = 1) -> Text:
    """Captions as UTF-8 bytes for the embedded encoder: (B, L) int64, L <= max_length.

    A longer caption is cut at a character boundary; where max_length allows, L is a multiple of `multiple` and at least
    `least`.
    """
    rows = [_cut(caption, max_length - 1) for caption in captions]
    ends = np.array([1 + len(row) for row in rows])
    length = min(max_length, max(least, -(-int(ends.max()) // multiple) * multiple))
    x = np.zeros((len(rows), length), dtype=np.int64)
    x[:, 0] = BEGIN
    for line, row, end in zip(x, rows, ends, strict=True):
        line[1:end] = np.frombuffer(row, np.uint8)
    return Text.of(torch.from_numpy(x), torch.from_numpy(np.arange(length) < ends[:, None]))


def toybox_bytes(captions: Sequence[str], max_length: int) -> Text:
    """In few lengths, so that compiled code meets few shapes: what the toybox says of one actor fits in 96 bytes, of
    two nearly always in 128 and always in 160."""
    return bytes_of(captions, max_length, multiple=32, least=96)


def captions_of(text: Text) -> list[str] | None:
    """The captions that `bytes_of` wrote down; None where the text is features, which cannot be read back."""
    if text.x.is_floating_point():
        return None
    rows = zip(text.x.tolist(), text.valid.tolist(), strict=True)
    return [bytes(x for x, real in zip(*row, strict=True) if real and x != BEGIN).decode() for row in rows]


def _cut(caption: str, length: int) -> bytes:
    raw = caption.encode()
    return raw if len(raw) <= length else raw[:length].decode(errors="ignore").encode()


class ByteEncoder(nn.Module):
    """A small pre-norm transformer over bytes.

    Their order is told by waves as large as what the bytes say: who is first and which number is whose stands in
    nothing else. Places that are learned from near zero are as good as none for the first thousand steps.
    """

    def __init__(self, width: int, depth: int, heads: int, max_length: int, backend: str) -> None:
        super().__init__()
        self.max_length = max_length
        self.embed = nn.Embedding(VOCABULARY, width)
        self.grams = nn.Embedding(GRAM_ROWS, width)
        self.layers = nn.ModuleList(ByteLayer(width, heads, backend) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(B, L) int64 -> (B, L, D)"""
        if x.shape[1] > self.max_length:
            raise ValueError(f"a caption of {x.shape[1]} bytes is longer than model.text.max_length={self.max_length}")
        h = self.embed(x)
        h = h + waves(x.shape[1], h.shape[-1], x.device).type_as(h)
        for length in GRAMS:
            h = h + self.grams(gram_rows(x, length))
        for layer in self.layers:
            h = layer(h, valid)
        return self.norm(h)


def waves(length: int, width: int, device: torch.device) -> Tensor:
    """(L, D) float32: sines and cosines of each place, of wavelengths from 6 bytes to some 5,000."""
    pairs = -(-width // 2)
    at = torch.arange(length, device=device)[:, None] * 1000.0 ** (-torch.arange(pairs, device=device) / pairs)
    return torch.cat([at.sin(), at.cos()], dim=-1)[:, :width]


def gram_rows(x: Tensor, length: int) -> Tensor:
    """(B, L) bytes -> (B, L) int64: which row of the table holds the `length` bytes that end at each place."""
    code = torch.full_like(x, length)
    for back in range(length):
        earlier = F.pad(x, (back, 0))[:, : x.shape[1]]
        code = (code * 1_000_003 + earlier + 1) % 2_147_483_647
    return code % GRAM_ROWS


class ByteLayer(nn.Module):
    def __init__(self, width: int, heads: int, backend: str) -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        x = x + self.out(attend(q, k, v, valid, self.backend).flatten(-2))
        return x + self.mlp(self.norm2(x))


class Captions(nn.Module):
    """What both towers are told: features of either kind, with a learned null where a caption was dropped."""

    def __init__(self, config: TextConfig, backend: str) -> None:
        super().__init__()
        size = (config.width, config.depth, config.heads, config.max_length)
        self.encoder = ByteEncoder(*size, backend) if config.kind == "bytes" else None
        self.width = config.width
        self.null = nn.Parameter(torch.randn(config.width) * 0.02)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Those of an encoder that trains with the model."""
        return [] if self.encoder is None else list(self.encoder.layers)

    def forward(self, text: Text) -> tuple[Tensor, Tensor]:
        """(B, L, D) features and (B, L) which of them count."""
        if (self.encoder is None) == (text.x.dim() == 2):
            wanted = "features (B, L, D)" if self.encoder is None else "bytes (B, L)"
            raise ValueError(
                f"captions of shape {tuple(text.x.shape)} do not fit model.text.kind: it asks for {wanted}"
            )
        features = text.x.type_as(self.null) if self.encoder is None else self.encoder(text.x, text.valid)
        if features.shape[-1] != self.width:
            raise ValueError(f"caption features are {features.shape[-1]} wide, but model.text.width={self.width}")
        dropped = text.dropped[:, None]
        features = torch.where(dropped[..., None], self.null.type_as(features), features)
        first = torch.arange(text.x.shape[1], device=dropped.device) == 0
        return features, torch.where(dropped, first, text.valid)
