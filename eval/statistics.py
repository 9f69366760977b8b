"""Error bars and verdicts: bootstrap intervals over prompts, paired comparisons, Holm's correction.

Clips of one prompt (other seeds) are not independent, so prompts are what is resampled. `python -m eval.calibration`
shows how often the intervals (avgen.bootstrap) cover the truth.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from avgen.bootstrap import interval, quotients

LEVEL = 0.95
RESAMPLES = 2000
FLIPS = 10_000  # of signs; the smallest p is 1 / (FLIPS + 1)
EXACT = 13  # prompts of which every choice of signs is counted
POWER_Z = 2.8  # standard errors that a difference needs to be found four times in five (1.96 + 0.84)

Verdict = Literal["better", "worse", "indistinguishable"]
ByPrompt = Mapping[str, Sequence[float | tuple[float, float]]]  # values of a prompt's clips, or (value, weight) of each


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
    p: float  # of the two runs exchanged by coins, two-sided
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
    return _estimate(
        np.stack([np.asarray(tops, float), np.asarray(bottoms, float)], 1), clusters, level, resamples, seed
    )


def ratio_gap(
    sums: np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """(N, 4) of top, bottom, other top and other bottom: the ratio of the first two's sums minus that of the others."""
    return _estimate(np.asarray(sums, float), clusters, level, resamples, seed)


def _estimate(
    rows: np.ndarray, clusters: Sequence[Hashable] | None, level: float, resamples: int, seed: int
) -> Estimate:
    sums = _per_cluster(rows, clusters)
    value = float(_of_sums(sums.sum(0)))
    low, high = interval(sums, _of_sums, level, resamples, seed)
    return Estimate(value, low, high, len(rows), len(sums), level)


def _of_sums(sums: np.ndarray) -> np.ndarray:
    """(..., 2) -> ratios, (..., 4) -> differences of two ratios; nan where nothing is divided by."""
    found = quotients(sums[..., 0::2], sums[..., 1::2])
    return found[..., 0] - found[..., 1] if found.shape[-1] == 2 else found[..., 0]


def _per_cluster(rows: np.ndarray, clusters: Sequence[Hashable] | None) -> np.ndarray:
    if not np.isfinite(rows).all():
        raise ValueError("statistics need finite numbers: leave clips without a value out, and count them")
    if clusters is None:
        return rows
    if len(clusters) != len(rows):
        raise ValueError(f"{len(clusters)} clusters for {len(rows)} values: name one prompt per clip")
    places: dict[Hashable, int] = {}
    index = np.array([places.setdefault(name, len(places)) for name in clusters], int)
    return np.stack([np.bincount(index, column, minlength=len(places)) for column in rows.T], 1)


def compare(
    candidate: ByPrompt,
    baseline: ByPrompt,
    *,
    higher_is_better: bool = True,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Two runs by prompt id: the values of each prompt's clips are averaged first, so runs may have other seeds.

    Weighted values are compared as they are averaged, by ratios of sums: of error rates the longer prompts say more.
    Only prompts with a value in both count; how many those are is part of the answer.
    """
    both = [name for name in candidate if baseline.get(name) and candidate[name]]
    sums = np.array([[*_prompt_sums(candidate[n]), *_prompt_sums(baseline[n])] for n in both], float).reshape(-1, 4)
    estimate = ratio_gap(sums, level=level, resamples=resamples, seed=seed)
    if len(both) < 2 or not math.isfinite(estimate.value):
        nan = math.nan
        return Difference(estimate.value, nan, nan, len(both), 1.0, 1.0, nan, nan, "indistinguishable")
    spread = float(_shares(sums).std(ddof=1))
    p = exchange_p(sums, seed=seed)
    found = Difference(
        estimate.value,
        estimate.low,
        estimate.high,
        len(both),
        p,
        p,
        estimate.value / spread if spread > 0 else 0.0,
        POWER_Z * spread / math.sqrt(len(both)),
        "indistinguishable",
    )
    return judged(found, p, higher_is_better, level)


def mean_over(run: ByPrompt, names: Sequence[str]) -> float:
    """A run's mean over these prompts, of which `compare` gives the differences."""
    return float(_of_sums(np.array([_prompt_sums(run[name]) for name in names], float).reshape(-1, 2).sum(0)))


def _prompt_sums(clips: Sequence[float | tuple[float, float]]) -> tuple[float, float]:
    """Means over the prompt's clips of value x weight, and of the weight."""
    pairs = np.array([clip if isinstance(clip, tuple) else (clip, 1.0) for clip in clips], float)
    return float((pairs[:, 0] * pairs[:, 1]).mean()), float(pairs[:, 1].mean())


def _shares(sums: np.ndarray) -> np.ndarray:
    """What each prompt adds to the difference of the ratios, to first order; of equal weights its own difference."""
    ratios = sums.sum(0)[0::2] / sums.sum(0)[1::2]
    own = (sums[:, 0::2] - ratios * sums[:, 1::2]) / sums[:, 1::2].mean(0)
    return ratios[0] - ratios[1] + own[:, 0] - own[:, 1]


def compare_all(
    candidate: Mapping[str, ByPrompt],
    baseline: Mapping[str, ByPrompt],
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


def exchange_p(sums: np.ndarray, flips: int = FLIPS, seed: int = 0) -> float:
    """How often the difference of (N, 4) sums' ratios is as large with each prompt's runs exchanged by a coin: exact
    where both are the same thing. Of equal weights that flips the signs of the prompts' differences."""
    halves = (sums[:, :2] - sums[:, 2:]) / 2
    middle = (sums[:, :2] + sums[:, 2:]).sum(0) / 2
    halves = halves[(halves != 0).any(1)]
    if not len(halves):
        return 1.0
    flipped = np.concatenate([halves.sum(0)[None], flipped_sums(halves, flips, seed)])
    found = np.abs(_of_sums(np.concatenate([middle + flipped, middle - flipped], 1)))
    size = found[0] * (1 - 1e-9)  # the same sum in another order is as large
    larger = int(np.sum(~(found[1:] < size)))  # where one side is left without weight, nothing speaks against chance
    return larger / (len(found) - 1) if len(halves) <= EXACT else (larger + 1) / len(found)


def flipped_sums(rows: np.ndarray, flips: int, seed: int) -> np.ndarray:
    """(flips, columns) sums of the rows with signs thrown by coins; of few rows, with every choice of signs."""
    if len(rows) <= EXACT:
        return (1 - 2 * ((np.arange(2 ** len(rows))[:, None] >> np.arange(len(rows))) & 1)) @ rows
    # eight signs a byte, and what each of its 256 values makes of its eight rows: a lookup in place of eight products
    eights = np.pad(rows, ((0, -len(rows) % 8), (0, 0))).reshape(-1, 8, rows.shape[1])
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    sums = (1.0 - 2.0 * bits) @ eights  # (eights, 256, columns)
    bytes_ = np.random.default_rng(seed).integers(256, size=(flips, len(eights)), dtype=np.uint8)
    found = np.zeros((flips, rows.shape[1]))
    for place in range(len(eights)):
        found += sums[place, bytes_[:, place]]
    return found


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of any false finding among them stays below the level."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    corrected = [1.0] * len(p)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = highest
    return corrected
