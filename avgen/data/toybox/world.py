"""The toybox as a dataset: scene, picture, sound, caption and events of item i, from (seed, split, i) alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np

from avgen.data.toybox.captions import caption
from avgen.data.toybox.picture import render_picture
from avgen.data.toybox.scene import (
    COLOURS,
    EDGE_S,
    HELD_OUT,
    KINDS,
    SCENE_TYPES,
    SEEN,
    SIZES,
    TURN_GAP_S,
    Combination,
    Event,
    Kind,
    Scene,
    SceneFacts,
    SceneType,
    draw_facts,
    events,
    facts_of,
    scene_from_facts,
)
from avgen.data.toybox.sound import render_sound
from avgen.types import Clip

Split = Literal["train", "test", "heldout"]
SPLITS: tuple[Split, ...] = get_args(Split)
WORLD_VERSION = 2  # raise it whenever an item changes: prepared data and figures belong to one version


@dataclass(frozen=True)
class ToyboxConfig:
    """The form of the clips and what happens in them."""

    height: int = 32  # pixels
    width: int = 32  # pixels
    fps: float = 8.0  # frames per second
    duration_s: float = 2.0  # of every clip
    sample_rate_hz: int = 16000  # of the sound
    audio_channels: int = 1  # 1, or 2 to hear where an actor is
    scenes: tuple[SceneType, ...] = SCENE_TYPES  # one actor, two in turn, two at once, one unseen, one unheard
    scene_weights: tuple[float, ...] = ()  # how often each of `scenes` is drawn; empty: equally often
    kinds: tuple[Kind, ...] = KINDS  # of actors

    def __post_init__(self) -> None:
        for name, least in (("height", 8), ("width", 8), ("sample_rate_hz", 6000)):
            if getattr(self, name) < least:
                raise ValueError(f"toybox {name}={getattr(self, name)} is too small: at least {least}")
        if not self.fps > 0:
            raise ValueError(f"toybox fps={self.fps} must be positive")
        if self.audio_channels not in (1, 2):
            raise ValueError(f"toybox audio_channels={self.audio_channels} must be 1 or 2")
        if not self.scenes:
            raise ValueError(f"toybox scenes is empty: name at least one of {', '.join(SCENE_TYPES)}")
        for name, allowed in (("scenes", SCENE_TYPES), ("kinds", KINDS)):
            for value in getattr(self, name):
                if value not in allowed:
                    raise ValueError(f"toybox {name} has {value!r}: choose from {', '.join(allowed)}")
        if not self.kinds:
            raise ValueError(f"toybox kinds is empty: name at least one of {', '.join(KINDS)}")
        if self.scene_weights and len(self.scene_weights) != len(self.scenes):
            raise ValueError(
                f"toybox scene_weights has {len(self.scene_weights)} numbers for {len(self.scenes)} scenes:"
                " give one per scene, or none"
            )
        if self.scene_weights and (min(self.scene_weights) < 0 or sum(self.scene_weights) <= 0):
            raise ValueError(f"toybox scene_weights={self.scene_weights} must be >= 0 and not all 0")
        least_s = 2 * EDGE_S + (TURN_GAP_S if "turn" in self.scenes else 0) + 1e-6
        if self.duration_s < least_s:
            raise ValueError(
                f"toybox duration_s={self.duration_s} is too short for scenes={self.scenes}: at least {least_s:.2g}"
            )

    @property
    def frames(self) -> int:
        return max(1, round(self.duration_s * self.fps))

    @property
    def samples(self) -> int:
        return round(self.duration_s * self.sample_rate_hz)

    def scene_type(self, share: float) -> SceneType:
        """The scene type at this share, in [0, 1), of the weights."""
        weights = self.scene_weights or (1.0,) * len(self.scenes)
        place = int(np.searchsorted(np.cumsum(weights) / sum(weights), share, side="right"))
        return self.scenes[min(place, len(self.scenes) - 1)]


@dataclass(frozen=True)
class ToyClip:
    """One item: the media, what is said of it, and the truth about it."""

    clip: Clip
    caption: str
    scene: Scene
    events: tuple[Event, ...]
    facts: SceneFacts

    @property
    def video_caption(self) -> str:
        return caption(self.facts, self.scene.wording, "picture")

    @property
    def audio_caption(self) -> str:
        return caption(self.facts, self.scene.wording, "sound")


def render(scene: Scene, config: ToyboxConfig) -> ToyClip:
    """The scene's first `duration_s` seconds in the config's form; a pure function."""
    clip = Clip(
        video=render_picture(scene, config.height, config.width, config.fps, config.frames),
        audio=render_sound(scene, config.sample_rate_hz, config.samples, config.audio_channels),
        fps=config.fps,
        sample_rate_hz=config.sample_rate_hz,
    )
    facts = facts_of(scene, config.duration_s)
    return ToyClip(clip, caption(facts, scene.wording), scene, events(scene, config.duration_s), facts)


LENGTH = 2**31  # clips of a world


@dataclass(frozen=True)
class Toybox:
    """A map-style dataset without end worth mentioning; item i is the same in every process.

    train and test draw from the same combinations of kind, colour and size; every actor of a heldout item is a
    combination that neither of them ever shows.
    """

    config: ToyboxConfig = ToyboxConfig()
    split: Split = "train"
    seed: int = 0
    length: int = LENGTH

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"toybox split={self.split!r}: choose from {', '.join(SPLITS)}")
        if self.seed < 0:
            raise ValueError(f"toybox seed={self.seed} must not be negative")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> ToyClip:
        return render(self.scene(index), self.config)

    def __iter__(self) -> Iterator[ToyClip]:
        return (self[i] for i in range(self.length))

    @property
    def combinations(self) -> tuple[Combination, ...]:
        """The (kind, colour, size) that this split's actors have."""
        wanted = HELD_OUT if self.split == "heldout" else SEEN
        return tuple(c for c in product(self.config.kinds, COLOURS, SIZES) if c in wanted)

    def scene(self, index: int) -> Scene:
        if not 0 <= index < self.length:
            raise IndexError(f"toybox item {index} is outside 0..{self.length - 1}")
        rng = _generator(self.seed, self.split, index)
        facts = draw_facts(rng, self.config.scene_type(rng.random()), self.combinations, self.config.duration_s)
        return scene_from_facts(rng, facts, self.config.duration_s)

    @property
    def fingerprint(self) -> str:
        """Changes whenever any item of this dataset would."""
        said = json.dumps([WORLD_VERSION, asdict(self.config), self.split, self.seed], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:16]


def render_facts(facts: SceneFacts, config: ToyboxConfig, seed: int = 0, index: int = 0) -> ToyClip:
    """A clip of which these facts (of a parsed caption, say) are true, the rest drawn from (seed, index)."""
    rng = _generator(seed, "facts", index)
    return render(scene_from_facts(rng, facts, config.duration_s), config)


def _generator(seed: int, purpose: str, index: int) -> np.random.Generator:
    """Counter-based, so that neither the order of items nor the worker matters."""
    word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:4], "little")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, word, index])))
