"""Frames of a scene, drawn analytically with soft edges.

Frame i shows what is there while it is on screen: shapes stand where they are at the middle of that interval, and a
lamp is as bright as the share of the interval during which it is lit, so a flash between two frames is never lost.

Shape letters: T frames, H and W pixels of a box around an actor.
"""

from __future__ import annotations

import numpy as np

from avgen.data.toybox.scene import (
    BALL_RADIUS,
    BAR_LENGTH,
    BAR_RADIUS,
    DISC_CREST,
    DISC_REST,
    FLOOR_Y,
    LAMP_HALF_SIDE,
    RGB,
    Actor,
    Scene,
    ball_height,
    bar_angle,
    disc_swell,
    lamp_light,
)

LAMP_DARK = 0.42  # brightness of an unlit lamp: clearly there, clearly not lit
POST_SHADE = 0.10  # how much lighter than the wall the post is that a bar strikes
BLOCK_PIXELS = 4_000_000  # frames are drawn in blocks of about this many pixels, so that long clips need little memory


def render_picture(scene: Scene, height: int, width: int, fps: float, frames: int) -> np.ndarray:
    """(T, H, W, 3) uint8 RGB."""
    room = _room(scene, height, width)
    out = np.empty((frames, height, width, 3), np.uint8)
    block = max(1, BLOCK_PIXELS // (height * width))
    for begin in range(0, frames, block):
        starts_s = np.arange(begin, min(begin + block, frames)) / fps
        planes = np.repeat(room[None, None], len(starts_s), axis=1)  # (1, T, H, W)
        planes = np.repeat(planes, 3, axis=0)
        for actor in scene.actors:
            if actor.visible:
                _draw(planes, actor, starts_s, 1 / fps)
        planes *= 255
        planes += 0.5
        out[begin : begin + block] = planes.astype(np.uint8).transpose(1, 2, 3, 0)
    return out


def _room(scene: Scene, height: int, width: int) -> np.ndarray:
    """(H, W) grey wall over a lighter floor, with a faint post for each bar to strike."""
    below = np.clip(np.arange(1, height + 1) - FLOOR_Y * height, 0, 1)
    room = np.repeat((scene.wall + (scene.floor - scene.wall) * below)[:, None], width, axis=1).astype(np.float32)
    unit = min(height, width)
    for actor in scene.actors:
        if actor.visible and actor.kind == "bar":
            half = 0.02 * unit
            x = actor.x * width - actor.side * (BAR_RADIUS[actor.size] * unit + half)
            top = actor.y * height
            rows = _between(np.arange(height) + 0.5, top, FLOOR_Y * height)
            columns = _between(np.arange(width) + 0.5, x - half, x + half)
            room += POST_SHADE * rows[:, None] * columns
    return room


def _between(centre: np.ndarray, low: float, high: float) -> np.ndarray:
    """Share of each unit-wide pixel that lies in [low, high]."""
    return np.clip(np.minimum(centre + 0.5, high) - np.maximum(centre - 0.5, low), 0, 1).astype(np.float32)


def _draw(planes: np.ndarray, actor: Actor, starts_s: np.ndarray, exposure_s: float) -> None:
    """Paint the actor over (3, T, H, W) planes."""
    height, width = planes.shape[2:]
    unit = min(height, width)
    time_s = starts_s + exposure_s / 2
    x, y = actor.x * width, actor.y * height
    light: np.ndarray | float = 1.0
    if actor.kind == "ball":
        radius = BALL_RADIUS[actor.size] * unit
        centre = y - radius - ball_height(actor, time_s) * height
        box = _box(planes, x - radius, centre.min() - radius, x + radius, centre.max() + radius)
        cover = _round(box, x, centre, radius)
    elif actor.kind == "disc":
        rest, crest = DISC_REST[actor.size] * unit, DISC_CREST[actor.size] * unit
        radius_t = rest + (crest - rest) * disc_swell(actor, time_s)
        largest = radius_t.max()
        box = _box(planes, x - largest, y - largest, x + largest, y + largest)
        cover = _round(box, x, np.full(len(time_s), y), radius_t)
    elif actor.kind == "lamp":
        half = LAMP_HALF_SIDE[actor.size] * unit
        box = _box(planes, x - half, y - half, x + half, y + half)
        rows, columns = _centres(box)
        cover = (_between(rows, y - half, y + half)[:, None] * _between(columns, x - half, x + half))[None]
        light = (LAMP_DARK + (1 - LAMP_DARK) * lamp_light(actor, starts_s, exposure_s)).astype(np.float32)
        light = light[:, None, None]
    else:
        length, radius = BAR_LENGTH[actor.size] * unit, BAR_RADIUS[actor.size] * unit
        box = _box(planes, x - length - radius, y - radius, x + length + radius, y + length + radius)
        cover = _bar(box, x, y, actor.side * bar_angle(actor, time_s), length, radius)
    window = planes[:, :, box[0], box[1]]
    for plane, shade in zip(window, RGB[actor.colour], strict=True):
        plane += cover * (shade * light - plane)


Box = tuple[slice, slice]


def _box(planes: np.ndarray, left: float, top: float, right: float, bottom: float) -> Box:
    """Rows and columns that a shape with these bounds and its soft edge can touch."""
    height, width = planes.shape[2:]
    return (
        slice(max(0, int(top) - 2), min(height, max(0, int(bottom) + 3))),
        slice(max(0, int(left) - 2), min(width, max(0, int(right) + 3))),
    )


def _centres(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres along rows and columns."""
    rows, columns = (np.arange(s.start, s.stop, dtype=np.float32) + np.float32(0.5) for s in box)
    return rows, columns


def _round(box: Box, x: float, y: np.ndarray, radius: float | np.ndarray) -> np.ndarray:
    """(T, H, W) cover of a circle at (x, y[t]) of the given radius, which may change with time too."""
    rows, columns = _centres(box)
    dy = rows - y.astype(np.float32)[:, None]
    dx = columns - np.float32(x)
    distance = np.sqrt((dy * dy)[:, :, None] + dx * dx)
    reach = np.reshape(np.asarray(radius, np.float32) + np.float32(0.5), (-1, 1, 1))
    return np.clip(reach - distance, 0, 1, out=distance)


def _bar(box: Box, x: float, y: float, angle: np.ndarray, length: float, radius: float) -> np.ndarray:
    """(T, H, W) cover of a capsule hanging from (x, y) at an angle per frame."""
    rows, columns = _centres(box)
    dy = (rows - np.float32(y))[:, None]
    dx = columns - np.float32(x)
    sine, cosine = (f(angle).astype(np.float32)[:, None, None] for f in (np.sin, np.cos))
    along = dx * sine + dy * cosine
    across = dx * cosine - dy * sine
    beyond = along - np.clip(along, 0, np.float32(length))
    distance = np.sqrt(across * across + beyond * beyond)
    return np.clip(np.float32(radius + 0.5) - distance, 0, 1, out=distance)
