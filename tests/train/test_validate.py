"""Held-out loss: the same at every call and on any number of ranks, and cut by noise level it adds up."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avgen.train.metrics import LEVELS, level_name
from avgen.train.run import prepare
from avgen.train.validate import CLIPS_AT_ONCE, _drawn, at_once, levels_of, shared, validate
from tests.models.factory import scatter
from tests.train.test_train import Clips, config


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 20))
def test_ranks_share_the_clips_once_and_run_equally_often(clips, ranks, at_most):
    shares = [shared(clips, rank, ranks, at_most) for rank in range(ranks)]
    assert all(len(places) <= at_most for share in shares for places, _ in share)
    assert len({len(share) for share in shares}) == 1
    counted = [i for share in shares for places, counts in share if counts for i in places]
    assert sorted(counted) == list(range(clips))
    assert all(0 <= i < clips for share in shares for places, _ in share for i in places)


def test_no_more_clips_run_together_than_a_micro_batch_holds(tmp_path):
    """What fits in training fits in validation, and the figures don't tell how many ran together."""

    class Counting(Clips):
        def batch(self, indices, at=None):
            most.append(len(indices))
            return super().batch(indices)

    figures = []
    for batch, accumulate, expected in ((64, 1, 11), (4, 1, 4), (4, 4, 1)):
        run = prepare(config(tmp_path, validation_clips=11, batch=batch, accumulate=accumulate))
        scatter_average(run)
        most = []
        figures.append(validate(run.model, run.average, Counting(), run.config, run.accelerator))
        assert max(most) == expected
    assert figures[1] == pytest.approx(figures[0], rel=1e-5)
    assert figures[2] == pytest.approx(figures[0], rel=1e-5)
    assert at_once(replace(run.config, batch=64, accumulate=1), readers=2) == CLIPS_AT_ONCE
    assert at_once(replace(run.config, batch=64, accumulate=4), readers=4, rows=2) == 2
    assert at_once(replace(run.config, batch=8, accumulate=1), readers=8, rows=2) == 1


def test_the_ranks_parts_add_up_to_one_processes_figures(tmp_path):
    run = prepare(config(tmp_path, validation_clips=11))
    scatter(run.model)

    def figures(reduce, rank, ranks):
        accelerator = SimpleNamespace(process_index=rank, num_processes=ranks, reduce=reduce)
        return validate(run.model, run.average, Clips(), run.config, accelerator)

    parts = []

    def keep(sums, _):
        parts.append(sums)
        return sums

    alone = figures(keep, 0, 1)
    parts.clear()
    for rank in range(3):
        figures(keep, rank, 3)
    total = torch.stack(parts).sum(0)
    together = figures(lambda *_: total, 0, 3)
    assert together == pytest.approx(alone, rel=1e-5)
    assert set(alone) >= {f"held_out/{task}/{m}" for task, m in (("t2av", "video"), ("v2a", "audio"))}
    assert not any(name.startswith("held_out/v2a/video") for name in alone)


def test_it_repeats_itself_and_leaves_the_weights_alone(tmp_path):
    run = prepare(config(tmp_path))
    before = {name: p.clone() for name, p in run.model.state_dict().items()}
    scatter_average(run)
    first, second = (validate(run.model, run.average, Clips(), run.config, run.accelerator) for _ in range(2))
    assert first == second
    assert all(torch.equal(before[name], p) for name, p in run.model.state_dict().items())


def scatter_average(run):
    run.average.weights = {name: value + 0.1 for name, value in run.average.weights.items()}


class Mute(Clips):
    """Held-out clips that begin with many without sound, as in a list that is sorted by where they are from."""

    def batch(self, indices, at=None):
        whole = super().batch(indices, at)
        return replace(whole, audio=None) if max(indices) < 16 else whole


def test_a_task_is_judged_on_the_clips_that_have_its_streams(tmp_path):
    run = prepare(config(tmp_path, validation_clips=20, tasks={"t2a": 1, "t2av": 1}))
    found = validate(run.model, run.average, Mute(), run.config, run.accelerator)
    assert found["held_out/t2a/audio"] > 0
    # of three clips one is silent: it is no part of the figures, whatever stands beside it
    drawn = _drawn(Clips(), run.config, "a2v", range(3))
    assert (drawn.clean.video.weight.sum(1) > 0).tolist() == [True, True, False]
    assert drawn.tasks == ("a2v",) * 3
    few = prepare(config(tmp_path / "few", validation_clips=4, tasks={"t2a": 1, "t2av": 1}))
    found = validate(few.model, few.average, Mute(), few.config, few.accelerator)
    assert not any(name.startswith("held_out/t2a/") for name in found)
    assert found["held_out/t2av/video"] > 0


def test_levels_are_even_so_that_every_bucket_has_its_figure(tmp_path):
    run = prepare(config(tmp_path, validation_clips=8, tasks={"t2av": 1}))
    found = validate(run.model, run.average, Clips(), run.config, run.accelerator)
    buckets = [found[f"held_out/t2av/video/{level_name(k)}"] for k in range(LEVELS)]
    assert min(buckets) <= found["held_out/t2av/video"] <= max(buckets)
    assert set(found) == {
        f"held_out/t2av/{m}{suffix}"
        for m in ("video", "audio")
        for suffix in ("", *(f"/{level_name(k)}" for k in range(LEVELS)))
    }


@given(st.integers(1, 300), st.integers(0, 300))
def test_few_clips_in_a_row_are_judged_at_all_levels_and_all_of_them_evenly(clips, first):
    levels = levels_of(clips)
    assert levels.sort().values == pytest.approx((torch.arange(clips) + 0.5).double() / clips)
    # of any 2 x LEVELS in a row every quarter of the levels has its part
    row = levels[first : first + 2 * LEVELS]
    if clips >= 2 * LEVELS and len(row) == 2 * LEVELS:
        assert set((row * LEVELS).long().tolist()) == set(range(LEVELS))
    half = levels[: (clips + 1) // 2].sort().values
    gaps = torch.cat([half, half.new_ones(1)]) - torch.cat([half.new_zeros(1), half])
    assert gaps.max() <= 4 / len(half)
