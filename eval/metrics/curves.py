"""When something begins to sound and when something happens in the picture: the two curves that synchrony rests on.

Both stand on one fine grid of times, so that they can be shifted against each other by less than a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from scipy import ndimage, signal

from eval.take import Picture, Sound

STEP_S = 0.005
SMOOTH_S = 0.03
WINDOW_S = 0.0232
BANDS = 24  # from LOWEST_HZ to HIGHEST_HZ, evenly spaced in pitch
LOWEST_HZ, HIGHEST_HZ = 100.0, 8000.0
COMPRESSION = 100.0  # of a band's share of the loudest one, before the logarithm
LEAD_S = 0.006  # by which the flux of a step is early: after the logarithm a window counts from its first tenth on
GRID = 16  # cells on the shorter side of the picture
LIGHT_WEIGHT = 2.0  # of brightening ...
BRAKING_WEIGHT = 3.0  # ... and of motion that ends, both as shares of white over the whole picture
LEVER = 0.3  # of the shorter side: how far from the middle a light may go on without looking like motion
SILENT = 1e-3  # peak of a sound that is not worth timing: -60 dBFS
STILL = 0.01  # largest change of a cell that is not worth timing, as a share of white: what codecs leave of a still
PROMINENCE = 0.3  # of the highest peak: what an onset must rise above the valleys beside it
APART_S = 0.1  # two onsets nearer than this are one
ABRUPT_S = 0.11  # width at half height above which a sound swells rather than begins

PARAMETERS = {
    "step_s": STEP_S,
    "smooth_s": SMOOTH_S,
    "window_s": WINDOW_S,
    "bands": [BANDS, LOWEST_HZ, HIGHEST_HZ],
    "compression": COMPRESSION,
    "lead_s": LEAD_S,
    "grid": GRID,
    "weights": [LIGHT_WEIGHT, BRAKING_WEIGHT],
    "lever": LEVER,
    "silent": SILENT,
    "still": STILL,
    "prominence": PROMINENCE,
    "apart_s": APART_S,
    "abrupt_s": ABRUPT_S,
}


@dataclass(frozen=True)
class Curve:
    """Strength at t = i * STEP_S."""

    values: np.ndarray  # (N,) float64, >= 0, smoothed by SMOOTH_S
    empty: str = ""  # why there is nothing to time; "" where there is


def sounding(sound: Sound) -> Curve:
    """How much louder the bands become from one instant to the next, summed over bands (log spectral flux)."""
    wave = sound.wave.mean(0).astype(np.float64)
    count = max(2, ceil(sound.duration_s / STEP_S))
    if not len(wave) or np.abs(wave).max() < SILENT:
        return Curve(np.zeros(count), "the sound is silent")
    bands = band_levels(wave, sound.rate_hz, count)
    level = np.log1p(COMPRESSION * bands / max(float(bands.max()), 1e-12))
    flux = np.zeros(count)
    # over two steps, so that its middle lies on the grid
    flux[1:-1] = np.maximum(level[2:] - level[:-2], 0).sum(1)
    return Curve(ndimage.gaussian_filter1d(flux, SMOOTH_S / STEP_S, mode="constant"))


def band_levels(wave: np.ndarray, rate_hz: int, count: int) -> np.ndarray:
    """(count, BANDS) amplitude per band, windows centred LEAD_S before the grid."""
    length = max(16, round(WINDOW_S * rate_hz))
    before = round(LEAD_S * rate_hz)
    starts = np.round(np.arange(count) * STEP_S * rate_hz).astype(int)
    padded = np.pad(wave, (length // 2 + before, length))
    starts = np.minimum(starts, len(padded) - length)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, length)[starts]
    spectrum = np.abs(np.fft.rfft(pieces * np.hanning(length), axis=1))
    hertz = np.fft.rfftfreq(length, 1 / rate_hz)
    edges = np.geomspace(LOWEST_HZ, min(HIGHEST_HZ, 0.45 * rate_hz), BANDS + 1)
    place = np.digitize(hertz, edges) - 1
    inside = (place >= 0) & (place < BANDS)
    bank = np.zeros((len(hertz), BANDS))
    bank[np.flatnonzero(inside), place[inside]] = 1
    return np.asarray(spectrum @ bank)


def happening(picture: Picture) -> Curve:
    """How suddenly the picture changes: how much it lights up, plus how much motion ends or turns back.

    Both are read off the whole picture's mean brightness and its first moments, which are linear in what happens,
    however far things move between frames. So a light that goes on is shared by the two nearest differences in
    proportion, and a stop or a bounce by the two nearest changes of velocity: their places are known to far less
    than a frame. What begins to move, or moves faster, makes no sound; nor does a light that goes off.
    """
    count = max(2, ceil(picture.duration_s / STEP_S))
    cells = picture.once(grid)
    if len(cells) < 3:
        return Curve(np.zeros(count), "the picture has fewer than three frames")
    if np.abs(np.diff(cells, axis=0)).max() < STILL:
        return Curve(np.zeros(count), "the picture stands still")
    brighter = np.diff(cells.mean((1, 2)))  # between frames: at (i + 1) / fps
    lit = LIGHT_WEIGHT * np.maximum(brighter, 0)
    stopped = BRAKING_WEIGHT * braking(velocity(cells, brighter))  # at frame i + 1: its middle, (i + 1.5) / fps
    times = np.arange(count) * STEP_S
    curve = on_grid(times, lit, 1 / picture.fps, picture.fps) + on_grid(times, stopped, 1.5 / picture.fps, picture.fps)
    return Curve(ndimage.gaussian_filter1d(curve, SMOOTH_S / STEP_S, mode="constant"))


def velocity(cells: np.ndarray, brighter: np.ndarray) -> np.ndarray:
    """(T - 1, 2) change per frame of the brightness' first moments, less what a light off the middle would do to them.

    A thing of brightness b against its ground that covers a share s of the picture and moves by d changes them by
    b * s * d, in sides of the picture.
    """
    side = min(cells.shape[1:])
    down, right = ((np.arange(n) - (n - 1) / 2) / side for n in cells.shape[1:])
    moments = np.stack([(cells * down[:, None]).mean((1, 2)), (cells * right).mean((1, 2))], 1)
    moved = np.diff(moments, axis=0)
    size = np.linalg.norm(moved, axis=1)
    share = np.clip(1 - LEVER * np.abs(brighter) / np.maximum(size, 1e-9), 0, 1)
    return np.asarray(moved * share[:, None])


def braking(moved: np.ndarray) -> np.ndarray:
    """(T - 2,) how much of a velocity is lost or turned back from one step to the next.

    Against the direction of the last two steps: of a bounce between two frames the step in the middle is small and
    may already point back.
    """
    before = moved[:-1].copy()
    before[1:] += moved[:-2]
    direction = before / np.maximum(np.linalg.norm(before, axis=1, keepdims=True), 1e-9)
    return np.maximum(-(np.diff(moved, axis=0) * direction).sum(1), 0)


def on_grid(times: np.ndarray, values: np.ndarray, first_s: float, fps: float) -> np.ndarray:
    own = first_s + np.arange(len(values)) / fps
    return np.interp(times, own, values, left=0.0, right=0.0)


def grid(picture: Picture) -> np.ndarray:
    """(T, rows, columns) float32 luma in [0, 1], averaged over square cells."""
    height, width = picture.frames.shape[1:3]
    side = max(1, min(height, width) // GRID)
    rows, columns = height // side, width // side
    out = np.empty((len(picture.frames), rows, columns), np.float32)
    weights = np.array([0.299, 0.587, 0.114], np.float32) / 255
    for i, frame in enumerate(picture.frames):
        cut = frame[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
        out[i] = cut.mean((1, 3), dtype=np.float32) @ weights
    return out


def onsets(curve: Curve) -> np.ndarray:
    """(n,) seconds of the peaks that stand out, each placed at the centre of its upper half."""
    return np.array([centre(curve.values, int(top)) for top in peaks(curve)]) * STEP_S


def peaks(curve: Curve) -> np.ndarray:
    if curve.empty or curve.values.max() <= 0:
        return np.empty(0, int)
    least = PROMINENCE * float(curve.values.max())
    distance = max(1, round(APART_S / STEP_S))
    return np.asarray(signal.find_peaks(curve.values, prominence=least, distance=distance)[0])


def swells(curve: Curve) -> bool:
    """Whether nothing stands out, or most of what does is too wide for something that begins."""
    tops = peaks(curve)
    if not len(tops):
        return True
    return float(np.median(signal.peak_widths(curve.values, tops)[0])) * STEP_S > ABRUPT_S


def centre(values: np.ndarray, top: int) -> float:
    half = 0.5 * values[top]
    left, right = top, top
    while left > 0 and half < values[left - 1] <= values[left]:
        left -= 1
    while right < len(values) - 1 and half < values[right + 1] <= values[right]:
        right += 1
    places = np.arange(left, right + 1)
    weight = values[left : right + 1] - half
    return float((places * weight).sum() / weight.sum()) if weight.sum() > 0 else float(top)


def drawn(curve: Curve, every_s: float = 0.02) -> list[float]:
    """The curve for a timeline, its highest value 1."""
    step = round(every_s / STEP_S)
    values = curve.values[::step]
    return [round(float(v), 3) for v in values / max(float(values.max()), 1e-12)]


def matched(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, tolerance_s: float) -> int:
    """The most pairs at most `tolerance_s` apart, each instant once: in order, the earliest partner still in reach."""
    a, b = np.sort(np.asarray(first, float)), np.sort(np.asarray(second, float))
    pairs = j = 0
    for time in a:
        while j < len(b) and b[j] < time - tolerance_s - 1e-9:
            j += 1
        if j < len(b) and b[j] <= time + tolerance_s + 1e-9:
            pairs += 1
            j += 1
    return pairs
