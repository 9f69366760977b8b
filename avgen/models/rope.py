"""Positions on one clock: rotary ones, of tokens to each other, and anchored ones, of tokens to the clip.

Every tower measures time by an affine map of the same clock: `units_per_s * (anchor - origin_s)`, where the anchor
is the start, middle or end of the token's interval. A fresh tower uses seconds and midpoints; a grafted
one states the units it was trained in. Angles are computed in float64 and kept in float32: half-precision
positions are audible.

Shape letters: B samples, N tokens, R rotary pairs (half a head's channels), A channels of anchors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from avgen.types import Stream


class Rotation(NamedTuple):
    """The rotation of every token, ready to broadcast over heads."""

    cos: Tensor  # (B, N, 1, R) float32
    sin: Tensor  # (B, N, 1, R) float32


@dataclass(frozen=True)
class Clock:
    """How a tower counts time. Frequencies fall from 1 radian per unit to nearly 1/theta."""

    units_per_s: float = 25.0  # the finest frequency turns by one radian per unit
    anchor: Literal["start", "middle", "end"] = "middle"  # which instant of a token's interval is its time
    origin_s: float = 0.0  # seconds that count as 0 units
    theta: float = 10_000.0  # ratio of the finest frequency to the coarsest

    def __post_init__(self) -> None:
        if self.units_per_s <= 0 or self.theta <= 1:
            raise ValueError(f"a clock needs units_per_s > 0 and theta > 1, not {self.units_per_s} and {self.theta}")
        if self.anchor not in ("start", "middle", "end"):
            raise ValueError(f"anchor={self.anchor!r} must be start, middle or end")

    def units(self, time: Tensor) -> Tensor:
        """(..., 2) intervals in seconds -> (...) positions in units, float64."""
        start, end = time.double().unbind(-1)
        instant = {"start": start, "middle": (start + end) / 2, "end": end}[self.anchor]
        return (instant - self.origin_s) * self.units_per_s


@dataclass(frozen=True)
class Space:
    """How a video tower counts rows and columns.

    `index`: latent cells from the corner, as in most pretrained towers. `normalised`: from the centre, in
    fractions of the longer side times `units`, so that position means the same at every resolution.
    """

    kind: Literal["normalised", "index"] = "normalised"  # from the centre by the longer side, or cells from the corner
    units: float = 16.0  # of kind=normalised: the length of the longer side
    theta: float = 10_000.0  # ratio of the finest frequency to the coarsest

    def __post_init__(self) -> None:
        if self.kind not in ("normalised", "index"):
            raise ValueError(f"space kind {self.kind!r} must be normalised or index")
        if self.units <= 0 or self.theta <= 1:
            raise ValueError(f"space needs units > 0 and theta > 1, not {self.units} and {self.theta}")

    def units_of(self, place: Tensor, extent: Tensor) -> Tensor:
        """(B, N, 2) cells of (B, 2) grids -> (B, N, 2) positions in units, float64."""
        if self.kind == "index":
            return place.double()
        extent = extent.double()[:, None]
        return (place.double() + 0.5 - extent / 2) / extent.amax(-1, keepdim=True) * self.units


def frequencies(channels: int, theta: float, device: torch.device | None = None) -> Tensor:
    """(channels / 2,) float64 radians per unit."""
    return theta ** (-torch.arange(0, channels, 2, dtype=torch.float64, device=device) / channels)


def time_rotation(time: Tensor, clock: Clock, channels: int) -> Rotation:
    """Time alone over all the channels of a head: audio towers and the bridge."""
    return _rotation([clock.units(time)], [channels], [clock.theta])


def space_time_rotation(stream: Stream, clock: Clock, space: Space, axes: tuple[int, int, int]) -> Rotation:
    """Time, rows and columns, each over its own share of a head's channels.

    A stream without places (audio in joint attention) is not rotated in space.
    """
    time = clock.units(stream.time)
    if stream.place is None or stream.extent is None:
        rows = columns = torch.zeros_like(time)
    else:
        rows, columns = space.units_of(stream.place, stream.extent).unbind(-1)
    return _rotation([time, rows, columns], list(axes), [clock.theta, space.theta, space.theta])


def _rotation(positions: list[Tensor], channels: list[int], thetas: list[float]) -> Rotation:
    angles = torch.cat(
        [
            p[..., None] * frequencies(c, theta, p.device)
            for p, c, theta in zip(positions, channels, thetas, strict=True)
        ],
        dim=-1,
    )
    return Rotation(angles.cos().float()[:, :, None], angles.sin().float()[:, :, None])


# Exponents of 2: turns per second, of the times since the start and until the end; turns per side, of row and column
ANCHORS_PER_S, ANCHORS_PER_SIDE = range(-5, 3), range(-1, 3)


def anchor_channels(modality: str) -> int:
    """Of `anchors`: a sine and a cosine for each turn, of both times and, in a picture, of both sides."""
    return 4 * len(ANCHORS_PER_S) + (modality == "video") * 4 * len(ANCHORS_PER_SIDE)


def powers(exponents: range, device: torch.device) -> Tensor:
    """Of 2, made where they are used: a copy from the host would wait for the device."""
    return 2.0 ** torch.arange(exponents.start, exponents.stop, dtype=torch.float64, device=device)


def span_of(streams: Iterable[Stream]) -> Tensor:
    """(B, 2) float64: when the first real token of a clip begins, in whichever stream, and when the last one ends."""
    first, last = [], []
    for stream in streams:
        starts, ends = stream.time.double().unbind(-1)
        if stream.valid is not None:
            starts, ends = starts.masked_fill(~stream.valid, torch.inf), ends.masked_fill(~stream.valid, -torch.inf)
        first.append(starts.amin(1))
        last.append(ends.amax(1))
    return torch.stack([torch.stack(first).amin(0), torch.stack(last).amax(0)], dim=-1).nan_to_num(0.0, 0.0, 0.0)


def anchors(stream: Stream, span: Tensor) -> Tensor:
    """(B, N, A) float32: where each token lies between the clip's start and end (B, 2), and between its edges.

    Rotations tell tokens how far they are from each other. Of noise alone nobody could tell from that which of them
    come first, so `first a ball bounces, then a lamp flashes` could not be planned while it is still noise.
    """
    middle = stream.time.double().mean(-1)
    at = torch.stack([middle - span[:, :1], span[:, 1:] - middle], dim=-1)
    parts = [(at, ANCHORS_PER_S)]
    if stream.place is not None and stream.extent is not None:
        parts.append(((stream.place.double() + 0.5) / stream.extent.double()[:, None], ANCHORS_PER_SIDE))
    turns = torch.cat([(x[..., None] * powers(by, x.device)).flatten(2) for x, by in parts], dim=-1)
    angles = 2 * torch.pi * turns
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


def turned(offset_s: float, clock: Clock, channels: int) -> Tensor:
    """(channels,) float32: pairs (1, 0) of the faster half of the frequencies, turned as by `offset_s`. As a constant
    part of queries, with turned(0) in the keys, it makes attention peak at keys that lie `offset_s` after the query."""
    angles = frequencies(channels, clock.theta) * clock.units_per_s * offset_s
    fast = torch.arange(len(angles)) < len(angles) / 2  # the slower ones hardly tell moments of a clip apart
    return torch.cat([angles.cos() * fast, angles.sin() * fast]).float()


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """(B, N, heads, 2R), channel r paired with channel R + r; computed in float32, returned in x's dtype.

    Pairs of neighbours, as some models have them, would keep a compiler from reading and writing whole vectors.
    """
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * by.cos - second * by.sin, first * by.sin + second * by.cos], dim=-1).type_as(x)
