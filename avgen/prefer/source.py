"""Pairs as training data: every clip encoded once into a folder of latents, and read from there at every step."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from avgen.data.buckets import Shape
from avgen.data.stream import At, Order
from avgen.models.text import toybox_bytes
from avgen.prefer.pairs import Pair, Side, require_unchanged
from avgen.sample.inputs import read_picture, read_sound
from avgen.sample.pipeline import AVPipeline
from avgen.tasks import NAMED, assign
from avgen.types import AudioGeometry, Batch, Stream, Text, VideoGeometry, stack_batches

LEFT_S = 3600  # so old a draft is a kill's; younger ones others may be writing
HOLDS = 2  # raise it whenever a clip's file is to hold something else


@dataclass(frozen=True)
class Latents:
    """Where the encoded clips lie, and what their numbers mean."""

    folder: Path
    video: VideoGeometry
    audio: AudioGeometry
    encoders: str  # fingerprint of codecs and captions' encoder
    caption_bytes: int | None  # that the model reads; None: it reads the features kept with each clip

    @classmethod
    def of(cls, pipeline: AVPipeline, folder: Path) -> Latents:
        parts = (pipeline.video_codec, pipeline.audio_codec, pipeline.captions)
        words = [*(part.fingerprint for part in parts), *pipeline.limits]
        mark = hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]
        text = pipeline.model.spec.text
        length = text.max_length if text.kind == "bytes" else None
        return cls(folder, pipeline.video_codec.geometry, pipeline.audio_codec.geometry, mark, length)

    def file(self, pair: Pair, side: Side) -> Path:
        decides = [HOLDS, self.encoders, side.sha256, asdict(pair.form), pair.task, pair.text]
        return self.folder / f"{hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:24]}.safetensors"

    def clip(self, pair: Pair, side: Side) -> Batch:
        """One clip, whole: nothing given yet."""
        held = load_file(self.file(pair, side))
        video = self.video.stream(held["video"], pair.form.fps) if "video" in held else None
        audio = self.audio.stream(held["audio"]) if "audio" in held else None
        if self.caption_bytes is not None:
            text = toybox_bytes([pair.text], self.caption_bytes)
        else:
            text = Text.of(held["text"], held["text_valid"].bool())
        text = text.said([pair.text])
        return Batch(video, audio, text, text, self.still(pair))

    def still(self, pair: Pair) -> torch.Tensor | None:
        """The winner's first frame, held, for both clips: an image says nothing of how either moves on."""
        with safe_open(self.file(pair, pair.winner), "pt") as held:
            if "still" not in held.keys():  # noqa: SIM118  # no dict
                return None
            tokens: torch.Tensor = self.video.stream(held.get_tensor("still"), pair.form.fps).x
            return tokens


def encode(pairs: Iterable[Pair], clips: Path, pipeline: AVPipeline, latents: Latents, first: float = 0.0) -> None:
    """Encode what is not there yet, from a share `first` of the way on: processes that begin at different places meet
    at last, and none waits for another. The files of `pairs` are named as seen from the folder `clips`."""
    sides = {latents.file(pair, side): (pair, side) for pair in pairs for side in (pair.winner, pair.loser)}
    wanted = list(sides.items())
    begin = int(first * len(wanted))
    latents.folder.mkdir(parents=True, exist_ok=True)
    for left in latents.folder.glob(".*.part"):
        with suppress(FileNotFoundError):  # another process tidies too
            if time.time() - left.stat().st_mtime > LEFT_S:
                left.unlink()
    for file, (pair, side) in wanted[begin:] + wanted[:begin]:
        if not file.exists():
            draft = file.with_name(f".{file.name}.{uuid.uuid4().hex}.part")  # machines that share it may share numbers
            save_file(encoded(pair, clips / side.file, side.sha256, pipeline), draft)
            draft.replace(file)


@torch.no_grad()
def encoded(pair: Pair, file: Path, sha256: str, pipeline: AVPipeline) -> dict[str, torch.Tensor]:
    require_unchanged(file, sha256)
    form, task, held = pair.form, NAMED[pair.task], {}
    if task.video is not None:
        frames = read_picture(file, form, [])[0]
        held["video"] = pipeline.encoded(pipeline.video_codec, frames)
        first = pipeline.video_codec.geometry.time.first
        if first > 1:  # else the first frame is a step of its own
            held["still"] = pipeline.encoded(pipeline.video_codec, frames[:1].repeat(first, axis=0))
    if task.audio is not None:
        wave = read_sound(file, form, pipeline.audio_codec.geometry, [])[0]
        held["audio"] = pipeline.encoded(pipeline.audio_codec, wave)
    if pipeline.model.spec.text.kind != "bytes":
        text = pipeline.text([pair.text])
        held |= {"text": text.x.cpu(), "text_valid": text.valid.cpu().to(torch.uint8)}
    return {name: value.contiguous() for name, value in held.items()}


@dataclass(frozen=True)
class PairSource:
    """Clip 2 k is the winner of pair k and clip 2 k + 1 its loser; what the pair says nothing about has no weight.

    Each clip comes with the tokens given that its task gives: a preference between two sounds for one picture says
    nothing about sounds for another.
    """

    pairs: tuple[Pair, ...]
    latents: Latents

    def batch(self, indices: Sequence[int], at: At | None = None) -> Batch:
        asked = [self.pairs[i // 2] for i in indices]
        clips = [self.latents.clip(p, p.loser if i % 2 else p.winner) for i, p in zip(indices, asked, strict=True)]
        batch = assign(stack_batches(clips), [NAMED[pair.task] for pair in asked])
        video, audio = (
            only(stream, torch.tensor([m in pair.trains for pair in asked]))
            for m, stream in (("video", batch.video), ("audio", batch.audio))
        )
        return replace(batch, video=video, audio=audio)


def only(stream: Stream | None, rows: torch.Tensor) -> Stream | None:
    """The stream with nothing supervised in the other rows."""
    return None if stream is None else replace(stream, weight=stream.weight * rows[:, None])


@dataclass(frozen=True)
class Winners:
    """The winners alone, whole: the clips that a run on pairs is judged by."""

    pairs: tuple[Pair, ...]
    latents: Latents

    def batch(self, indices: Sequence[int], at: At | None = None) -> Batch:
        asked = [self.pairs[i] for i in indices]
        clips = stack_batches([self.latents.clip(pair, pair.winner) for pair in asked])
        return assign(clips, [NAMED[pair.task] for pair in asked])


@dataclass(frozen=True)
class Couples:
    """An order of pairs as one of clips: both of a pair, side by side."""

    pairs: Order

    def clips(self, step: int) -> list[int]:
        return [clip for pair in self.pairs.clips(step) for clip in (2 * pair, 2 * pair + 1)]


def shape_of(pair: Pair) -> Shape:
    return Shape(pair.form.height, pair.form.width, pair.form.fps, pair.form.duration_s)
