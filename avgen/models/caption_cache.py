"""Features of captions on disk: a caption is encoded once, however many clips, epochs and processes ask for it."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from avgen.models.text import TextEncoder
from avgen.types import Text, stack_texts


class CachedText:
    """A `TextEncoder` that asks another one only for captions it has not met.

    One file per caption, in a folder named by the encoder's fingerprint, so another encoder's features are never
    read. A file takes its name when it is whole: processes may share the folder and may be killed.
    """

    def __init__(self, encoder: TextEncoder, folder: Path, batch: int = 32) -> None:
        if batch < 1:
            raise ValueError(f"batch={batch} captions cannot be encoded at once: at least 1")
        self.encoder, self.batch = encoder, batch
        self.folder = folder / encoder.fingerprint

    @property
    def width(self) -> int | None:
        return self.encoder.width

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.dtype

    @property
    def fingerprint(self) -> str:
        return self.encoder.fingerprint

    def encode(self, captions: Sequence[str]) -> Text:
        """The encoder's features, bit for bit as they were when each caption was first met."""
        if not captions:
            raise ValueError("there are no captions to encode")
        known: dict[str, Text] = {}
        missing = []
        for caption in dict.fromkeys(captions):
            text = self._read(caption)
            if text is None:
                missing.append(caption)
            else:
                known[caption] = text
        for some in _groups(missing, self.batch):
            made = self.encoder.encode(some).to("cpu")
            for caption, x, valid in zip(some, made.x, made.valid, strict=True):
                known[caption] = Text.of(x[None, : int(valid.sum())])  # padding is on the right, whoever made it
                self._write(caption, known[caption].x[0])
        return stack_texts([known[caption] for caption in captions]).to(self.encoder.device)

    def path(self, caption: str) -> Path:
        digest = hashlib.sha256(caption.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def _read(self, caption: str) -> Text | None:
        try:
            kept = load(self.path(caption).read_bytes())
        except FileNotFoundError:
            return None
        except SafetensorError:  # a power cut can leave a file whole in name alone
            return None
        return Text.of(nn.functional.pad(kept["x"], (0, 0, 0, int(kept["zeros"])))[None])

    def _write(self, caption: str, x: Tensor) -> None:
        """(L, D); the zeros that fixed lengths end with are counted, not kept."""
        told = 1 + int(x.any(dim=1).nonzero().max()) if x.any() else 0
        path = self.path(caption)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            part.write_bytes(save({"x": x[:told].contiguous(), "zeros": torch.tensor(len(x) - told)}))
            part.replace(path)
        except OSError as error:  # a full disk, mostly: whoever runs this can mend it
            raise ValueError(
                f"{path} cannot be written ({error.strerror}): make room, or keep captions' features elsewhere "
                "(text.cache)"
            ) from error
        finally:
            part.unlink(missing_ok=True)


def _groups(captions: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for begin in range(0, len(captions), size):
        yield captions[begin : begin + size]
