"""The bootstrap that every interval shares: rows drawn with replacement, and how sure what their sums make is."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import special  # scipy.stats says the same and takes a second to import

AT_ONCE = 2_000_000  # numbers drawn at a time, so that memory does not grow with the resamples


def resampled_sums(rows: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples, ...) from (N, ...): each the sum over N rows drawn with replacement.

    All columns of a row are drawn together, so ratios and differences of the sums keep what belongs together.
    """
    random = np.random.default_rng(seed)
    columns = np.ascontiguousarray(rows.reshape(len(rows), -1).T)
    size = max(1, AT_ONCE // len(rows))
    found = []
    for begin in range(0, resamples, size):
        drawn = random.integers(len(rows), size=(min(size, resamples - begin), len(rows)))
        found.append(np.stack([column[drawn].sum(1) for column in columns], 1))
    return np.concatenate(found).reshape(resamples, *rows.shape[1:])


def quotients(tops: np.ndarray, bottoms: np.ndarray) -> np.ndarray:
    """nan where nothing is divided by."""
    return np.divide(tops, bottoms, out=np.full(np.shape(tops), np.nan), where=bottoms > 0)


def interval(
    rows: np.ndarray, of: Callable[[np.ndarray], np.ndarray], level: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Of what `of` makes of the sums over all rows ((..., columns) -> (...)); nan where one row cannot say.

    Bias-corrected and accelerated (Efron 1987) at the levels that Student's t would need (Hesterberg 2015): plain
    percentiles are too short for few rows. Where all rows say the same the interval is a point.
    """
    count = len(rows)
    value = float(of(rows.sum(0)))
    if count < 2 or not math.isfinite(value):
        return math.nan, math.nan
    drawn = of(resampled_sums(rows, resamples, seed))
    drawn = drawn[np.isfinite(drawn)]
    if np.ptp(drawn) == 0:
        return value, value
    left = of(rows.sum(0) - rows)
    pull = np.nanmean(left) - left
    pull = np.nan_to_num(pull)
    spread = float((pull**2).sum())
    acceleration = float((pull**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    same = 1e-9 * np.ptp(drawn)  # sums that differ only in their rounding are ties
    below = (np.sum(drawn < value - same) + 0.5 * np.sum(np.abs(drawn - value) <= same)) / len(drawn)
    bias = float(special.ndtri(np.clip(below, 1 / len(drawn), 1 - 1 / len(drawn))))
    # the standard normal point that a sample of this size needs to reach as far as Student's t
    reach = float(math.sqrt(count / (count - 1)) * special.stdtrit(count - 1, (1 + level) / 2))
    shares = []
    for z in (-reach, reach):
        moved = bias + z
        shares.append(float(special.ndtr(bias + moved / max(1 - acceleration * moved, 1e-3))))
    low, high = np.quantile(drawn, shares)
    return float(low), float(high)
