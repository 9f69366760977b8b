"""Long clips: a drift and a seam are found where there is one, and not where there is none."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from avgen.data.toybox import Toybox, ToyboxConfig
from avgen.data.toybox.reader import HeardEvent, Reading, SeenEvent, Tally
from avgen.sample import long_report, windows
from avgen.sample.long_report import STREAMS, LongConfig, agreement, form_of, lines, long_clips, plain, report
from avgen.sample.seams import meetings_s, seam_ranks, spliced
from avgen.sample.solvers import SolverConfig
from avgen.sample.windows import spans
from tests.sample.factory import pipeline

TIMES = 4
LONG = ToyboxConfig(scenes=("single",), duration_s=2.0 * TIMES)


def cuts(length_s, window_s):
    """Where the grids of both streams have a token begin."""
    return {stream: [span.kept for span in spans(length_s, window_s)[:-1]] for stream in STREAMS}


@pytest.fixture(scope="module")
def real():
    return [Toybox(LONG, "test")[i].clip for i in range(16)]


def test_real_clips_neither_drift_nor_show_seams_and_hard_cuts_show(real):
    found = report(real, real, 2.0, cuts(8.0, 2.0), seed=0)
    assert len(found.windows) == TIMES
    assert min(e.value for e in found.windows) > 0.9
    assert found.windows[0].value == pytest.approx(found.ceiling.value, abs=0.1)
    assert found.steady
    for stream in ("sound", "picture"):
        assert found.seams[stream].low < 0.6
        assert found.hard[stream].low > found.seams[stream].high
    assert found.hard["sound"].value > 0.75


def test_what_is_seen_before_an_edge_and_heard_after_it_agrees_where_it_is_seen():
    seen = tuple(SeenEvent(at, "ball", "red", (0.0, 0.0), 0, 1.0) for at in (0.5, 1.99))
    heard = tuple(HeardEvent(at, "ball", "red", 440.0, 0.5, 1.0) for at in (0.5, 2.01, 3.0))
    reading = Reading(seen, heard, (), frame_s=0.125)
    assert agreement(reading, 0.0, 2.0) == Tally(2, found=2, true=2)
    assert agreement(reading, 2.0, 4.0) == Tally(0, found=1, true=0)


def test_a_sound_that_runs_late_shows_in_the_last_window(real):
    late = [
        replace(c, audio=np.concatenate([c.audio[:, :48000], np.roll(c.audio[:, 48000:], 4800, axis=1)], 1))
        for c in real
    ]
    found = report(late, real, 2.0, cuts(8.0, 2.0), seed=0)
    assert found.windows[0].value > 0.9
    assert found.windows[-1].value < 0.5
    assert found.drift.high < 0
    assert not found.steady


def test_clicks_at_the_seams_are_told_from_the_clip_itself(real):
    """What `report` calls a seam is where the next window of 2 s goes on: an eighth before the end of the former."""
    clicked = []
    for clip in real:
        audio = clip.audio.copy()
        for cut in (1.75, 3.0, 4.25, 5.5, 6.75):
            audio[:, round(cut * 16000)] += 0.3
        clicked.append(replace(clip, audio=audio))
    found = report(clicked, real, 2.0, cuts(8.0, 2.0), seed=0)
    assert found.loud["sound"].low > 0.5
    assert found.loud["picture"].value < 0.2


def test_a_splice_keeps_the_length_and_takes_turns(real):
    one, other = real[:2]
    mixed = spliced([one, other], [3.0, 5.0])
    assert mixed.video.shape == one.video.shape
    assert mixed.audio.shape == one.audio.shape
    assert np.array_equal(mixed.video[24:40], other.video[24:40])
    assert np.array_equal(mixed.audio[:, 80000:], one.audio[:, 80000:])


def test_where_everything_is_alike_nothing_is_told():
    still = Toybox(LONG, "test")[0].clip
    still = replace(still, video=np.zeros_like(still.video), audio=np.zeros_like(still.audio))
    ranks = seam_ranks(still, {stream: [2.0, 3.5] for stream in STREAMS})
    assert ranks["picture"].tolist() == ranks["sound"].tolist() == [0.5, 0.5]


def test_the_report_of_made_clips_is_plain_data():
    pipe = pipeline(height=32, width=32, duration_s=2.0)
    config = LongConfig(clips=2, times=2, batch=2, solver=SolverConfig("euler", 1))
    clips = long_clips(pipe, replace(pipe.trained_form, duration_s=4.0), config)
    assert [c.video_duration_s for c in clips] == [4.0, 4.0]
    found = report(clips, clips, 2.0, cuts(4.0, 2.0), seed=0)
    json.loads(json.dumps(plain(found), allow_nan=False))
    assert all(what and value for what, value in lines(found))


def test_every_hard_cut_is_one(real, monkeypatch):
    """No two of a clip at the same instant, where the first clip would go on."""
    seen = []
    splice = long_report.spliced
    monkeypatch.setattr(long_report, "spliced", lambda clips, at_s: seen.append(at_s) or splice(clips, at_s))
    report(real, real, 0.5, cuts(8.0, 0.5), seed=0)
    assert len(seen) == len(real)
    assert all(len(set(at_s)) == len(at_s) > 10 for at_s in seen)
    assert all(at * 8 == pytest.approx(round(at * 8)) for at_s in seen for at in at_s)


@pytest.mark.parametrize(("window_s", "length_s"), [(1.5, 4.0), (1.0, 3.25), (2.0, 7.0)])
def test_seams_are_looked_for_where_the_tokens_of_windows_meet(window_s, length_s, monkeypatch):
    """Each window writes its number: the instants at which it changes are those that are looked at."""
    pipe, numbers, made = pipeline(duration_s=window_s), itertools.count(), {}

    def numbered(model, batch, noise, *rest, **options):
        number = float(next(numbers))
        streams = batch.streams
        return {m: torch.where((s.level == 0)[..., None], s.x, number) for m, s in streams.items()}

    def watched(*rest, real=windows.generate_long, **options):
        made.update({m: (x, rest[1].streams[m].time[0, :, 0]) for m, x in real(*rest, **options).items()})
        return {m: x for m, (x, _) in made.items()}

    monkeypatch.setattr(windows, "generate", numbered)
    monkeypatch.setattr("avgen.sample.pipeline.generate_long", watched)
    form = replace(pipe.trained_form, duration_s=length_s)
    pipe(prompt="a", duration_s=length_s)
    found = meetings_s(pipe, form)
    for m, stream in (("video", "picture"), ("audio", "sound")):
        x, begins = made[m]
        changes = [float(begins[i]) for i in range(1, len(begins)) if x[0, i, 0] != x[0, i - 1, 0]]
        assert changes == pytest.approx(found[stream])


def test_real_clips_of_a_stereo_model_have_its_channels():
    pipe = pipeline()
    pipe.audio_codec.geometry = replace(pipe.audio_codec.geometry, audio_channels=2)
    assert form_of(pipe, pipe.trained_form)["audio_channels"] == 2
