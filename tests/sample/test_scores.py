"""Figures of generated toybox clips: right clips reach the ceiling, wrong ones fall to the null."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from avgen.data.toybox import Toybox, ToyboxConfig
from avgen.data.toybox.world import render_facts
from avgen.sample.method import Method
from avgen.sample.scores import LONG, Bench, estimate, plain, scores, table
from avgen.sample.solvers import SolverConfig
from tests.sample.factory import pipeline

WORLD = ToyboxConfig(scenes=("single",))


@pytest.fixture(scope="module")
def bench():
    items = [Toybox(WORLD, "test")[i] for i in range(12)]
    twins = [render_facts(item.facts, WORLD, 0, i).clip for i, item in enumerate(items)]
    return Bench(items, [item.clip for item in items], twins, seed=0)


@pytest.mark.parametrize("task", ["i2av", "v2a", "a2v"])
def test_the_true_clips_reach_the_ceiling_and_stand_above_the_null(bench, task):
    for name, scored in getattr(bench, task)(bench.real).items():
        assert scored.of_ceiling == pytest.approx(1), name
        if scored.null is not None:
            assert scored.null.value < scored.figure.value, name


def test_text_alone_is_judged_by_the_clip_itself(bench):
    """Other clips of equal caption are as good as the true ones; with each other's sound they are not."""
    made = [c for i in range(6) for c in (bench.real[i], bench.twins[i])]
    found = bench.t2av(made)
    assert found["sync"].figure.value > 0.9
    assert found["sync"].null.value < 0.8
    assert found["caption kind"].figure.value == 1
    assert found["caption count"].figure.value > 0.8


def test_sound_of_other_clips_falls_to_the_null(bench):
    wrong = [replace(c, audio=t.audio) for c, t in zip(bench.real, bench.twins, strict=True)]
    onset = bench.v2a(wrong)["onset"]
    assert onset.figure == onset.null


def test_a_drift_between_picture_and_sound_shows_in_the_last_window(bench):
    clip = bench.real[0]
    clips = [replace(c, video=np.tile(c.video, (LONG, 1, 1, 1)), audio=np.tile(c.audio, LONG)) for c in bench.real]
    found = bench.long(clips)
    assert found["sync, first window"].figure == found["sync, last window"].figure
    late = [
        replace(c, audio=np.concatenate([c.audio[:, :32000], np.roll(c.audio[:, 32000:], 6000, 1)], 1)) for c in clips
    ]
    drifted = bench.long(late)
    assert drifted["sync, first window"].figure == found["sync, first window"].figure
    assert drifted["sync, last window"].figure.value < found["sync, last window"].figure.value - 0.2
    assert clip.audio.shape[1] == 32000


def test_an_estimate_is_a_ratio_of_sums_and_its_interval_narrows():
    few, many = estimate([(1, 2), (0, 2)] * 5), estimate([(1, 2), (0, 2)] * 80)
    assert few.value == many.value == 0.25
    assert few.low < few.value < few.high
    assert many.high - many.low < few.high - few.low
    assert math.isnan(estimate([(0, 0)]).value)


def test_every_task_is_scored_and_the_figures_are_plain_data():
    pipe = pipeline(height=32, width=32, duration_s=2.0)
    heard = []
    found = scores(pipe, WORLD, clips=3, method=Method(SolverConfig("euler", 1)), batch=2, advance=heard.append)
    assert set(found) == {"t2av", "i2av", "v2a", "a2v"}
    assert sum(heard) == 12
    json.loads(json.dumps(plain(found), allow_nan=False))
    assert table(found).row_count == sum(map(len, found.values()))
