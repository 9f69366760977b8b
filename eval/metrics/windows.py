"""Picture against sound over time, on any embedder of both: JavisScore's windows and AVHScore."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

WINDOW_S, STEP_S = 2.0, 0.5
LOWEST = 0.4  # share of a window's frames that count: the ones that fit the sound least

Hear = Callable[[float, float], np.ndarray]  # from, to in seconds -> (D,) of unit length


def window_starts(duration_s: float) -> list[float]:
    """Every STEP_S; the last ends with the clip, and a clip shorter than a window is one."""
    last = max(0.0, duration_s - WINDOW_S)
    starts = [float(s) for s in np.arange(0.0, last + 1e-9, STEP_S)]
    return starts if last - starts[-1] < 1e-6 else [*starts, last]


def javis_score(frames: np.ndarray, rate: float, duration_s: float, hear: Hear) -> float:
    """Mean over windows of the mean of the lowest 40 % of cos(frame, the window's sound)."""
    scores = []
    for start in window_starts(duration_s):
        stop = min(start + WINDOW_S, duration_s)
        first = min(round(start * rate), len(frames) - 1)
        inside = frames[first : max(first + 1, round(stop * rate))]
        fit = np.sort(inside @ hear(start, stop))
        scores.append(fit[: max(1, int(LOWEST * len(fit)))].mean())
    return float(np.mean(scores))


def avh_score(frames: np.ndarray, duration_s: float, hear: Hear) -> float:
    """Mean over frames of cos(frame, the whole sound)."""
    return float((frames @ hear(0.0, duration_s)).mean())
