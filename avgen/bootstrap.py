"""The bootstrap's one step that every interval shares: rows drawn with replacement, and their sums."""

from __future__ import annotations

import numpy as np

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
