"""The typed data that crosses every border of the package.

Shape letters: B samples, N tokens of one stream, L text tokens, C latent channels, D text features,
T frames, H and W pixels (or latent cells), S audio samples.

Times are float64 seconds: in float32 an hour-long clip would already be off by 0.2 ms.
Noise levels follow the one convention of the package: 0 is data ("given"), 1 is pure noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

Modality = Literal["video", "audio"]
MODALITIES: tuple[Modality, ...] = ("video", "audio")


@dataclass(frozen=True)
class Clip:
    """Picture and sound of one window, as decoded media. Either may be absent.

    Frame i is on screen during [start_s + i / fps, start_s + (i + 1) / fps); sample j sounds at
    start_s + j / sample_rate_hz. Both streams start at the same instant.
    """

    video: np.ndarray | None  # (T, H, W, 3) uint8 RGB
    audio: np.ndarray | None  # (channels, S) float32 in [-1, 1]
    fps: float | None  # None exactly when there is no video
    sample_rate_hz: int | None  # None exactly when there is no audio
    start_s: float = 0.0

    def __post_init__(self) -> None:
        if (self.video is None) != (self.fps is None):
            raise ValueError("Clip.fps must be given exactly when Clip.video is")
        if (self.audio is None) != (self.sample_rate_hz is None):
            raise ValueError("Clip.sample_rate_hz must be given exactly when Clip.audio is")

    @property
    def video_duration_s(self) -> float:
        return 0.0 if self.video is None or self.fps is None else len(self.video) / self.fps

    @property
    def audio_duration_s(self) -> float:
        if self.audio is None or self.sample_rate_hz is None:
            return 0.0
        return self.audio.shape[-1] / self.sample_rate_hz


class _Movable:
    """`.to(device)` and `.rows(order)` of frozen dataclasses of tensors; dtypes are part of the types and stay."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def rows(self, order: Tensor) -> Self:
        """The samples of these numbers, in this order."""
        return self._each(lambda part: part[order] if isinstance(part, Tensor) else part.rows(order))

    def _each(self, change: Callable[[Any], Any]) -> Self:
        changed: dict[str, Any] = {}
        done: dict[int, Any] = {}  # a caption shared by both streams stays one object
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor | _Movable):
                if id(value) not in done:
                    done[id(value)] = change(value)
                changed[field.name] = done[id(value)]
        return replace(self, **changed)  # type: ignore[type-var]


@dataclass(frozen=True)
class Stream(_Movable):
    """A batch of one modality's latent tokens, each knowing when, where and how noisy it is.

    `valid` is None when every token of every sample is real: the mask-free fast path. That is decided
    on the host when the batch is built, so the forward pass never has to ask the device.

    Levels are stored once per distinct value: a sample has one or two (given and noised), rarely one
    per frame, and modulating K levels instead of N tokens saves a gigabyte per block at 480p.
    """

    x: Tensor  # (B, N, C) float: latents, noised or not
    time: Tensor  # (B, N, 2) float64: [start, end) in seconds that the token covers
    levels: Tensor  # (B, K) float32: the noise levels in use, each in [0, 1]; 0 = given
    slot: Tensor  # (B, N) int64: which of the K levels is the token's
    weight: Tensor  # (B, N) float32: loss weight; 0 = not supervised
    place: Tensor | None = None  # (B, N, 2) float32: (row, column) of the token; None for audio
    extent: Tensor | None = None  # (B, 2) float32: (rows, columns) of the sample's grid
    valid: Tensor | None = None  # (B, N) bool: a real token, not padding

    def __post_init__(self) -> None:
        batch, tokens = self.x.shape[:2]
        wanted = {
            "time": (batch, tokens, 2),
            "levels": (batch, self.levels.shape[-1]),
            "slot": (batch, tokens),
            "weight": (batch, tokens),
            "place": (batch, tokens, 2),
            "extent": (batch, 2),
            "valid": (batch, tokens),
        }
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"Stream.{name} has shape {tuple(value.shape)}, but x asks for {shape}")
        if (self.place is None) != (self.extent is None):
            raise ValueError("Stream.place and Stream.extent belong together: give both or neither")

    @classmethod
    def of(cls, x: Tensor, time: Tensor, place: Tensor | None = None, extent: Tensor | None = None) -> Self:
        """A stream to be generated whole: level 1 and weight 1 on every token."""
        levels = torch.ones((len(x), 1), dtype=torch.float32, device=x.device)
        slot = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        weight = torch.ones(x.shape[:2], dtype=torch.float32, device=x.device)
        return cls(x, time, levels, slot, weight, place, extent)

    @property
    def level(self) -> Tensor:
        """(B, N) float32: the noise level of every token."""
        return self.levels.gather(1, self.slot)

    def give(self, taken: Tensor) -> Self:
        """The stream with the tokens of `taken` (B, N) bool given: level 0, weight 0."""
        levels = torch.cat([self.levels.new_zeros(len(self.x), 1), self.levels], dim=1)
        slot = (self.slot + 1).masked_fill(taken, 0)
        return replace(self, levels=levels, slot=slot, weight=self.weight.masked_fill(taken, 0.0))

    def keep(self, real: Tensor) -> Self:
        """The stream without the tokens outside `real`, (B, N) or (B, 1) bool: they are absent, as padding is."""
        if real.all():
            return self
        real = real.expand(self.x.shape[:2])
        return replace(self, x=self.x * real[..., None], weight=self.weight * real, valid=self.mask() & real)

    @property
    def present(self) -> Tensor:
        """(B,) bool: which samples have this modality at all."""
        if self.valid is None:
            return torch.ones(len(self.x), dtype=torch.bool, device=self.x.device)
        return self.valid.any(dim=1)

    def mask(self) -> Tensor:
        """(B, N) bool, whether or not `valid` is spelled out."""
        if self.valid is None:
            return torch.ones(self.x.shape[:2], dtype=torch.bool, device=self.x.device)
        return self.valid


@dataclass(frozen=True)
class Text(_Movable):
    """Captions of a batch: features of a frozen encoder, or bytes for the encoder that trains with the model."""

    x: Tensor  # (B, L, D) float features, or (B, L) int64 bytes
    valid: Tensor  # (B, L) bool
    dropped: Tensor  # (B,) bool: the learned null takes this caption's place

    @classmethod
    def of(cls, x: Tensor, valid: Tensor | None = None) -> Self:
        if valid is None:
            valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return cls(x, valid, torch.zeros(len(x), dtype=torch.bool, device=x.device))

    def drop(self, rows: Tensor) -> Self:
        """Without the captions of `rows`, (B,) bool; one that is dropped already stays so."""
        return replace(self, dropped=self.dropped | rows.to(self.x.device))

    def said(self, captions: Sequence[str]) -> Self:
        """Of these captions, of which an empty one is none."""
        return self.drop(torch.tensor([not caption.strip() for caption in captions]))


@dataclass(frozen=True)
class Batch(_Movable):
    """What one forward pass sees. A modality that no sample has is None, not an empty tensor."""

    video: Stream | None
    audio: Stream | None
    video_text: Text
    audio_text: Text  # the same object as video_text when one caption serves both
    # (B, M, C) float: what the codec's first step, of M tokens, would be if the first frame stood still in it, as in an
    # image file; None where that step is one frame, or nobody can tell
    still: Tensor | None = None

    def __post_init__(self) -> None:
        if self.video is None and self.audio is None:
            raise ValueError("a Batch needs a video stream, an audio stream or both")

    @property
    def size(self) -> int:
        return len(self.video_text.x)

    @property
    def streams(self) -> dict[str, Stream]:
        """The streams there are, by modality."""
        both = {"video": self.video, "audio": self.audio}
        return {m: stream for m, stream in both.items() if stream is not None}


class Velocity(NamedTuple):
    """The model's answer, noise - data, per stream. A tuple, because accelerate rebuilds model outputs."""

    video: Tensor | None = None  # (B, N, C)
    audio: Tensor | None = None  # (B, N, C)


@dataclass(frozen=True)
class TimeGrid:
    """How raw units (frames or samples) fall into latent steps.

    Step 0 covers the first `first` units (1 for causal video codecs), each later one `stride` units.
    `delay` units of codec priming shift all steps earlier.
    """

    stride: int  # units per latent step
    first: int  # units of the first step: 1 for causal video codecs, else the stride
    delay: int = 0  # units of priming before the clip

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.stride:
            raise ValueError(f"TimeGrid.first={self.first} must lie between 1 and stride={self.stride}")
        if self.delay < 0:
            raise ValueError(f"TimeGrid.delay={self.delay} must not be negative: priming comes before the clip")

    def steps(self, units: int) -> int:
        """Latent steps needed to cover `units` raw units."""
        if units < 1:
            raise ValueError(f"{units} units cannot be encoded: at least one is needed")
        return 1 + -(-max(units - self.first, 0) // self.stride)

    def units(self, steps: int) -> int:
        """Raw units that `steps` latent steps decode to."""
        if steps < 1:
            raise ValueError(f"{steps} latent steps cannot be decoded: at least one is needed")
        return self.first + (steps - 1) * self.stride

    def intervals(self, steps: int, rate_hz: float, start_s: float = 0.0) -> Tensor:
        """(steps, 2) float64 seconds: the real time under each latent step."""
        ends = self.first + self.stride * torch.arange(steps, dtype=torch.float64)
        starts = torch.cat([torch.zeros(1, dtype=torch.float64), ends[:-1]])
        return start_s + (torch.stack([starts, ends], dim=-1) - self.delay) / rate_hz


@dataclass(frozen=True)
class VideoGeometry:
    """What a video codec does to time and space, and how its latents become tokens."""

    channels: int  # of the codec's latents
    time: TimeGrid  # in frames
    space_stride: int  # pixels per latent cell
    patch: int = 1  # latent cells per token side

    @property
    def token_channels(self) -> int:
        return self.channels * self.patch**2

    @property
    def pixels_per_token(self) -> int:
        return self.space_stride * self.patch

    def stream(self, latents: Tensor, fps: float | Sequence[float], start_s: float = 0.0) -> Stream:
        """Tokens of (B, C, T, H, W) latents, in (time, row, column) order."""
        batch, channels, steps, height, width = latents.shape
        if channels != self.channels:
            raise ValueError(f"latents have {channels} channels, this codec makes {self.channels}")
        if height % self.patch or width % self.patch:
            raise ValueError(f"a {height}x{width} latent grid cannot be cut into {self.patch}x{self.patch} patches")
        rows, columns = height // self.patch, width // self.patch
        x = rearrange(latents, "b c t (h p) (w q) -> b (t h w) (c p q)", p=self.patch, q=self.patch)
        rates = [fps] if isinstance(fps, int | float) else list(fps)
        time = torch.stack([self.time.intervals(steps, rate, start_s) for rate in rates])
        time = time.repeat_interleave(rows * columns, dim=1).expand(batch, -1, -1)
        cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float().view(-1, 2)
        place = cells.repeat(steps, 1).expand(batch, -1, -1)
        extent = torch.tensor([rows, columns], dtype=torch.float32).expand(batch, 2)
        return Stream.of(x, time.to(x.device), place.to(x.device), extent.to(x.device))

    def latents(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """(B, C, T, H, W) latents back from (B, N, C) tokens."""
        return rearrange(x, "b (t h w) (c p q) -> b c t (h p) (w q)", h=rows, w=columns, p=self.patch, q=self.patch)


@dataclass(frozen=True)
class AudioGeometry:
    """What an audio codec does to time; its tokens are its latent steps."""

    channels: int  # of the codec's latents, all frequency bins of a step together
    time: TimeGrid  # in samples
    sample_rate_hz: int  # of the sound it takes and gives
    audio_channels: int = 1  # likewise

    def stream(self, latents: Tensor, start_s: float = 0.0) -> Stream:
        """Tokens of (B, C, N) latents."""
        batch, channels, steps = latents.shape
        if channels != self.channels:
            raise ValueError(f"latents have {channels} channels, this codec makes {self.channels}")
        time = self.time.intervals(steps, self.sample_rate_hz, start_s).expand(batch, -1, -1)
        return Stream.of(rearrange(latents, "b c n -> b n c"), time.to(latents.device))

    def latents(self, x: Tensor) -> Tensor:
        """(B, C, N) latents back from (B, N, C) tokens."""
        return rearrange(x, "b n c -> b c n")


def stack_streams(streams: Sequence[Stream | None]) -> Stream | None:
    """One ragged stream from many (each of any batch size; None = one sample without this modality).

    Padding has weight 0 and is marked in `valid`; when nothing was padded `valid` stays None.
    """
    real = [s for s in streams if s is not None]
    if not real:
        return None
    absent = _narrow(real[0])
    parts = [absent if s is None else s for s in streams]
    tokens = max(s.x.shape[1] for s in parts)
    levels = max(s.levels.shape[1] for s in parts)
    even = all(s.valid is None and s.x.shape[1] == tokens for s in parts)

    def joined(name: str, width: int | None) -> Tensor:
        values = [s.mask() if name == "valid" else getattr(s, name) for s in parts]
        return torch.cat([v if width is None else _widen(v, width) for v in values])

    return Stream(
        x=joined("x", tokens),
        time=joined("time", tokens),
        levels=joined("levels", levels),
        slot=joined("slot", tokens),
        weight=joined("weight", tokens),
        place=None if absent.place is None else joined("place", tokens),
        extent=None if absent.extent is None else joined("extent", None),
        valid=None if even else joined("valid", tokens),
    )


def _narrow(stream: Stream) -> Stream:
    """One sample of the stream's kind without any token."""
    empty = {f.name: value[:1, :0] for f in fields(Stream) if (value := getattr(stream, f.name)) is not None}
    extent = None if stream.extent is None else stream.extent[:1]
    return Stream(**{**empty, "levels": stream.levels[:1], "extent": extent, "valid": stream.mask()[:1, :0]})


def _widen(value: Tensor, width: int) -> Tensor:
    """Zeros appended along dimension 1."""
    tail = value.new_zeros((len(value), width - value.shape[1], *value.shape[2:]))
    return torch.cat([value, tail], dim=1)


def stack_texts(texts: Sequence[Text]) -> Text:
    """One batch of captions from many, padded to the longest."""
    length = max(t.x.shape[1] for t in texts)
    return Text(
        torch.cat([_widen(t.x, length) for t in texts]),
        torch.cat([_widen(t.valid, length) for t in texts]),
        torch.cat([t.dropped for t in texts]),
    )


def stack_batches(batches: Sequence[Batch]) -> Batch:
    """One batch from many; a modality that only some of them have is absent in the others' samples."""

    def streams(name: str) -> list[Stream | None]:
        per_batch = [(getattr(b, name), b.size) for b in batches]
        return [s for stream, size in per_batch for s in ([stream] if stream is not None else [None] * size)]

    video_text = stack_texts([b.video_text for b in batches])
    shared = all(b.video_text is b.audio_text for b in batches)
    audio_text = video_text if shared else stack_texts([b.audio_text for b in batches])
    stills = [b.still for b in batches if b.still is not None]
    still = None
    if len(stills) == len(batches):
        cells = max(s.shape[1] for s in stills)
        still = torch.cat([_widen(s, cells) for s in stills])
    return Batch(stack_streams(streams("video")), stack_streams(streams("audio")), video_text, audio_text, still)
