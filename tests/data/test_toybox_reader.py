"""The event reader: right on clean and on spoilt clips, quiet on clips of no world."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from avgen.data.media import read_clip, write_clip
from avgen.data.toybox import Scene, Toybox, ToyboxConfig
from avgen.data.toybox.check import blurred
from avgen.data.toybox.picture import render_picture
from avgen.data.toybox.reader import (
    CaptionScore,
    HeardEvent,
    Reading,
    Score,
    SeenEvent,
    Tally,
    match,
    read_events,
    score,
    score_caption,
)
from avgen.data.toybox.scene import COLOURS, KINDS
from avgen.types import Clip

CONFIG = ToyboxConfig()
UNSEEN = 20_000  # seed of clips that the reader wasn't made on
MEASURES = ("seen", "heard", "sync", "seen_kind", "seen_colour", "heard_kind", "heard_colour")


@lru_cache(maxsize=512)
def item(index, split="test"):
    return Toybox(CONFIG, split, UNSEEN)[index]


def total_of(items, spoil=lambda clip, i: clip):
    total = Score()
    for i, made in enumerate(items):
        total += score(read_events(spoil(made.clip, i)), made.events)
    return total


def assert_right(total, least):
    for name in MEASURES:
        tally = getattr(total, name)
        assert tally.precision >= least, (name, tally)
        assert tally.recall >= least, (name, tally)


@pytest.mark.parametrize("shard", range(4))
def test_unseen_clips_are_read(shard):
    assert_right(total_of(item(i) for i in range(125 * shard, 125 * shard + 125)), 0.98)


def test_held_out_combinations_are_read_as_well():
    assert_right(total_of(item(i, "heldout") for i in range(40)), 0.98)


def through_a_file(folder):
    def spoil(clip, i):
        path = folder / f"{i}.mp4"
        write_clip(path, clip)
        return read_clip(path, 0.0, clip.video_duration_s, fps=clip.fps, sample_rate_hz=clip.sample_rate_hz).clip

    return spoil


def test_a_few_clips_are_read_from_mp4(tmp_path):
    assert_right(total_of([item(i) for i in range(25)], through_a_file(tmp_path)), 0.95)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(4))
def test_clips_are_read_from_mp4(tmp_path, shard):
    items = [item(i) for i in range(125 * shard, 125 * shard + 125)]
    assert_right(total_of(items, through_a_file(tmp_path)), 0.95)


def test_blurred_and_noisy_clips_are_read():
    assert_right(total_of([item(i) for i in range(60)], blurred), 0.95)


@pytest.mark.parametrize(
    "form",
    [
        {"fps": 24.0, "height": 64, "width": 64},
        {"fps": 30.0, "height": 48, "width": 80, "sample_rate_hz": 48000, "audio_channels": 2},
        {"fps": 12.0, "height": 160, "width": 128, "sample_rate_hz": 8000},
        {"duration_s": 12.0},
    ],
    ids=lambda form: "-".join(map(str, form.values())),
)
def test_any_form_is_read(form):
    world = Toybox(replace(CONFIG, **form), "test", UNSEEN)
    assert_right(total_of(world[i] for i in range(8)), 0.97)


def test_instants_are_finer_than_a_frame():
    total = total_of(item(i) for i in range(60))
    for errors, worst_s in ((total.seen_error_s, 0.03), (total.heard_error_s, 0.015)):
        assert np.quantile(np.abs(errors), 0.95) < worst_s
        assert abs(np.mean(errors)) < worst_s / 4
    fine = total_of(Toybox(replace(CONFIG, fps=24.0), "test", UNSEEN)[i] for i in range(12))
    assert np.quantile(np.abs(fine.seen_error_s), 0.95) < 0.012


def test_captions_are_judged():
    total, wrong = CaptionScore(), CaptionScore()
    for i in range(100):
        reading = read_events(item(i).clip)
        total += score_caption(reading, item(i).facts)
        wrong += score_caption(reading, item(i + 100).facts)
    for name in ("kind", "colour", "size", "count"):
        assert getattr(total, name) >= 0.98 * total.actors
        assert getattr(wrong, name) < 0.6 * wrong.actors
    assert total.extra <= 0.02 * total.actors


def shifted(clip, seconds):
    samples = round(seconds * clip.sample_rate_hz)
    audio = np.zeros_like(clip.audio)
    if samples >= 0:
        audio[:, samples:] = clip.audio[:, : clip.audio.shape[1] - samples]
    else:
        audio[:, :samples] = clip.audio[:, -samples:]
    return replace(clip, audio=audio)


def test_sync_notices_late_sound():
    world = Toybox(replace(CONFIG, scenes=("single", "pair"), duration_s=4.0), "test", UNSEEN)
    items = [world[i] for i in range(12)]
    # within a frame of 0.125 s; beyond it; a longer delay could meet the next event of a fast actor
    for late, least, most in ((0.0, 0.98, 1.0), (0.05, 0.9, 1.0), (0.17, 0.0, 0.1), (-0.17, 0.0, 0.1)):
        f1 = total_of(items, lambda clip, i, late=late: shifted(clip, late)).sync.f1
        assert least <= f1 <= most


def test_a_delay_of_the_sound_is_read_as_such():
    for i in range(12):
        made = item(i)
        heard = read_events(made.clip).heard
        late = read_events(shifted(made.clip, 0.03)).heard
        for a, b in match(heard, late, 0.06, same_source=True):
            assert late[b].instant_s - heard[a].instant_s == pytest.approx(0.03, abs=0.006)


def test_agreement_needs_no_truth():
    own, swapped = Tally(), Tally()
    sounding = [item(i) for i in range(60) if item(i).scene.type in ("single", "pair", "turn")]
    for made, other in zip(sounding, sounding[1:] + sounding[:1], strict=True):
        own += read_events(made.clip).agreement()
        swapped += read_events(replace(made.clip, audio=other.clip.audio)).agreement()
    assert own.f1 >= 0.98
    assert swapped.f1 < 0.1


def test_times_are_on_the_clips_clock():
    clip = item(3).clip
    early, late = read_events(clip), read_events(replace(clip, start_s=100.0))
    assert early.seen or early.heard
    for a, b in zip(early.seen + early.heard, late.seen + late.heard, strict=True):
        assert b.instant_s - a.instant_s == pytest.approx(100.0)


def test_either_half_may_be_absent():
    clip = next(item(i) for i in range(50) if item(i).scene.type == "single").clip
    seen = read_events(Clip(clip.video, None, clip.fps, None))
    heard = read_events(Clip(None, clip.audio, None, clip.sample_rate_hz))
    assert seen.seen
    assert not seen.heard
    assert heard.heard
    assert not heard.seen


def garbage_video(rng):
    shape = (16, 32, 32, 3)
    smooth = ndimage.gaussian_filter(rng.normal(0, 1, shape), (1, 3, 3, 0))
    return {
        "black": np.zeros(shape),
        "white": np.full(shape, 255.0),
        "noise": rng.uniform(0, 255, shape),
        "still noise": np.repeat(rng.uniform(0, 255, shape[1:])[None], 16, 0),
        "flicker": np.broadcast_to(rng.uniform(0, 255, (16, 1, 1, 1)), shape),
        "clouds": smooth * 1500 + 100,
        "empty room": render_picture(Scene("single", ()), 32, 32, 8.0, 16),
        "one frame": np.zeros((1, 32, 32, 3)),
        "tiny": rng.uniform(0, 255, (3, 2, 2, 3)),
        "no frames": np.zeros((0, 32, 32, 3)),
    }


def garbage_audio(rng):
    time_s = np.arange(32000) / 16000
    return {
        "silence": np.zeros((1, 32000)),
        "noise": rng.normal(0, 0.2, (1, 32000)),
        "loud noise": rng.normal(0, 5, (1, 32000)),
        "drift": np.cumsum(rng.normal(0, 0.01, (1, 32000)), 1),
        "steady tone": 0.4 * np.sin(2 * np.pi * 517 * time_s)[None],
        "steady": np.full((2, 32000), 0.5),
        "click": np.eye(1, 32000, 9000),
        "not numbers": np.full((1, 32000), np.nan),
        "infinite": np.full((1, 32000), np.inf),
        "short": np.ones((1, 10)),
        "none": np.zeros((1, 0)),
    }


@pytest.mark.parametrize("name", garbage_video(np.random.default_rng(0)))
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_seen_in_garbage(name, seed):
    video = np.clip(garbage_video(np.random.default_rng(seed))[name], 0, 255).astype(np.uint8)
    assert len(read_events(Clip(video, None, 8.0, None)).seen) <= 1


@pytest.mark.parametrize("name", garbage_audio(np.random.default_rng(0)))
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_heard_in_garbage(name, seed):
    audio = garbage_audio(np.random.default_rng(seed))[name].astype(np.float32)
    assert len(read_events(Clip(None, audio, None, 16000)).heard) <= 1


def seen_like(event):
    return SeenEvent(event.instant_s, event.kind, event.colour, event.position, 0, 1.0)


def heard_like(event):
    return HeardEvent(event.instant_s, event.kind, event.colour, event.pitch_hz, event.loudness, 1.0)


def test_the_truth_scores_full_marks_and_its_parts_what_they_are_worth():
    made = next(item(i) for i in range(100) if len(item(i).events) >= 4 and item(i).scene.type == "pair")
    truth = made.events
    seen, heard = tuple(map(seen_like, truth)), tuple(map(heard_like, truth))
    n = len(truth)
    full = score(Reading(seen, heard, (), 0.125), truth)
    for name in MEASURES:
        assert getattr(full, name) == Tally(n, n, n)
    half = score(Reading(seen[1:], heard, (), 0.125), truth)
    assert half.seen == Tally(n - 1, n - 1, n)
    assert half.sync == Tally(n - 1, n - 1, n)
    doubled = score(Reading(seen + seen, heard, (), 0.125), truth)
    assert doubled.seen.precision == pytest.approx(0.5)
    recoloured = tuple(replace(e, colour=COLOURS[COLOURS.index(e.colour) - 1]) for e in heard)
    other = score(Reading(seen, recoloured, (), 0.125), truth)
    assert other.heard.matched == n
    assert other.heard_colour.matched < n
    late = score(Reading(seen, tuple(replace(e, instant_s=e.instant_s + 0.13) for e in heard), (), 0.125), truth)
    assert late.sync.matched < n


events_at = st.lists(
    st.builds(
        lambda t, k, c: HeardEvent(t, k, c, 0.0, 0.0, 1.0),
        st.floats(0, 2),
        st.sampled_from(KINDS[:2]),
        st.sampled_from(COLOURS[:2]),
    ),
    max_size=7,
)


@settings(max_examples=150, deadline=None)
@given(first=events_at, second=events_at, tolerance_s=st.floats(0.01, 0.5), same=st.booleans())
def test_matching_is_one_to_one_near_and_as_large_as_can_be(first, second, tolerance_s, same):
    pairs = match(first, second, tolerance_s, same)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)

    def allowed(a, b):
        near = abs(a.instant_s - b.instant_s) <= tolerance_s + 1e-9
        return near and (not same or (a.kind, a.colour) == (b.kind, b.colour))

    assert all(allowed(first[i], second[j]) for i, j in pairs)
    # no augmenting path: Kuhn's algorithm finds none larger
    found: dict[int, int] = {}

    def place(i, tried):
        for j, b in enumerate(second):
            if j not in tried and allowed(first[i], b):
                tried.add(j)
                if j not in found or place(found[j], tried):
                    found[j] = i
                    return True
        return False

    assert len(pairs) == sum(place(i, set()) for i in range(len(first)))


def test_ratios_of_nothing_are_not_numbers():
    assert np.isnan(Tally().f1)
    assert np.isnan(Tally(0, 0, 3).precision)
    assert Tally(0, 0, 3).f1 == 0
