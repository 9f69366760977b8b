"""Sums of rows drawn with replacement: what every interval rests on."""

from __future__ import annotations

import numpy as np
import pytest

from avgen import bootstrap
from avgen.bootstrap import resampled_sums


def test_columns_of_a_row_stay_together() -> None:
    rows = np.random.default_rng(0).normal(size=(12, 3))
    rows = np.concatenate([rows, 2 * rows[:, :1]], 1)
    sums = resampled_sums(rows, 300, 1)
    assert sums.shape == (300, 4)
    assert np.allclose(sums[:, 3], 2 * sums[:, 0])
    assert np.ptp(sums[:, 0]) > 0


def test_sums_have_the_mean_and_the_spread_of_rows_drawn_with_replacement() -> None:
    rows = np.random.default_rng(1).normal(3, 2, size=(40, 2, 2))
    sums = resampled_sums(rows, 20_000, 2)
    assert sums.mean(0) == pytest.approx(rows.sum(0), rel=0.01)
    assert sums.std(0) == pytest.approx(np.sqrt(40) * rows.std(0), rel=0.03)


def test_how_many_are_drawn_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(3).normal(size=(7, 2))
    whole = resampled_sums(rows, 50, 4)
    monkeypatch.setattr(bootstrap, "AT_ONCE", 21)
    assert (resampled_sums(rows, 50, 4) == whole).all()
    assert (resampled_sums(rows, 50, 5) != whole).any()
