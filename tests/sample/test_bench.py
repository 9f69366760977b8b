"""The seam detector finds what it is for; the bench runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from avgen.sample.bench import MEASURES, BenchConfig
from avgen.sample.seams import seam_ranks
from tests.sample.factory import clip, pipeline


def test_a_seam_is_found_and_a_smooth_clip_has_none():
    moving = clip(duration_s=8.0)
    hiss = np.random.default_rng(0).normal(0, 0.02, moving.audio.shape).astype(np.float32)
    smooth = replace(moving, audio=hiss)
    cuts = [2.0, 3.5, 5.0]
    both = {"sound": cuts, "picture": cuts}
    broken = smooth.audio.copy(), smooth.video.copy()
    for cut in cuts:
        broken[0][:, round(cut * 16000) :] += 0.3
        broken[1][round(cut * 8) :] = 255 - broken[1][round(cut * 8) :]
    found = seam_ranks(replace(smooth, audio=broken[0], video=broken[1]), both)
    whole = seam_ranks(smooth, both)
    assert (found["sound"] > 0.98).all()
    assert (found["picture"] >= 0.9).all()
    assert np.median(whole["sound"]) < 0.9
    assert np.median(whole["picture"]) < 0.9


@pytest.mark.parametrize("name", [pytest.param(m, marks=pytest.mark.slow if m == "start" else ()) for m in MEASURES])
def test_every_measure_gives_its_rows(name, tmp_path):
    pipe = pipeline()
    if name == "start":  # in a process of its own, from a folder
        pipe.save_pretrained(tmp_path)
    config = BenchConfig(model=tmp_path, batch=1, repeats=1, reference_steps=2, long_s=2.0)
    rows = list(MEASURES[name](pipe, config))
    assert rows
    assert all(what and value for what, value in rows)
