"""What a training run reads: the embedded world, stores, or pairs of clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

from avgen.data.buckets import Shape
from avgen.data.toybox import ToyboxConfig
from avgen.types import AudioGeometry, VideoGeometry


@dataclass(frozen=True)
class ToyboxShape:
    """One form of clips among several."""

    height: int  # pixels
    width: int  # pixels
    fps: float  # frames per second
    duration_s: float  # of every clip


@dataclass(frozen=True)
class SceneStage:
    """How often scenes are drawn in the beginning of a run, where something is learned best without all the rest."""

    until: float  # share of the run's steps after which the next weights take over
    weights: tuple[float, ...]  # as world.scene_weights


def _check_workers(count: int) -> None:
    if count < 0:
        raise ValueError(f"workers={count} cannot be negative; 0 reads in the training process")


def check_shares(stages: str, ends: Sequence[float]) -> None:
    if any(after <= before for before, after in pairwise([0.0, *ends, 1.0])):
        raise ValueError(f"{stages} end at {list(ends)}: until must lie between 0 and 1 and rise from stage to stage")


@dataclass(frozen=True)
class ToyboxData:
    """Clips of the embedded world, encoded on the fly."""

    kind: Literal["toybox"] = "toybox"
    world: ToyboxConfig = field(default_factory=ToyboxConfig)
    codecs: Path = Path("runs/toybox_codecs")  # folder of the embedded codecs; fitted there when it is empty
    fit_clips: int = 384  # training clips the codecs are fitted to
    workers: int = 1  # processes that render and encode ahead of the training step
    shapes: tuple[ToyboxShape, ...] = ()  # forms of clips, each read equally often, one per step; empty: the world's
    mixed_fps: bool = False  # shapes that differ in fps alone share batches, padded
    step_tokens: int | None = None  # most latent tokens a step reads; each shape's batch is then a multiple of `batch`
    mute_share: float = 0.0  # of training clips that come without sound
    blind_share: float = 0.0  # of training clips that come without a picture
    short_audio_share: float = 0.0  # of training clips whose sound ends half-way
    late_share: float = 0.0  # of training clips whose sound comes 0.2 to 0.6 s late
    # other scene_weights before those of the world: [{until: 0.3, weights: [0, 1, 0, 0, 0]}, ...]
    scene_stages: tuple[SceneStage, ...] = ()

    def __post_init__(self) -> None:
        names = ("mute_share", "blind_share", "short_audio_share", "late_share")
        shares = {name: getattr(self, name) for name in names}
        if min(shares.values()) < 0 or sum(shares.values()) > 1:
            said = ", ".join(f"{name}={value}" for name, value in shares.items())
            raise ValueError(f"{said}: each must be at least 0 and all together at most 1")
        _check_workers(self.workers)
        check_shares("scene_stages", [stage.until for stage in self.scene_stages])
        for stage in self.scene_stages:
            replace(self.world, scene_weights=stage.weights)  # which checks them

    @property
    def fitted_world(self) -> ToyboxConfig:
        """What the codecs are fitted to: every type of scene alike, whichever the run shows most."""
        return replace(self.world, scene_weights=())

    @property
    def worlds(self) -> tuple[ToyboxConfig, ...]:
        """What training reads: the world in each of its shapes."""
        return tuple(replace(self.world, **vars(shape)) for shape in self.shapes) or (self.world,)

    @property
    def forms(self) -> tuple[Shape, ...]:
        """Of the clips, one per bucket or bucket's part."""
        return tuple(Shape(world.height, world.width, world.fps, world.duration_s) for world in self.worlds)

    @property
    def often(self) -> dict[Shape, float]:
        """How often clips of each shape are read."""
        return dict.fromkeys(self.forms, 1.0)

    @property
    def caption_tokens(self) -> int:
        """Bytes that captions are padded to: those of two actors nearly always to more than those of one."""
        return 128 if {"turn", "pair", "offscreen"} & set(self.world.scenes) else 96

    @property
    def geometries(self) -> tuple[VideoGeometry | None, AudioGeometry | None]:
        """Of the codecs; None: to be told from the model."""
        return None, None

    @property
    def ragged(self) -> bool:
        """Whether batches are padded or lack something."""
        return self.mute_share + self.blind_share + self.short_audio_share > 0 or self.mixed_fps


@dataclass(frozen=True)
class MixedStore:
    """One more store to read."""

    path: str  # folder or URL
    weight: float = 1.0  # how many clips are read of it for each of data.path

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight={self.weight} must be positive: leave the store out instead")


@dataclass(frozen=True)
class StoreData:
    """Clips that `avgen prepare` encoded."""

    path: str  # folder or URL (file, s3, gs, az) of the store
    kind: Literal["store"] = "store"
    mix: tuple[MixedStore, ...] = ()  # further stores of the same codecs: [{path: ..., weight: 0.5}, ...]
    held_out: str | None = None  # store of the held-out clips; null: held_out_share of data.path
    held_out_share: float = 0.02  # share of the files, of `mix` too, all windows together, that training never reads
    workers: int = 2  # processes that read ahead of the training step
    mixed_fps: bool = False  # buckets that differ in fps alone share batches, padded
    step_tokens: int | None = None  # most latent tokens a step reads; each bucket's batch is then a multiple of `batch`

    def __post_init__(self) -> None:
        if not 0 <= self.held_out_share < 1:
            raise ValueError(f"held_out_share={self.held_out_share} must lie in [0, 1)")
        if self.held_out is None and self.held_out_share == 0:
            raise ValueError("held_out_share=0 leaves nothing to judge a run by: raise it, or give held_out, a store")
        _check_workers(self.workers)

    @property
    def forms(self) -> tuple[Shape, ...]:
        """Of the clips of `path`, one per bucket that is not empty, the fullest first. Opens the store."""
        from avgen.data.store import Store

        return Store.open(self.path).forms

    @property
    def often(self) -> dict[Shape, float]:
        """How often clips of each shape are read, of all stores. Opens them."""
        from avgen.data.store import Store

        found: Counter[Shape] = Counter()
        for part in (MixedStore(self.path), *self.mix):
            for shape, windows in Store.open(part.path).counted.items():
                found[shape] += windows * part.weight  # type: ignore[assignment]
        return dict(found)

    @property
    def geometries(self) -> tuple[VideoGeometry | None, AudioGeometry | None]:
        """Of the codecs that `path` was prepared with. Opens the store."""
        from avgen.data.store import Store

        header = Store.open(self.path).header
        return header.video, header.audio

    @property
    def caption_tokens(self) -> int:
        """Bytes that captions of one or two sentences are padded to; features of an encoder are fewer or more."""
        return 96

    @property
    def ragged(self) -> bool:
        return self.mixed_fps


@dataclass(frozen=True)
class PairsData:
    """Pairs of clips of which one is better, as `avgen prefer` writes them."""

    pairs: Path  # folder of pairs.jsonl, or the file
    pipeline: Path  # as model= of avgen sample: what made the clips; its codecs encode them, its encoder their captions
    kind: Literal["pairs"] = "pairs"
    latents: Path | None = None  # folder that keeps the encoded clips; null: latents/ beside the pairs
    held_out_share: float = 0.1  # share of the prompts whose pairs training never reads: their winners judge the run
    workers: int = 0  # processes that read ahead of the training step

    def __post_init__(self) -> None:
        if not 0 < self.held_out_share < 1:
            raise ValueError(f"held_out_share={self.held_out_share} must lie between 0 and 1: a run must be judged")
        _check_workers(self.workers)

    @property
    def forms(self) -> tuple[Shape, ...]:
        """Of the clips, the commonest first. Reads the pairs."""
        return tuple(self.often)

    @property
    def often(self) -> dict[Shape, float]:
        """How often clips of each shape are read, the commonest first. Reads the pairs."""
        from avgen.prefer.pairs import read_pairs

        found = Counter(pair.form for pair in read_pairs(self.pairs)).most_common()
        return {Shape(form.height, form.width, form.fps, form.duration_s): float(count) for form, count in found}

    @property
    def geometries(self) -> tuple[VideoGeometry | None, AudioGeometry | None]:
        """Of the codecs; None: to be told from the model."""
        return None, None

    @property
    def caption_tokens(self) -> int:
        """Bytes that captions of one or two sentences are padded to; features of an encoder are fewer or more."""
        return 96

    @property
    def ragged(self) -> bool:
        return False

    @property
    def step_tokens(self) -> None:
        """Every step reads `batch` clips."""
        return
