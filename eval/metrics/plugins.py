"""Published metrics whose code or weights avgen does not carry: each says what to install, and under which licence.

`weights.GROUP=module:function` plugs one in: a function of (frames (T, H, W, 3) uint8 or None, fps, wave
(channels, S) float32 or None, rate in Hz, text) that gives a number. AudioBox needs only its package.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from avgen.lines import file_hash
from eval.metric import Definition, Direction, Measure, Metric, Needs, Result, Setup, Skipped, Take

PlugIn = Callable[..., float]


@dataclass(frozen=True)
class Published:
    """One metric of another project."""

    name: str  # group.measure
    says: str
    direction: Direction
    licence: str
    commercial: bool
    install: str
    picture: bool = False
    sound: bool = False
    text: bool = False
    unit: str = ""


PUBLISHED = (
    Published(
        "imagebind.audio_video",
        "Cosine of ImageBind's picture (5 x 2 s clips, 3 crops) and sound (3 x 2 s).",
        "higher",
        "CC BY-NC-SA 4.0, code and weights",
        False,
        "pip install git+https://github.com/facebookresearch/ImageBind",
        picture=True,
        sound=True,
    ),
    Published(
        "synchformer.desync_s",
        "Mean size of Synchformer's offset (21 classes, -2 to 2 s) over 14-segment parts; 24-01-04T16-39-21.",
        "lower",
        "MIT",
        True,
        "clone https://github.com/v-iashin/Synchformer",
        picture=True,
        sound=True,
        unit="s",
    ),
    Published(
        "syncnet.confidence",
        "SyncNet v2's confidence of lips and speech at 25 fps, mean over face tracks.",
        "higher",
        "MIT",
        True,
        "clone https://github.com/joonson/syncnet_python",
        picture=True,
        sound=True,
    ),
    Published(
        "videoreward.overall",
        "VideoReward's un-normalised visual plus motion quality.",
        "higher",
        "that of KwaiVGI/VideoReward: read its card",
        False,
        "clone https://github.com/KwaiVGI/VideoAlign",
        picture=True,
        text=True,
    ),
)
AUDIOBOX_INSTALL = "pip install audiobox_aesthetics"
AUDIOBOX = {
    "ce": "content enjoyment",
    "cu": "content usefulness",
    "pc": "production complexity",
    "pq": "production quality",
}


def metrics(setup: Setup) -> Sequence[Metric]:
    """Of every group of plug-ins; the registry keeps what is of the one it asks for."""
    return (*(plugged(one, setup) for one in PUBLISHED), *audiobox())


def plugged(one: Published, setup: Setup) -> Measure:
    group = one.name.split(".")[0]
    place = setup.weights.get(group, "")
    needs = Needs(one.picture, one.sound, one.text, licence=one.licence, commercial=one.commercial, install=one.install)

    def of(take: Take) -> Result:
        if not place:
            raise Skipped(f"needs {group}: {one.install}, then give weights.{group}=module:function")
        clip = take.clip
        return Result(float(opened(place)(clip.video, clip.fps, clip.audio, clip.sample_rate_hz, take.prompt.text)))

    return Measure(Definition(one.name, one.says, one.unit, one.direction, 1, needs, parameters(place)), of)


@lru_cache(maxsize=8)
def parameters(place: str) -> dict[str, str]:
    """An edited module measures something else. What it imports is not seen: a changed constant in it says so."""
    module = place.partition(":")[0]
    try:
        found = importlib.util.find_spec(module) if module else None
    except (ImportError, ValueError):  # opened() will tell
        found = None
    origin = Path(found.origin) if found and found.origin else None
    return {"plug_in": place} | ({"code": file_hash(origin)[:16]} if origin and origin.is_file() else {})


@lru_cache(maxsize=8)
def opened(place: str) -> PlugIn:
    module, _, name = place.partition(":")
    try:
        found: PlugIn = getattr(importlib.import_module(module), name)
        return found
    except (ImportError, AttributeError, ValueError) as error:
        raise Skipped(f"{place!r} cannot be imported as module:function: {error}") from error


def audiobox() -> tuple[Measure, ...]:
    needs = Needs(sound=True, packages=("audiobox_aesthetics",), licence="CC BY 4.0", install=AUDIOBOX_INSTALL)
    return tuple(
        Measure(
            Definition(f"audiobox.{axis}", f"AudioBox aesthetics, {says}, 1 to 10.", "", "higher", needs=needs),
            lambda take, axis=axis: take.once(aesthetics)[axis.upper()],  # type: ignore[misc]
        )
        for axis, says in AUDIOBOX.items()
    )


def aesthetics(take: Take) -> dict[str, float]:
    wave = torch.from_numpy(take.sound.wave)
    (found,) = predictor().forward([{"path": wave, "sample_rate": take.sound.rate_hz}])
    return {axis: float(value) for axis, value in found.items()}


@lru_cache(maxsize=1)
def predictor() -> Any:
    return importlib.import_module("audiobox_aesthetics.infer").initialize_predictor()
