"""Where codecs are found: the config group `codec`. `avgen.models.opening` opens them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CodecFiles:
    """Where the weights of one codec lie, and how it works."""

    path: str  # folder, or id on the hub
    subfolder: str = ""  # of the codec in it
    vocoder: str | None = None  # subfolder of the vocoder in it; null: where the codec's class has one
    revision: str | None = None  # of the hub's repository; null: its newest
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the weights and the work
    patch: int = 1  # latent cells per token side, as the model reads pictures
    tile_px: int | None = None  # side of the squares that pictures are worked on in; null: whole pictures
    piece_steps: int | None = None  # latent steps of long clips that are worked on at once; null: all


@dataclass(frozen=True)
class CodecConfig:
    """A pair of codecs; either may be absent where a data set has one modality."""

    video: CodecFiles | None = None  # null = no pictures
    audio: CodecFiles | None = None  # null = no sound
