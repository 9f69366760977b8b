"""What moves in a picture: actors by colour and place, their kind by how they change, their acts by when.

Knows the toybox's laws (palette, gravity, the swing of a bar) but nothing of the scene. An actor's kind follows from
what varies most: height (ball), lean (bar), area (disc) or brightness (lamp).

Shape letters: T frames, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from avgen.data.toybox.picture import LAMP_DARK
from avgen.data.toybox.scene import (
    BALL_RADIUS,
    BAR_LENGTH,
    BAR_RADIUS,
    BAR_SWING,
    COLOURS,
    DISC_CREST,
    FLOOR_Y,
    GRAVITY,
    LAMP_HALF_SIDE,
    LAMP_LIT_S,
    PERIOD_S,
    RGB,
    SIZES,
    Colour,
    Kind,
    Size,
)

PALETTE = np.array([RGB[colour] for colour in COLOURS], np.float32)
FINEST = 64  # larger pictures are averaged down to about this many pixels on the shorter side
THERE = 0.28  # contrast that makes a pixel part of something
COVERED = 0.2  # share of an actor's contrast below which it isn't there
LEAST_AREA = 0.008  # in squares of the shorter side, about half of the smallest actor
MOST_AREA = 0.35  # more than two large actors: not a toybox picture
ELONGATED = 1.7  # ratio of principal axes from which on something is a bar
FIT_S = 0.28  # how far to both sides of a bounce its shape is compared


@dataclass(frozen=True)
class SeenActor:
    """Something seen; `kind` is None when it doesn't do what any kind does. Confidence runs from 0 to 1."""

    kind: Kind | None
    colour: Colour
    size: Size
    position: tuple[float, float]  # mean centre, in fractions of width and height
    count: int
    confidence: float


@dataclass(frozen=True)
class SeenEvent:
    """A floor contact, flash, strike or crest seen; `actor` indexes the reading's actors."""

    instant_s: float
    kind: Kind
    colour: Colour
    position: tuple[float, float]
    actor: int
    confidence: float


@dataclass(frozen=True)
class _Track:
    """One actor over time."""

    colour: int
    cover: np.ndarray  # (T, H, W) share of the palette colour's contrast
    mass: np.ndarray  # (T,) summed cover
    peak: np.ndarray  # (T,) cover where it is strongest
    x: np.ndarray  # (T,) centre in pixels
    y: np.ndarray
    lean: np.ndarray  # (T,) radians of the long axis from the vertical
    axes: np.ndarray  # (T, 2) standard deviations along the long and the short axis, in pixels
    wall: np.ndarray  # (3,) colour behind it

    @property
    def area(self) -> np.ndarray:
        return self.mass / np.maximum(self.peak, 1e-3)


def see(video: np.ndarray, fps: float) -> tuple[tuple[SeenActor, ...], tuple[SeenEvent, ...]]:
    """Actors and events in (T, H, W, 3) uint8 frames; times count from the first frame."""
    if not video.size:
        return (), ()
    frames = _reduced(video)
    height, width = frames.shape[1:3]
    actors: list[SeenActor] = []
    events: list[SeenEvent] = []
    for track in _tracks(frames):
        kind, confidence = _kind(track, height, width)
        there = track.peak > COVERED
        position = (float(track.x[there].mean() / width), float(track.y[there].mean() / height))
        found = _ACTS[kind](track, fps, height, width) if kind else []
        colour = COLOURS[track.colour]
        if kind is not None:
            for instant_s, certainty in found:
                events.append(
                    SeenEvent(instant_s, kind, colour, position, len(actors), round(confidence * certainty, 3))
                )
        size = _size(track, kind, height, width)
        actors.append(SeenActor(kind, colour, size, position, len(found), round(confidence, 3)))
    return tuple(actors), tuple(sorted(events, key=lambda event: event.instant_s))


def _reduced(video: np.ndarray) -> np.ndarray:
    """Float frames in [0, 1], large ones averaged over square blocks."""
    height, width = video.shape[1:3]
    factor = max(1, min(height, width) // FINEST)
    if factor == 1:
        return video.astype(np.float32) / 255
    rows, columns = height // factor, width // factor
    out = np.empty((len(video), rows, columns, 3), np.float32)
    for i, frame in enumerate(video):
        cut = frame[: rows * factor, : columns * factor].astype(np.float32)
        out[i] = cut.reshape(rows, factor, columns, factor, 3).mean((1, 3)) / 255
    return out


def _background(frames: np.ndarray) -> np.ndarray:
    """(H, 3): each row's colour where nothing is in front: the median of its plainest third over all frames."""
    step = max(1, len(frames) // 32)
    some = frames[::step]
    rows = some.transpose(1, 0, 2, 3).reshape(some.shape[1], -1, 3)  # (H, T W, 3)
    middle = np.median(rows.reshape(-1, 3), axis=0)
    strangeness = np.abs(rows - middle).max(-1)
    plain = np.argsort(strangeness, axis=1)[:, : max(1, rows.shape[1] // 3)]
    return np.median(np.take_along_axis(rows, plain[..., None], axis=1), axis=1)


def _tracks(frames: np.ndarray) -> Iterator[_Track]:
    """Everything that stands out, split by place and, where two things overlap, by colour."""
    height, width = frames.shape[1:3]
    unit = min(height, width)
    behind = _background(frames)
    difference = frames - behind[:, None]  # (T, H, W, 3)
    wall = np.median(behind, axis=0)
    for colour, cover in _joined(list(_pieces(difference, wall))):
        track = _track(cover, colour, wall)
        lasting = (track.peak > COVERED).sum() >= max(2, 0.1 * len(frames))
        if lasting and LEAST_AREA < track.area.max() / unit**2 < MOST_AREA:
            yield track


Piece = tuple[int, np.ndarray]  # index of a colour, (T, H, W) cover


def _pieces(difference: np.ndarray, wall: np.ndarray) -> Iterator[Piece]:
    """Connected regions that anything ever stood out in, one piece per colour in them."""
    height, width = difference.shape[1:3]
    unit = min(height, width)
    strength = np.abs(difference).max(-1)
    blur = 0.5 * unit / 32
    smooth = ndimage.gaussian_filter(strength, (0, blur, blur))
    labels, number = ndimage.label(smooth.max(0) > THERE, np.ones((3, 3)))
    aims = PALETTE - wall
    reach = np.maximum(np.linalg.norm(aims, axis=1), 1e-3)
    aims = aims / reach[:, None]
    margin = max(1, round(2 * unit / 32))
    for label in range(1, number + 1):
        region = labels == label
        if region.sum() < LEAST_AREA * unit**2 or region.sum() > 0.6 * height * width:
            continue
        around = ndimage.binary_dilation(region, iterations=margin) & ((labels == 0) | region)
        strong = (smooth > max(0.35, 0.5 * smooth[:, region].max())) & region
        if not strong.any():
            continue
        pixels = difference[strong]
        likeness = pixels @ aims.T / np.maximum(np.linalg.norm(pixels, axis=-1, keepdims=True), 1e-3)
        nearest = likeness.argmax(-1)
        votes = np.bincount(nearest, strength[strong] ** 2, len(COLOURS))
        first, second = (int(c) for c in np.argsort(votes)[::-1][:2])
        first_cover = difference @ aims[first] / reach[first] * around
        if votes[second] > 0.2 * votes[first] and _separate(strong, nearest, first, second, unit):
            nearer = difference @ (aims[first] - aims[second]) > 0
            yield first, np.where(nearer, first_cover, 0)
            yield second, np.where(nearer, 0, difference @ aims[second] / reach[second] * around)
        else:
            yield first, first_cover


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Pieces of one colour that are there at different times are one thing, faster than its own width per frame."""
    joined: list[Piece] = []
    for colour, cover in pieces:
        there = cover.max((1, 2)) > 2 * COVERED
        for i, (other_colour, other) in enumerate(joined):
            together = there & (other.max((1, 2)) > 2 * COVERED)
            if colour == other_colour and together.sum() <= 0.2 * there.sum():
                joined[i] = colour, np.maximum(other, cover)
                break
        else:
            joined.append((colour, cover))
    return joined


def _separate(strong: np.ndarray, nearest: np.ndarray, one: int, other: int, unit: int) -> bool:
    """Whether two colours of one region lie in different places, as two actors do and a blurred one doesn't."""
    places = np.argwhere(strong)[:, 1:]
    first, second = places[nearest == one], places[nearest == other]
    distance = float(np.linalg.norm(first.mean(0) - second.mean(0)))
    return distance > 0.15 * unit


def _track(cover: np.ndarray, colour: int, wall: np.ndarray) -> _Track:
    frames, height, width = cover.shape
    some = max(3, round(0.004 * min(height, width) ** 2))
    flat = cover.reshape(frames, -1)
    some = min(some, flat.shape[1])
    peak = np.partition(flat, -some, axis=1)[:, -some:].mean(1)
    # relative to the frame's own peak, so that an outline doesn't shrink when its inside darkens
    edge = np.clip(0.4 * peak, 0.12, 0.25)
    solid = np.where(cover > edge[:, None, None], cover, 0)
    mass = solid.sum((1, 2))
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    weight = np.maximum(mass, 1e-6)
    by_row, by_column = solid.sum(2), solid.sum(1)
    y, x = by_row @ rows / weight, by_column @ columns / weight
    yy = by_row @ rows**2 / weight - y**2
    xx = by_column @ columns**2 / weight - x**2
    xy = np.einsum("thw,h,w->t", solid, rows, columns) / weight - x * y
    lean = 0.5 * np.arctan2(2 * xy, yy - xx)
    root = np.sqrt(np.maximum((yy - xx) ** 2 / 4 + xy**2, 0))
    # a pixel's own spread keeps thin shapes from looking infinitely long
    axes = np.sqrt(np.maximum(np.stack([(xx + yy) / 2 + root, (xx + yy) / 2 - root], -1), 0) + 1 / 12)
    return _Track(colour, cover, mass, peak, x, y, lean, axes, wall)


def _kind(track: _Track, height: int, width: int) -> tuple[Kind | None, float]:
    """The kind whose way of changing is strongest, and how clearly."""
    there = track.peak > COVERED
    unit = min(height, width)
    elongation = float(np.median(track.axes[there, 0] / track.axes[there, 1]))
    area = np.sort(np.maximum(track.area[there], 1.0))
    # what moves away from its core looks dark there, but not at its brightest
    darkest, brightest = (
        max(0.05, float(pick)) for pick in (np.median(np.sort(track.peak)[: len(area) // 2 + 1]), track.peak.max())
    )
    core = np.maximum(_core(track), 0.05)
    dimming = min(brightest / darkest, float(core.max() / np.median(np.sort(core)[: len(core) // 2 + 1])))
    scores: dict[Kind, float] = {
        "ball": float(np.ptp(track.y[there])) / height / 0.08,
        "disc": float(np.log(area[-1] / area[0])) / 0.5,
        "lamp": float(np.log(dimming)) / 0.5,
    }
    if elongation > ELONGATED:
        swing = float(np.ptp(np.abs(track.lean[there])))
        moved = swing * float(np.median(track.axes[there, 0])) / unit
        return ("bar", min(1.0, elongation / ELONGATED - 0.5)) if moved > 0.02 else (None, 0.0)
    kind = max(scores, key=lambda k: scores[k])
    best = scores.pop(kind)
    if best < 0.5:
        return None, 0.0
    return kind, float(np.clip(best - max(scores.values()), 0.1, 1.0))


def _core(track: _Track) -> np.ndarray:
    """(T,) mean cover of the pixels that are strongest on the whole: how bright something still is."""
    usual = track.cover.mean(0)
    return track.cover[:, usual >= 0.8 * usual.max()].mean(1)


def _size(track: _Track, kind: Kind | None, height: int, width: int) -> Size:
    unit = min(height, width)
    area = float(np.median(track.area[track.peak > COVERED])) / unit**2
    if kind == "bar":
        wanted = {size: 2 * BAR_LENGTH[size] * BAR_RADIUS[size] + np.pi * BAR_RADIUS[size] ** 2 for size in SIZES}
    elif kind == "disc":
        area = float(track.area.max()) / unit**2
        wanted = {size: np.pi * DISC_CREST[size] ** 2 for size in SIZES}
    elif kind == "lamp":
        area = float(track.area[track.peak.argmax()]) / unit**2  # its edges show best when it is lit
        wanted = {size: 4 * LAMP_HALF_SIDE[size] ** 2 for size in SIZES}
    else:
        wanted = {size: np.pi * BALL_RADIUS[size] ** 2 for size in SIZES}
    return min(SIZES, key=lambda size: abs(np.log(max(area, 1e-6) / wanted[size])))


Act = tuple[float, float]  # (instant in seconds, confidence)


def _contacts(track: _Track, fps: float, height: int, width: int) -> list[Act]:
    radius = np.sqrt(np.median(track.area[track.peak > COVERED]) / np.pi)
    resting = max(FLOOR_Y * height - radius, float(np.percentile(track.y, 95)))
    lifted = (resting - track.y) / height

    def shape(after_s: np.ndarray, period_s: np.ndarray) -> np.ndarray:
        return 0.5 * GRAVITY * ((period_s / 2) ** 2 - (period_s / 2 - after_s) ** 2)

    return _returns(lifted, fps, shape, least=0.03)


def _strikes(track: _Track, fps: float, height: int, width: int) -> list[Act]:
    def shape(after_s: np.ndarray, period_s: np.ndarray) -> np.ndarray:
        return BAR_SWING * np.sin(np.pi * after_s / period_s)

    return _returns(np.abs(track.lean), fps, shape, least=0.2)


def _returns(
    away: np.ndarray, fps: float, shape: Callable[[np.ndarray, np.ndarray], np.ndarray], least: float
) -> list[Act]:
    """Instants at which something that leaves a place and comes back hits it again."""
    swing = max(least, 0.3 * float(np.ptp(away)))
    low, high = float(away.min()), float(away.max())
    found: list[Act] = []
    for top, bottom, last in _falls(away, swing):
        if last and (away[bottom] - low) > 0.3 * (high - low):
            continue  # still on its way down when the clip ends
        # of a rest that goes on, the first frame near its level; of a bounce, the lowest frame itself
        fallen = away[top] - away[bottom]
        first = top + int(np.argmax(away[top : bottom + 1] < away[bottom] + 0.12 * fallen))
        found.append(_fit(away, fps, first, shape))
    return found


def _falls(signal: np.ndarray, swing: float) -> Iterator[tuple[int, int, bool]]:
    """(top, bottom, last) of every fall by at least `swing`; last: the clip ends at the bottom."""
    top = bottom = 0
    falling = False
    for i, value in enumerate(signal):
        if falling:
            if value < signal[bottom]:
                bottom = i
            elif value > signal[bottom] + swing:
                yield top, bottom, False
                falling, top = False, i
        else:
            if value > signal[top]:
                top = i
            # of a fall that was under way when the clip began, the first frame shows only the end
            elif value < signal[top] - (0.4 * swing if i == 1 else swing):
                falling, bottom = True, i
    if falling:
        yield top, bottom, bottom == len(signal) - 1


def _fit(away: np.ndarray, fps: float, near: int, shape: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Act:
    """The instant around frame `near` whose bounce (or landing) looks most like what was seen."""
    time_s = (np.arange(len(away)) + 0.5) / fps
    reach = max(FIT_S, 2.0 / fps)
    part = np.abs(time_s - time_s[near]) <= reach
    # at high rates the frame that first looks like rest comes well before the contact
    instants = time_s[near] + np.linspace(-1.2 / fps, max(1.2 / fps, 0.06), 49)
    periods = np.linspace(*PERIOD_S, 9)
    late = time_s[part] - instants[:, None, None]  # (instant, period, T)
    half = periods[:, None] / 2
    risen = shape(np.minimum(np.abs(late), half), periods[:, None])
    landed = np.where(late > 0, 0.0, risen)
    misfit = np.stack([risen, landed], 2) - away[part]  # (instant, period, 2, T)
    # a blurred outline or a misjudged size shifts all heights alike
    scale = float(shape(np.array([PERIOD_S[0] / 2]), np.array([PERIOD_S[0]]))[0])
    misfit -= np.clip(misfit.mean(-1, keepdims=True), -0.3 * scale, 0.3 * scale)
    error = np.sqrt(np.square(misfit).mean(-1)).min((1, 2))
    best = int(error.argmin())
    return float(instants[best]), float(np.clip(1 - error[best] / scale, 0.05, 1))


def _flashes(track: _Track, fps: float, height: int, width: int) -> list[Act]:
    seen = _core(track)
    aim = PALETTE[track.colour] - track.wall
    dark = float((LAMP_DARK * PALETTE[track.colour] - track.wall) @ aim / (aim @ aim))
    floor = float(np.quantile(seen, 0.2))
    dark = floor if floor < dark + 0.25 else dark
    full = 1.0 if seen.max() > 0.65 else float(seen.max())
    light = np.maximum((seen - dark) / max(full - dark, 0.05), 0)
    enough = 0.3 * min(1.0, LAMP_LIT_S["small"] * fps)
    padded = np.concatenate([[0.0], light, [0.0]])
    found: list[Act] = []
    before = 0
    for top, bottom, _ in _falls(padded, enough):
        valley = before + int(np.argmin(padded[before : top + 1]))
        before = bottom
        risen = padded[top] - padded[valley]
        first = valley + int(np.argmax(padded[valley : top + 1] > padded[valley] + 0.12 * risen))
        if first <= 1 and padded[1] > 0.5 * padded[top]:
            continue  # already lit when the clip begins
        share = float(np.clip(padded[first], 0, 1))
        # lit from some instant to the frame's end; of a flash within one frame nothing tells when
        through = padded[first + 1] > 0.12 * padded[top]
        instant = first - share if through else first - (1 + share) / 2
        found.append((instant / fps, float(np.clip(padded[top], 0.05, 1))))
    return found


def _crests(track: _Track, fps: float, height: int, width: int) -> list[Act]:
    radius = np.sqrt(track.area / np.pi)
    swing = max(0.02 * min(height, width), 0.3 * float(np.ptp(radius)))
    found: list[Act] = []
    begin = 0
    for top, bottom, _ in _falls(np.append(radius, radius[-1] - 2 * swing), swing):
        span = radius[begin : bottom + 1]
        begin = bottom
        if top == 0 or top >= len(radius) - 1:
            continue  # its crest lies outside the clip
        left, middle, right = radius[top - 1 : top + 2]
        bend = left - 2 * middle + right
        shift = 0.5 * (left - right) / bend if bend < 0 else 0.0
        found.append(((top + 0.5 + float(np.clip(shift, -0.5, 0.5))) / fps, min(1.0, float(np.ptp(span)) / swing / 3)))
    return found


_ACTS: dict[Kind, Callable[[_Track, float, int, int], list[Act]]] = {
    "ball": _contacts,
    "lamp": _flashes,
    "bar": _strikes,
    "disc": _crests,
}
