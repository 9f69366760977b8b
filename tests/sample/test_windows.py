"""Clips longer than the model knows, and what was given standing in them as it was."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avgen.data.media import read_clip
from avgen.sample import windows
from avgen.sample.folder import pipeline_of
from avgen.sample.inputs import Edit, Request
from avgen.sample.method import Method
from avgen.sample.pipeline import AVPipeline
from avgen.sample.restore import faded, units
from avgen.sample.solvers import SolverConfig
from avgen.sample.windows import OVERLAP, REMADE, spans
from avgen.train.config import TrainConfig
from avgen.train.data_config import ToyboxData, ToyboxShape
from avgen.types import TimeGrid
from tests.sample.factory import MODEL, files, pipeline

QUICK = Method(SolverConfig("euler", 2))


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


@given(st.floats(0.3, 40), st.floats(0.5, 10))
def test_windows_cover_the_clip_and_each_goes_on_from_the_one_before(duration_s, window_s):
    found = spans(duration_s, window_s)
    assert found[0][0] == 0
    assert found[-1][1] == duration_s
    for before, after in itertools.pairwise(found):
        assert before.start < after.start <= before.kept - OVERLAP * window_s + 1e-9
        assert before.kept == pytest.approx(before.end - REMADE * window_s)
        assert after.end > before.end
    assert found[-1].kept == duration_s
    if len(found) > 1:
        assert all(span.end - span.start == pytest.approx(window_s) for span in found)


def test_later_windows_are_given_what_stays_of_the_one_before_and_make_the_rest(pipe, monkeypatch):
    seen = []
    original = windows.generate

    def watched(model, batch, noise, *rest, **options):
        out = original(model, batch, noise, *rest, **options)
        seen.append({m: (getattr(batch, m), out[m]) for m in out})
        return out

    monkeypatch.setattr(windows, "generate", watched)
    made = pipe(prompt="a", duration_s=3.25, method=QUICK)[0].clip
    assert made.video.shape[0] == 26
    assert made.audio.shape[1] == 52000
    found = spans(3.25, 1.0)
    assert len(seen) == len(found) == 5
    for m, count in (("video", 13), ("audio", 65)):
        clip = {}  # by the instant a token begins at
        for number, (span, window) in enumerate(zip(found, seen, strict=True)):
            stream, out = window[m]
            begins = [round(float(t), 6) for t in stream.time[0, :, 0] + span.start]
            assert min(stream.time[0, :, 0]) >= 0
            before = found[number - 1].kept if number else 0.0
            for i, begin in enumerate(begins):
                given = bool(stream.level[0, i] == 0)
                assert given == (begin < before - 1e-6)
                if given:
                    place = [j for j, other in enumerate(begins[: i + 1]) if other == begin].index(i)
                    assert torch.equal(stream.x[0, i], clip[begin][place])
                    assert torch.equal(out[0, i], stream.x[0, i])
            for begin in dict.fromkeys(begins):
                clip[begin] = [out[0, i] for i, other in enumerate(begins) if other == begin]
            assert number == 0 or min(begins) < before  # something is given
        assert len(clip) == count


def test_windows_that_are_given_whole_cost_nothing(pipe, tmp_path, monkeypatch):
    calls, told, original = [], [], windows.generate
    monkeypatch.setattr(windows, "generate", lambda *a, **k: calls.append(a) or original(*a, **k))
    long = files(tmp_path, duration_s=4.0)["video"]
    request, form = Request("a", video=long), pipe.form_of(Request("a", video=long), "extend", duration_s=4.5)
    pipe.make([request], "extend", form, QUICK, after_step=lambda done, of: told.append((done, of)))
    spans = windows.spans(4.5, 1.0)
    assert len(calls) == sum(span.end > 4.0 for span in spans) < len(spans)
    assert told[-1][0] == told[-1][1]


def test_a_window_is_the_longest_that_the_model_was_trained_on(tmp_path, monkeypatch):
    pipe, solved = pipeline(longest_s=2.0), []
    monkeypatch.setattr(windows, "generate", lambda *a, real=windows.generate, **k: solved.append(1) or real(*a, **k))
    once = pipe(duration_s=2.0, method=QUICK)[0]
    assert (len(solved), once.given.notes) == (1, ())
    said = pipe(duration_s=3.0, method=QUICK)[0].given.notes
    assert (len(solved), said) == (3, ("made in 2 windows of 2 s, the longest that the model was trained on",))
    pipe.save_pretrained(tmp_path)
    again = AVPipeline.from_pretrained(tmp_path)
    assert (again.window_s, again.trained_form.duration_s) == (2.0, 1.0)
    # clips made before in other windows are other clips
    assert again.fingerprint == pipe.fingerprint != pipeline().fingerprint
    # folders of earlier versions know one duration
    said = json.loads((tmp_path / "model_index.json").read_text())
    del said["longest_s"]
    (tmp_path / "model_index.json").write_text(json.dumps(said))
    assert AVPipeline.from_pretrained(tmp_path).window_s == 1.0


def test_of_a_run_with_several_durations_the_pipeline_knows_the_longest():
    parts = pipeline()
    shapes = tuple(ToyboxShape(32, 32, 8.0, seconds) for seconds in (2.0, 4.0, 3.0))
    config = TrainConfig(model=MODEL, steps=1, batch=1, out=Path("run"), data=ToyboxData(shapes=shapes))
    made = pipeline_of(config, parts.model, parts.video_codec, parts.audio_codec)
    assert (made.trained_form.duration_s, made.window_s) == (2.0, 4.0)


def test_a_long_clip_begins_as_the_short_one(pipe, monkeypatch):
    tokens = []
    decode = pipe.decode
    monkeypatch.setattr(pipe, "decode", lambda x, *rest: tokens.append(x) or decode(x, *rest))
    for seconds in (1.0, 2.5):
        pipe(prompt="a", duration_s=seconds, method=QUICK)
    for m in ("video", "audio"):
        short, long = (t[m] for t in tokens)
        stays = int(short.shape[1] * (1 - REMADE))
        assert torch.equal(short[:, :stays], long[:, :stays])


def test_extend_keeps_what_it_is_given(pipe, tmp_path):
    source = files(tmp_path)["video"]
    ours = pipe(task="extend", video=source, duration_s=2.5, prompt="a", method=QUICK)[0].clip
    given_clip = read_clip(source, 0, 1.0, fps=8, size=(16, 16), sample_rate_hz=16000, channels=1).clip
    assert np.array_equal(ours.video[:8], given_clip.video)
    assert np.array_equal(ours.audio[:, :15900], given_clip.audio[:, :15900])
    assert ours.video.shape[0] == 20
    assert not np.array_equal(ours.video[8], ours.video[7])
    with pytest.raises(ValueError, match="leaves nothing to add"):
        pipe(task="extend", video=source, duration_s=1.0, method=QUICK)


def test_inpaint_makes_the_hole_anew_and_nothing_else(pipe, tmp_path):
    source = files(tmp_path)["video"]
    given_clip = read_clip(source, 0, 1.0, fps=8, size=(16, 16), sample_rate_hz=16000, channels=1).clip
    made = pipe(task="inpaint", video=source, method=Method(QUICK.solver, edit=Edit(hole_s=(0.5, 0.75))))[0].clip
    changed = (made.video != given_clip.video).any((1, 2, 3))
    assert changed.tolist() == [False] * 4 + [True] * 2 + [False] * 2
    assert np.array_equal(made.audio[:, :7900], given_clip.audio[:, :7900])
    assert not np.array_equal(made.audio[:, 8000:12000], given_clip.audio[:, 8000:12000])
    with pytest.raises(ValueError, match="needs a hole"):
        pipe(task="inpaint", video=source, method=QUICK)
    only = pipe(task="inpaint", video=source, method=Method(QUICK.solver, edit=Edit(remake="audio")))[0].clip
    assert np.array_equal(only.video, given_clip.video)
    assert not np.array_equal(only.audio, given_clip.audio)


def test_fades_lie_within_what_is_given():
    inside = np.zeros(100, bool)
    inside[:40] = inside[60:80] = True
    share = faded(inside, 5)
    assert (share[~inside] == 0).all()
    assert (share[:35] == 1).all()
    assert (np.diff(share[35:40]) < 0).all()
    assert share[70] == 1
    assert np.abs(np.diff(share)).max() <= 0.2


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 3), st.data())
def test_units_are_those_whose_interval_the_grid_states(steps, stride, delay, data):
    grid = TimeGrid(stride, data.draw(st.sampled_from([1, stride])), min(delay, stride - 1))
    taken = torch.tensor(data.draw(st.lists(st.booleans(), min_size=steps, max_size=steps)))
    count = grid.units(steps) - grid.delay
    if count < 1:
        return
    found = units(taken, grid, count)
    starts = grid.intervals(steps, 1.0)
    for unit in range(count):
        step = int(((starts[:, 0] <= unit) & (unit < starts[:, 1])).nonzero()[0, 0])
        assert found[unit] == taken[step]
