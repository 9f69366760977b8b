"""Intervals, verdicts and distances between sets: on data whose truth is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats

from eval import statistics
from eval.calibration import BAND, LAWS, coverage, pair_coverage, same_distribution, seeds_coverage
from eval.metrics import sets


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_intervals_cover_the_truth_as_often_as_they_say(law: str) -> None:
    assert BAND[0] <= coverage(law, 100, 1000, 500).covered <= BAND[1]


@pytest.mark.slow
def test_intervals_of_repeated_seeds_and_of_pairs_cover_the_truth() -> None:
    assert BAND[0] <= seeds_coverage(60, 4, 1000, 500).covered <= BAND[1]
    assert BAND[0] <= pair_coverage(60, 1000, 500).covered <= BAND[1]


def test_seeds_of_one_prompt_are_not_prompts() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=40), 5)
    naive = statistics.mean(values)
    honest = statistics.mean(values, np.repeat(np.arange(40), 5).tolist())
    assert honest.value == pytest.approx(naive.value)
    assert (honest.clusters, naive.clusters, honest.clips) == (40, 200, 200)
    assert honest.high - honest.low > 1.8 * (naive.high - naive.low)  # the square root of 5 is 2.2


def test_one_prompt_has_no_interval_and_no_clips_no_value() -> None:
    one = statistics.mean([1.0, 2.0], ["a", "a"])
    assert one.value == 1.5
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert math.isnan(statistics.mean([]).value)
    with pytest.raises(ValueError, match="finite"):
        statistics.mean([1.0, math.nan])


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=30), st.floats(-3, 3), st.floats(0.1, 4))
@settings(max_examples=30)
def test_intervals_move_and_stretch_with_the_values(values: list[float], shift: float, scale: float) -> None:
    first, second = (statistics.mean(v, resamples=200) for v in (values, np.array(values) * scale + shift))
    assert second.value == pytest.approx(first.value * scale + shift, abs=1e-6)
    width = first.high - first.low
    assert second.high - second.low == pytest.approx(width * scale, abs=1e-3 + 0.05 * width * scale)


def test_a_ratio_pools_its_sums() -> None:
    found = statistics.ratio([1, 0, 9], [1, 1, 10])
    assert found.value == pytest.approx(10 / 12)
    assert found.low <= found.value <= found.high


def test_holm_against_its_definition() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert statistics.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # 3 * .01, max(.06, .04), 2 * .03, 4 * .005
    assert statistics.holm([]) == []


def test_few_sign_flips_are_counted_exactly() -> None:
    def p(gaps: np.ndarray) -> float:
        ones = np.ones(len(gaps))
        return statistics.exchange_p(np.stack([gaps, ones, 0 * ones, ones], 1))

    assert p(np.array([1.0, 2.0, 3.0, 4.0])) == 2 / 16
    assert p(np.zeros(5)) == 1
    many = np.random.default_rng(3).normal(0.25, 1, 60)
    assert p(many) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.02)


@pytest.mark.parametrize("count", [6, 40])
def test_exchanged_runs_against_every_exchange_by_hand(count: int) -> None:
    random = np.random.default_rng(5)
    sums = random.uniform(0.2, 2, (count, 4))

    def gap(rows: np.ndarray) -> float:
        top, bottom, other, beneath = rows.sum(0)
        return abs(top / bottom - other / beneath)

    picks = itertools.product((False, True), repeat=count) if count < 10 else random.random((4000, count)) < 0.5
    turned = [np.where(np.array(pick)[:, None], sums[:, [2, 3, 0, 1]], sums) for pick in picks]
    told = np.mean([gap(rows) >= gap(sums) - 1e-12 for rows in turned])
    assert statistics.exchange_p(sums) == pytest.approx(told, abs=1e-9 if count < 10 else 0.03)


def test_weighted_runs_are_compared_as_they_are_averaged() -> None:
    """Long prompts got better, short ones worse: of error rates the words count, not the prompts."""
    random = np.random.default_rng(6)
    words = [20.0] * 60 + [1.0] * 40
    wrong = [(0.3, 0.25)] * 60 + [(0.4, 0.6)] * 40
    old, new = (
        {str(i): [(pair[k] + 0.02 * random.normal(), w)] for i, (pair, w) in enumerate(zip(wrong, words, strict=True))}
        for k in (0, 1)
    )
    found = statistics.compare(new, old, higher_is_better=False)
    means = [statistics.mean_over(run, list(run)) for run in (old, new)]
    for run, mean in zip((old, new), means, strict=True):
        pairs = np.array([clips[0] for clips in run.values()])
        assert mean == pytest.approx(statistics.ratio(pairs[:, 0] * pairs[:, 1], pairs[:, 1]).value)
    assert found.value == pytest.approx(means[1] - means[0])
    assert found.verdict == "better"
    assert statistics.compare({k: [v[0][0]] for k, v in new.items()}, {k: [v[0][0]] for k, v in old.items()}).value > 0


def test_a_run_against_itself_is_indistinguishable_and_a_better_one_better() -> None:
    random = np.random.default_rng(1)
    hard = random.normal(size=80)
    same = {str(i): [v] for i, v in enumerate(hard)}
    found = statistics.compare(same, same)
    assert (found.value, found.low, found.high, found.p, found.verdict) == (0, 0, 0, 1, "indistinguishable")
    better = {str(i): [v + 0.3 + 0.2 * random.normal() for _ in range(2)] for i, v in enumerate(hard)}
    assert statistics.compare(better, same).verdict == "better"
    assert statistics.compare(better, same, higher_is_better=False).verdict == "worse"
    assert statistics.compare(same, better).value == pytest.approx(-statistics.compare(better, same).value)


def test_pairing_by_prompt_finds_what_two_intervals_cannot() -> None:
    random = np.random.default_rng(2)
    hard = random.normal(size=60)
    one = {str(i): [v] for i, v in enumerate(hard)}
    other = {str(i): [v + 0.15 + 0.1 * random.normal()] for i, v in enumerate(hard)}
    first, second = (statistics.mean([v[0] for v in run.values()]) for run in (one, other))
    assert second.low < first.high
    assert statistics.compare(other, one).verdict == "better"


def test_only_prompts_of_both_runs_count_and_one_is_no_verdict() -> None:
    found = statistics.compare({"a": [1.0], "b": [], "c": [2.0]}, {"a": [0.0], "b": [1.0]})
    assert (found.prompts, found.value, found.verdict) == (1, 1.0, "indistinguishable")


def test_many_metrics_of_equal_runs_are_rarely_told_apart() -> None:
    """With 20 metrics and no correction, two runs in three would differ in something."""
    random = np.random.default_rng(4)
    false = 0
    for _ in range(20):
        runs = [{str(m): {str(i): [random.normal()] for i in range(30)} for m in range(20)} for _ in range(2)]
        found = statistics.compare_all(runs[0], runs[1], {str(m): True for m in range(20)}, resamples=200)
        false += any(d.verdict != "indistinguishable" for d in found.values())
    assert false <= 4  # of 20 at 5 %: more in one of 400 tries


@pytest.mark.parametrize(("rows", "features"), [(30, 6), (12, 40)])
def test_frechet_distance_against_the_textbook_root(rows: int, features: int) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(rows, features)), 0.5 + 2 * random.normal(size=(rows + 5, features))
    a, b = (np.cov(s, rowvar=False) for s in (x, y))
    root = linalg.sqrtm(a.astype(complex) @ b)
    told = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b) - 2 * np.trace(root).real
    assert sets.frechet_distance(x, y) == pytest.approx(told, rel=1e-4)
    assert sets.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert sets.frechet_distance(x + 3, y + 3) == pytest.approx(sets.frechet_distance(x, y))


@pytest.mark.parametrize("rows", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_two_samples_of_one_distribution(rows: int) -> None:
    found = same_distribution(rows, 30 if rows == 100 else 3)
    assert found.extrapolated < 0.5 * found.plain
    assert found.nearer >= 0.9
    assert found.covered >= 0.9


def test_discrepancy_covers_its_true_value_where_the_sets_differ() -> None:
    random = np.random.default_rng(0)
    features, shift, width = 8, 0.4, 4.0
    # for Gaussians: E k = (w / (w + 2))^(D/2) exp(-|shift|^2 / (2 (w + 2))), w the squared bandwidth
    alike = (width**2 / (width**2 + 2)) ** (features / 2)
    truth = 2 * alike * (1 - math.exp(-features * shift**2 / (2 * (width**2 + 2))))
    covered = 0
    for _ in range(100):
        x, y = random.normal(size=(60, features)) + shift, random.normal(size=(90, features))
        found = sets.discrepancy(x, y, bandwidth=width)
        covered += found.low <= truth <= found.high
    assert covered >= 90


def test_discrepancy_is_the_unbiased_estimator() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 5, 3))

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return math.exp(-np.square(a - b).sum() / 8)

    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    within = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs) / 20
    across = sum(k(a, b) for a in x for b in y) / 25
    assert sets.discrepancy(x, y, bandwidth=2.0).value == pytest.approx(within - 2 * across)


def test_precision_falls_with_strays_and_recall_with_a_missing_mode() -> None:
    random = np.random.default_rng(0)
    real = np.concatenate([random.normal(size=(100, 4)), random.normal(size=(100, 4)) + 20])
    same = np.concatenate([random.normal(size=(100, 4)), random.normal(size=(100, 4)) + 20])
    half, strays = same[:100], np.concatenate([same[:100], same[100:] + 300])
    assert sets.manifolds(same, real).precision > 0.9
    assert sets.manifolds(same, real).recall > 0.9
    assert sets.manifolds(half, real).recall == pytest.approx(0.5, abs=0.07)
    assert sets.manifolds(strays, real).precision == pytest.approx(0.5, abs=0.07)
    assert sets.diversity(half, real).of_reference < 0.5


def test_sets_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="equally many features"):
        sets.frechet(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="NaN"):
        sets.frechet_distance(np.full((5, 3), np.nan), np.zeros((5, 3)))
