"""How far two sets of embeddings lie apart, whatever made them: each row is a clip, or a part of one.

Letters: N rows of the first set, M of the second, D features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import linalg, special
from scipy.spatial.distance import cdist

SHARES = (1.0, 0.8, 0.65, 0.5, 0.4)  # of both sets, at which the Frechet distance is taken
DRAWS = 4  # per share below 1
NEAREST = 5  # neighbours that span a set's manifold


@dataclass(frozen=True)
class Frechet:
    """Never one number: it shrinks with N even between two samples of one distribution."""

    plain: float
    extrapolated: float  # to endless sets; may be a little below 0, which is right
    counts: tuple[int, int]
    features: int


@dataclass(frozen=True)
class Discrepancy:
    """Squared maximum mean discrepancy with its interval; below 0 half the time where nothing differs."""

    value: float
    low: float
    high: float
    counts: tuple[int, int]
    bandwidth: float  # of the Gaussian kernel


@dataclass(frozen=True)
class Manifolds:
    """Precision: rows that lie within the reference's manifold; recall: the reverse (Kynkaanniemi 2019)."""

    precision: float
    recall: float
    counts: tuple[int, int]


@dataclass(frozen=True)
class Diversity:
    spread: float  # mean distance between two rows
    of_reference: float  # the same, divided by the reference's
    counts: tuple[int, int]


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """|mean difference|^2 + trace(A + B - 2 sqrt(A B)) of Gaussians fitted to both.

    The trace of the root is a sum of singular values, so it is never complex or negative, and no D x D root is taken.
    """
    x, y = _pair(x, y)
    n, m = len(x), len(y)
    xc, yc = (x - x.mean(0)) / math.sqrt(n - 1), (y - y.mean(0)) / math.sqrt(m - 1)
    # sqrt(A B) has the singular values of xc yc'; thin factors keep the product at D x D where there are more rows
    left = xc if n <= x.shape[1] else np.linalg.qr(xc)[1]
    right = yc if m <= y.shape[1] else np.linalg.qr(yc)[1]
    root = float(linalg.svdvals(left @ right.T).sum())
    shift = float(np.square(x.mean(0) - y.mean(0)).sum())
    return max(0.0, shift + float(np.square(xc).sum() + np.square(yc).sum()) - 2 * root)


def frechet(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Frechet:
    """Plain, and extrapolated to 1/N = 0 from subsets drawn without replacement (Chong and Forsyth 2020).

    A line leaves much of the bias where there are fewer rows than features: the fit has a square term as well.
    """
    x, y = _pair(x, y)
    random = np.random.default_rng(seed)
    inverse, found = [], []
    for share in SHARES:
        n, m = max(2, round(share * len(x))), max(2, round(share * len(y)))
        draws = 1 if share == 1 else DRAWS
        for _ in range(draws):
            part_x = x if share == 1 else x[random.permutation(len(x))[:n]]
            part_y = y if share == 1 else y[random.permutation(len(y))[:m]]
            inverse.append(1 / share)
            found.append(frechet_distance(part_x, part_y))
    plain = found[0]
    weight = np.sqrt([DRAWS if i == 1 else 1 for i in inverse])
    extrapolated = float(np.polynomial.polynomial.polyfit(inverse, found, 2, w=weight)[0])
    return Frechet(plain, extrapolated, (len(x), len(y)), x.shape[1])


def discrepancy(x: np.ndarray, y: np.ndarray, bandwidth: float | None = None, level: float = 0.95) -> Discrepancy:
    """Unbiased squared MMD of x against the reference y; the kernel's width is the reference's median distance.

    The variance has both orders of the U-statistic: the first vanishes where the distributions agree, and an interval
    from it alone would be far too short there.
    """
    x, y = _pair(x, y)
    n, m = len(x), len(y)
    yy = cdist(y, y)
    if bandwidth is None:
        bandwidth = float(np.median(yy[np.triu_indices(m, 1)])) or 1.0
    scale = -1 / (2 * bandwidth**2)
    kxx, kyy, kxy = (np.exp(scale * d**2) for d in (cdist(x, x), yy, cdist(x, y)))
    np.fill_diagonal(kxx, 0)
    np.fill_diagonal(kyy, 0)
    value = kxx.sum() / (n * (n - 1)) + kyy.sum() / (m * (m - 1)) - 2 * kxy.mean()
    second_xx, second_yy, second_xy = _second_within(kxx), _second_within(kyy), _second_between(kxy)
    first_x = np.var(kxx.sum(1) / (n - 1) - kxy.mean(1), ddof=1) - second_xx / (n - 1) - second_xy / m
    first_y = np.var(kyy.sum(1) / (m - 1) - kxy.mean(0), ddof=1) - second_yy / (m - 1) - second_xy / n
    variance = 4 * max(0.0, first_x) / n + 4 * max(0.0, first_y) / m
    variance += 2 * second_xx / (n * (n - 1)) + 2 * second_yy / (m * (m - 1)) + 4 * second_xy / (n * m)
    reach = float(special.ndtri((1 + level) / 2)) * math.sqrt(variance)
    return Discrepancy(float(value), float(value - reach), float(value + reach), (n, m), bandwidth)


def _second_within(k: np.ndarray) -> float:
    """Variance of a kernel that is left when both points' own means are taken out; k has a zero diagonal."""
    n = len(k)
    if n < 4:
        raise ValueError(f"{n} rows are too few for an interval: at least 4")
    rows = k.sum(1) / (n - 2)
    total = k.sum() / ((n - 1) * (n - 2))
    left = k - rows[:, None] - rows[None, :] + total  # U-centring (Szekely and Rizzo 2014)
    np.fill_diagonal(left, 0)
    return float(np.square(left).sum() / (n * (n - 3)))


def _second_between(k: np.ndarray) -> float:
    left = k - k.mean(1, keepdims=True) - k.mean(0, keepdims=True) + k.mean()
    return float(np.square(left).sum() / ((k.shape[0] - 1) * (k.shape[1] - 1)))


def manifolds(x: np.ndarray, y: np.ndarray, nearest: int = NEAREST) -> Manifolds:
    """Each set's manifold is the union of balls around its rows that reach its k-th neighbour."""
    x, y = _pair(x, y)
    if min(len(x), len(y)) <= nearest:
        raise ValueError(
            f"{min(len(x), len(y))} clips are too few for {nearest} nearest neighbours: score at least {nearest + 1}"
        )
    between = cdist(x, y)
    reach_x, reach_y = (np.partition(cdist(s, s), nearest, axis=1)[:, nearest] for s in (x, y))
    return Manifolds(
        float((between <= reach_y).any(1).mean()), float((between <= reach_x[:, None]).any(0).mean()), (len(x), len(y))
    )


def diversity(x: np.ndarray, y: np.ndarray) -> Diversity:
    x, y = _pair(x, y)
    spread, reference = (float(cdist(s, s).sum() / (len(s) * (len(s) - 1))) for s in (x, y))
    return Diversity(spread, spread / reference if reference > 0 else math.nan, (len(x), len(y)))


def _pair(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"embeddings must be two sets of at least 2 rows and equally many features, not {x.shape} and {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("embeddings hold NaN or infinity: leave such clips out, and count them")
    return x, y
