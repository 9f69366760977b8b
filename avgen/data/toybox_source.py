"""Toybox clips as training data, rendered and encoded when asked for: in one shape or several, with gaps if wanted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from avgen.data.buckets import Bucket, Schedule, Shape, grouped, uniform_of
from avgen.data.stream import At
from avgen.data.toybox import Toybox, ToyClip
from avgen.models.codecs import AudioCodec, VideoCodec
from avgen.models.text import toybox_bytes
from avgen.types import Batch, stack_batches

Lack = Literal["nothing", "sound", "picture", "tail", "time"]
LATE_S = (0.2, 0.6)  # between which a late sound's delay lies


@dataclass(frozen=True)
class Gaps:
    """What is wrong with some clips, as in real collections; with one clip it is always the same."""

    mute: float = 0.0  # share of clips without sound
    blind: float = 0.0  # without a picture
    short_audio: float = 0.0  # whose sound ends half-way
    seed: int = 0
    late: float = 0.0  # whose sound does not come when it should

    def of(self, index: int) -> Lack:
        u = uniform_of(self.seed, "gap", index)
        lacks: tuple[Lack, ...] = ("sound", "picture", "tail", "time")
        ends = accumulate((self.mute, self.blind, self.short_audio, self.late))
        for lack, end in zip(lacks, ends, strict=True):
            if u < end:
                return lack
        return "nothing"

    def delay_s(self, index: int) -> float:
        """Of the clip's sound."""
        first, last = LATE_S
        return first + (last - first) * uniform_of(self.seed, "delay", index) if self.of(index) == "time" else 0.0


@dataclass(frozen=True)
class ToyboxSource:
    """Clips of one world through the embedded codecs."""

    world: Toybox
    video: VideoCodec
    audio: AudioCodec
    gaps: Gaps = Gaps()
    max_caption_bytes: int = 256
    stages: tuple[tuple[float, Toybox], ...] = ()  # worlds in place of that one, each until so many steps are done

    def __post_init__(self) -> None:
        config, side = self.world.config, self.video.geometry.pixels_per_token
        if config.height % side or config.width % side:
            raise ValueError(f"clips of {config.height}x{config.width} pixels: both must be multiples of {side}")

    @property
    def shape(self) -> Shape:
        config = self.world.config
        return Shape(config.height, config.width, config.fps, config.duration_s)

    @property
    def tokens(self) -> int:
        """Of one clip, picture and sound together."""
        config, side = self.world.config, self.video.geometry.pixels_per_token
        cells = (config.height // side) * (config.width // side)
        return self.video.geometry.time.steps(config.frames) * cells + self.audio.geometry.time.steps(config.samples)

    @torch.no_grad()
    def batch(self, indices: Sequence[int], at: At | None = None) -> Batch:
        """What a clip lacks is masked, not left out: every rank's step runs through both towers."""
        world = self.world if at is None else self.world_at(at.step)
        items = [world[i] for i in indices]
        lacks = [self.gaps.of(i) for i in indices]
        captions = [_caption(item, lack) for item, lack in zip(items, lacks, strict=True)]
        text = toybox_bytes(captions, self.max_caption_bytes)
        frames = torch.stack([torch.from_numpy(item.clip.video) for item in items])
        video = self.video.geometry.stream(_latents(self.video, frames), self.world.config.fps)
        video = video.keep(torch.tensor([lack != "picture" for lack in lacks])[:, None])
        waves = torch.stack([torch.from_numpy(item.clip.audio) for item in items])
        half = waves.shape[-1] // 2
        cut = torch.tensor([lack == "tail" for lack in lacks])
        waves[cut, :, half:] = 0  # the codec sees past a token's end
        for wave, index in zip(waves, indices, strict=True):
            if late := round(self.gaps.delay_s(index) * self.world.config.sample_rate_hz):
                wave[:, late:] = wave[:, :-late].clone()
                wave[:, :late] = 0
        audio = self.audio.geometry.stream(_latents(self.audio, waves))
        early = torch.arange(audio.x.shape[1]) < self.audio.geometry.time.steps(half)
        heard = torch.tensor([lack != "sound" for lack in lacks])
        audio = audio.keep(heard[:, None] & (early | ~cut[:, None]))
        return Batch(video, audio, text, text, self.still(frames))

    def world_at(self, step: int) -> Toybox:
        return next((world for until, world in self.stages if step < until), self.world)

    def still(self, frames: Tensor) -> Tensor | None:
        """The first frame alone, held for as long as the codec's first step lasts."""
        first = self.video.geometry.time.first
        if first == 1:
            return None
        held = frames[:, :1].expand(-1, first, -1, -1, -1)
        return self.video.geometry.stream(_latents(self.video, held), self.world.config.fps).x


def _latents(codec: VideoCodec | AudioCodec, media: Tensor) -> Tensor:
    return codec.encode(media).mean.contiguous()


def _caption(item: ToyClip, lack: Lack) -> str:
    """Only what can be seen or heard is told."""
    return {"sound": item.video_caption, "picture": item.audio_caption}.get(lack, item.caption)


@dataclass(frozen=True)
class ToyboxMixture:
    """Worlds of several shapes as one catalogue, in which the worlds of a bucket follow each other clip by clip."""

    buckets: tuple[tuple[ToyboxSource, ...], ...]

    def __post_init__(self) -> None:
        assert len({world.world.length for worlds in self.buckets for world in worlds}) == 1

    @property
    def ranges(self) -> list[range]:
        """The catalogue's indices in each bucket."""
        sizes = [sum(world.world.length for world in worlds) for worlds in self.buckets]
        ends = list(accumulate(sizes))
        return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]

    def item(self, index: int) -> tuple[ToyboxSource, int]:
        ranges = self.ranges
        which = bisect_right([r.start for r in ranges], index) - 1
        worlds = self.buckets[which]
        number, member = divmod(index - ranges[which].start, len(worlds))
        return worlds[member], number

    def batch(self, indices: Sequence[int], at: At | None = None) -> Batch:
        """Clips of different shapes are padded; their order is that of the indices."""
        places: dict[ToyboxSource, list[tuple[int, int]]] = {}
        for place, index in enumerate(indices):
            world, number = self.item(index)
            places.setdefault(world, []).append((place, number))
        parts = [world.batch([number for _, number in found], at) for world, found in places.items()]
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor([place for found in places.values() for place, _ in found]).argsort()
        return stack_batches(parts).rows(order)


def mixture(
    worlds: Sequence[ToyboxSource], batch: int, step_tokens: int | None = None, mixed_fps: bool = False, seed: int = 0
) -> tuple[ToyboxMixture, Schedule]:
    """Worlds as one source, and the order in which training reads it: as many clips of one as of another."""
    tokens = {world.shape: world.tokens for world in worlds}
    if len(tokens) < len(worlds):
        raise ValueError("data.shapes lists a shape twice: every shape is read equally often")
    found, _ = grouped([world.shape for world in worlds], tokens.__getitem__, mixed_fps)
    source = ToyboxMixture(tuple(tuple(worlds[int(i)] for i in bucket.clips) for bucket in found))
    buckets = tuple(Bucket(r, bucket.tokens) for r, bucket in zip(source.ranges, found, strict=True))
    return source, Schedule(buckets, batch, step_tokens, seed)
