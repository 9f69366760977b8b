"""Fingerprints of networks: what their weights are, bit by bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


class Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


def add_weights(digest: Digest, weights: Mapping[str, Tensor]) -> None:
    """Names, kinds, shapes and bits, in the order of the names: a second per gigabyte or so."""
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def fingerprint_of(label: str, weights: Mapping[str, Tensor]) -> str:
    """16 hex digits of a label (class and settings) and of weights."""
    digest: Any = hashlib.sha256(label.encode())
    add_weights(digest, weights)
    return digest.hexdigest()[:16]


def glance(weights: Mapping[str, Tensor], each: int = 4096) -> str:
    """16 hex digits of the beginning of every weight: as good as all of it at telling two trainings apart, and done at
    once however large the model."""
    return fingerprint_of("glance", {name: value.detach().flatten()[:each] for name, value in weights.items()})


def folder_mark(folder: Path) -> str:
    """16 hex digits of everything in a model's folder, as it lies there; but for what is hidden, where downloaders note
    the time."""
    found = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        found.update(inside.as_posix().encode())
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:16]
