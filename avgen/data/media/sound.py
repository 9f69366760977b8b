"""Sound as arrays: sample formats, channel mixing and exact-length resampling."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import floor
from typing import Any

import numpy as np

# Kaiser-windowed sinc: flat to 0.9 of the lower Nyquist frequency, 80 dB down at it.
ZERO_CROSSINGS = 48
ROLLOFF = 0.948
KAISER_BETA = 7.86

HALF = 2**-0.5  # -3 dB, ITU-R BS.775
LEFT = {"FL": 1.0, "FC": HALF, "BL": HALF, "SL": HALF, "FLC": 1.0, "BC": 0.5, "TFL": HALF, "TBL": HALF, "WL": HALF}
RIGHT = {"FR": 1.0, "FC": HALF, "BR": HALF, "SR": HALF, "FRC": 1.0, "BC": 0.5, "TFR": HALF, "TBR": HALF, "WR": HALF}
UNNAMED = {1: ("FC",), 2: ("FL", "FR"), 6: ("FL", "FR", "FC", "LFE", "BL", "BR")}


def to_float(frame: Any) -> np.ndarray:
    """(channels, S) float32 in [-1, 1] of a decoded frame, whatever its sample format."""
    data: np.ndarray = frame.to_ndarray()
    if not frame.format.is_planar:  # one row of interleaved samples
        data = data.reshape(-1, frame.layout.nb_channels).T
    if data.dtype == np.uint8:
        return (data.astype(np.float32) - 128) / 128
    if data.dtype.kind == "i":
        return data.astype(np.float32) / -float(np.iinfo(data.dtype).min)
    return data.astype(np.float32)


def mix_matrix(names: Sequence[str], channels: int) -> np.ndarray:
    """(channels, len(names)) gains. Rows sum to at most 1, so a mix never clips."""
    count = len(names)
    if channels == count:
        return np.eye(count, dtype=np.float32)
    if count == 1:
        return np.ones((channels, 1), dtype=np.float32)
    if channels not in (1, 2):
        raise ValueError(f"channels={channels} cannot be made from {count}: ask for 1, 2 or {count}")
    known = names if any(name in LEFT or name in RIGHT for name in names) else UNNAMED.get(count, ())
    if not known:
        return np.full((channels, count), 1 / count, dtype=np.float32)
    stereo = np.array([[side.get(name, 0.0) for name in known] for side in (LEFT, RIGHT)], dtype=np.float32)
    stereo /= np.maximum(np.abs(stereo).sum(axis=1, keepdims=True), 1.0).max()
    return stereo if channels == 2 else stereo.mean(axis=0, keepdims=True)


def ratio(source_hz: int, target_hz: int) -> tuple[int, int]:
    """(up, down) of the polyphase filter between two rates."""
    both = Fraction(target_hz, source_hz)
    return both.numerator, both.denominator


def reach(source_hz: int, target_hz: int) -> int:
    """How many source samples on either side an output sample depends on."""
    up, down = ratio(source_hz, target_hz)
    return 0 if up == down else -(-ZERO_CROSSINGS * max(up, down) // up) + 2


def resample(wave: np.ndarray, first: Fraction, count: int, source_hz: int, target_hz: int) -> np.ndarray:
    """`count` samples of wave (channels, S) at target_hz, the first of them at source position `first`.

    Positions are rounded to the filter's grid (the common multiple of both rates; at equal rates the
    nearest sample), each from `first` anew, so that no length of window drifts. Outside the wave is silence.
    """
    from scipy.signal import upfirdn

    up, down = ratio(source_hz, target_hz)
    at = floor(first * up + Fraction(1, 2))  # not round(): its ties depend on where the wave begins
    if up == down:
        return _cut(wave, at, count)
    taps = _filter(up, down)
    delay = (len(taps) - 1) // 2
    # Bring the wave's start close to, and at or after, everything the first output reaches back to.
    skip = (at - delay) // up
    wave = _cut(wave, skip, -(-((count - 1) * down + 2 * delay) // up) + 2)
    at += delay - skip * up
    shift = -at % down
    shifted = np.concatenate([np.zeros(shift, np.float32), taps])
    begin = (at + shift) // down
    out = upfirdn(shifted, wave, up=up, down=down, axis=-1)[:, begin : begin + count]
    return _cut(out, 0, count)


def _cut(wave: np.ndarray, begin: int, count: int) -> np.ndarray:
    """(channels, count): wave[begin : begin + count] with silence where it has none."""
    out = np.zeros((len(wave), count), np.float32)
    low, high = max(begin, 0), min(begin + count, wave.shape[-1])
    if low < high:
        out[:, low - begin : high - begin] = wave[:, low:high]
    return out


@lru_cache(maxsize=16)
def _filter(up: int, down: int) -> np.ndarray:
    wide = max(up, down)
    half = ZERO_CROSSINGS * wide
    n = np.arange(-half, half + 1, dtype=np.float64)
    cutoff = ROLLOFF / wide
    taps = np.sinc(n * cutoff) * np.kaiser(2 * half + 1, KAISER_BETA)
    # Each phase sums to one, not only their mean: a constant stays constant to the last bit.
    phases = np.zeros(up)
    np.add.at(phases, np.arange(len(taps)) % up, taps)
    return (taps / phases[np.arange(len(taps)) % up]).astype(np.float32)
