"""Error bars and verdicts: bootstrap intervals over prompts, paired comparisons, Holm's correction.

Clips of one prompt (other seeds) are not independent, so prompts are what is resampled. The intervals are
bias-corrected and accelerated (Efron 1987) at the levels that Student's t would need (Hesterberg 2015): plain
percentiles are too short for few prompts. `python -m eval.calibration` shows how often they cover the truth.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import special  # scipy.stats says the same and takes a second to import

from avgen.bootstrap import resampled_sums

LEVEL = 0.95
RESAMPLES = 2000
FLIPS = 10_000  # of signs; the smallest p is 1 / (FLIPS + 1)
POWER_Z = 2.8  # standard errors that a difference needs to be found four times in five (1.96 + 0.84)

Verdict = Literal["better", "worse", "indistinguishable"]


@dataclass(frozen=True)
class Estimate:
    """A mean or ratio of sums with its interval; the bounds are nan where one prompt cannot say."""

    value: float
    low: float
    high: float
    clips: int
    clusters: int  # prompts, which is what the interval rests on
    level: float = LEVEL


@dataclass(frozen=True)
class Difference:
    """Candidate minus baseline over the prompts that both have."""

    value: float
    low: float
    high: float
    prompts: int
    p: float  # of sign flips, two-sided
    p_holm: float  # corrected for the other metrics compared with it
    effect: float  # difference / spread of the prompts' differences (Cohen's d_z)
    detectable: float  # a true difference of this size would be found four times in five
    verdict: Verdict


def mean(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The mean over clips; `clusters` names each clip's prompt (default: every clip its own)."""
    values = np.asarray(values, float)
    return ratio(values, np.ones(len(values)), clusters, level=level, resamples=resamples, seed=seed)


def ratio(
    tops: Sequence[float] | np.ndarray,
    bottoms: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """sum(tops) / sum(bottoms), as pooled F1 or error rates are made."""
    top, bottom = _per_cluster(np.asarray(tops, float), np.asarray(bottoms, float), clusters)
    clips = len(tops)
    if not bottom.sum() > 0:
        return Estimate(math.nan, math.nan, math.nan, clips, len(top), level)
    value = float(top.sum() / bottom.sum())
    low, high = _interval(top, bottom, value, level, resamples, seed)
    return Estimate(value, low, high, clips, len(top), level)


def _per_cluster(
    tops: np.ndarray, bottoms: np.ndarray, clusters: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray]:
    if not (np.isfinite(tops).all() and np.isfinite(bottoms).all()):
        raise ValueError("statistics need finite numbers: leave clips without a value out, and count them")
    if clusters is None:
        return tops, bottoms
    if len(clusters) != len(tops):
        raise ValueError(f"{len(clusters)} clusters for {len(tops)} values: name one prompt per clip")
    places: dict[Hashable, int] = {}
    index = np.array([places.setdefault(name, len(places)) for name in clusters], int)
    return (
        np.bincount(index, tops, minlength=len(places)),
        np.bincount(index, bottoms, minlength=len(places)),
    )


def _interval(
    top: np.ndarray, bottom: np.ndarray, value: float, level: float, resamples: int, seed: int
) -> tuple[float, float]:
    count = len(top)
    if count < 2:
        return math.nan, math.nan
    tops, bottoms = resampled_sums(np.stack([top, bottom], 1), resamples, seed).T
    drawn = tops[bottoms > 0] / bottoms[bottoms > 0]
    if np.ptp(drawn) == 0:
        return value, value
    left = (top.sum() - top) / np.where(bottom.sum() - bottom > 0, bottom.sum() - bottom, np.nan)
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


def compare(
    candidate: Mapping[str, Sequence[float]],
    baseline: Mapping[str, Sequence[float]],
    *,
    higher_is_better: bool = True,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Two runs by prompt id: the values of each prompt's clips are averaged first, so runs may have other seeds.

    Only prompts with a value in both count; how many those are is part of the answer.
    """
    both = [name for name in candidate if baseline.get(name) and candidate[name]]
    gaps = np.array([np.mean(candidate[name]) - np.mean(baseline[name]) for name in both], float)
    if len(gaps) < 2:
        value = float(gaps.mean()) if len(gaps) else math.nan
        return Difference(value, math.nan, math.nan, len(gaps), 1.0, 1.0, math.nan, math.nan, "indistinguishable")
    estimate = mean(gaps, level=level, resamples=resamples, seed=seed)
    spread = float(gaps.std(ddof=1))
    p = sign_flip_p(gaps, seed=seed)
    found = Difference(
        estimate.value,
        estimate.low,
        estimate.high,
        len(gaps),
        p,
        p,
        estimate.value / spread if spread > 0 else 0.0,
        POWER_Z * spread / math.sqrt(len(gaps)),
        "indistinguishable",
    )
    return judged(found, p, higher_is_better, level)


def compare_all(
    candidate: Mapping[str, Mapping[str, Sequence[float]]],
    baseline: Mapping[str, Mapping[str, Sequence[float]]],
    higher_is_better: Mapping[str, bool],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Every metric that both runs have, by name; the p of each corrected for the number of them."""
    names = [name for name in candidate if name in baseline]
    found = [
        compare(
            candidate[name],
            baseline[name],
            higher_is_better=higher_is_better[name],
            level=level,
            resamples=resamples,
            seed=seed,
        )
        for name in names
    ]
    corrected = holm([one.p for one in found])
    return {
        name: judged(one, p, higher_is_better[name], level)
        for name, one, p in zip(names, found, corrected, strict=True)
    }


def judged(found: Difference, p_holm: float, higher_is_better: bool, level: float) -> Difference:
    """A verdict needs both: a corrected p below the level's rest, and an interval without 0."""
    verdict: Verdict = "indistinguishable"
    if p_holm < 1 - level and (found.low > 0 or found.high < 0):
        verdict = "better" if (found.value > 0) == higher_is_better else "worse"
    return replace(found, p_holm=p_holm, verdict=verdict)


def sign_flip_p(gaps: np.ndarray, flips: int = FLIPS, seed: int = 0) -> float:
    """How often differences with signs thrown by coins are as large: exact where both runs are the same thing."""
    gaps = np.asarray(gaps, float)
    gaps = gaps[gaps != 0]
    if not len(gaps):
        return 1.0
    size = abs(gaps.sum()) * (1 - 1e-12)
    if len(gaps) <= 13:
        signs = 1 - 2 * ((np.arange(2 ** len(gaps))[:, None] >> np.arange(len(gaps))) & 1)
        return float(np.mean(np.abs(signs @ gaps) >= size))
    # eight signs a byte, and what each of its 256 values makes of its eight gaps: a lookup in place of eight products
    eights = np.pad(gaps, (0, -len(gaps) % 8)).reshape(-1, 8)
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    sums = (1.0 - 2.0 * bits) @ eights.T  # (256, eights)
    bytes_ = np.random.default_rng(seed).integers(256, size=(flips, len(eights)), dtype=np.uint8)
    flipped = np.zeros(flips)
    for place in range(len(eights)):
        flipped += sums[bytes_[:, place], place]
    return (int(np.sum(np.abs(flipped) >= size)) + 1) / (flips + 1)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of any false finding among them stays below the level."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    corrected = [1.0] * len(p)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = highest
    return corrected
