"""Where a frozen text encoder is found: the keys `text.*` of `avgen prepare`. `avgen.models.encoders` opens it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class TextFiles:
    """A frozen text encoder of transformers."""

    path: str  # folder, or id on the hub
    subfolder: str = ""  # of a diffusers pipeline: text_encoder, or text_encoder_2 with tokenizer_2 beside it
    max_length: int = 256  # tokens; longer captions are cut
    layers: tuple[int, ...] = (-1,)  # hidden states side by side: 0 the embeddings, -1 the last
    fixed_length: bool = False  # every caption padded to max_length, its zeros counted as tokens: as Wan was trained
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the weights and the work
    cache: Path | None = None  # folder that keeps features by hash of caption, for other stores too; null: OUT/captions
