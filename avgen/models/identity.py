"""Fingerprints of networks: what their weights are, bit by bit."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

GENERIC = ("architectures", "dtype", "torch_dtype", "transformers_version")  # how a network was saved, not what it is


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


def chosen(config: Any, kind: type | None = None) -> dict[str, Any]:
    """What a network's configuration says otherwise than its class by default, of transformers or (with its class) of
    diffusers: a newer library knows more keys, and makes no other network of the same file."""
    if hasattr(config, "to_diff_dict"):
        values = config.to_diff_dict()
    else:
        assert kind is not None
        usual = {name: one.default for name, one in inspect.signature(kind.__init__).parameters.items()}  # type: ignore[misc]
        values = {k: v for k, v in config.items() if k not in usual or plain(usual[k]) != plain(v)}
    return {k: v for k, v in values.items() if not k.startswith("_") and k not in GENERIC}


def plain(value: Any) -> str:
    """Lists and tuples alike, as JSON has them."""
    return json.dumps(value, default=str)


def glance(weights: Mapping[str, Tensor], each: int = 4096) -> str:
    """16 hex digits of the beginning of every weight: as good as all of it at telling two trainings apart, and done at
    once however large the model."""
    return fingerprint_of("glance", {name: value.detach().flatten()[:each] for name, value in weights.items()})


def folder_mark(folder: Path) -> str:
    """16 hex digits of everything in a model's folder, as it lies there; but for what is hidden, where downloaders note
    the time."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    found = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        found.update(inside.as_posix().encode())
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:16]
