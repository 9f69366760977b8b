"""Rotary positions on one clock.

Every tower measures time by an affine map of the same clock: `units_per_s * (anchor - origin_s)`, where the anchor
is the start, middle or end of the token's interval. A fresh tower uses seconds and midpoints; a grafted
one states the units it was trained in. Angles are computed in float64 and kept in float32: half-precision
positions are audible.

Shape letters: B samples, N tokens, R rotary pairs (half a head's channels).
"""

from __future__ import annotations

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
