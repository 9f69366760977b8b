"""The toybox world: what it promises of its scenes, pictures and sounds."""

import pickle
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avgen.data.toybox import Actor, Scene, Toybox, ToyboxConfig, facts_of, render, render_facts
from avgen.data.toybox.scene import (
    COLOURS,
    GRAVITY,
    HELD_OUT,
    KINDS,
    LOUDNESS,
    SCENE_TYPES,
    SEEN,
    SIZES,
    ActorFacts,
    SceneFacts,
    ball_height,
    events,
    most_events,
    retimed,
)

CONFIG = ToyboxConfig()


def actor(kind="ball", colour="red", size="medium", first_s=0.5, period_s=0.8, **rest):
    return Actor(kind, colour, size, 0.5, 0.88 if kind == "ball" else 0.4, first_s, period_s, **rest)


def scene(*actors, type="single"):
    return Scene(type, actors)


def same_item(a, b):
    return (
        a.scene == b.scene
        and a.caption == b.caption
        and a.events == b.events
        and np.array_equal(a.clip.video, b.clip.video)
        and np.array_equal(a.clip.audio, b.clip.audio)
    )


def test_an_item_depends_on_seed_split_and_index_alone():
    world = Toybox(CONFIG, "train", seed=3)
    forwards = [world[i] for i in range(6)]
    copy = pickle.loads(pickle.dumps(world))
    backwards = [copy[i] for i in reversed(range(6))][::-1]
    assert all(same_item(a, b) for a, b in zip(forwards, backwards, strict=True))
    for other in (Toybox(CONFIG, "train", seed=4), Toybox(CONFIG, "test", seed=3)):
        assert not any(same_item(other[i], forwards[i]) for i in range(6))
        assert other.fingerprint != world.fingerprint
    assert copy.fingerprint == world.fingerprint


def test_the_form_of_a_clip_leaves_its_scene_alone():
    big = Toybox(ToyboxConfig(height=48, width=40, fps=24, sample_rate_hz=8000), "train")
    assert [big.scene(i) for i in range(20)] == [Toybox(CONFIG, "train").scene(i) for i in range(20)]


@settings(max_examples=40, deadline=None)
@given(
    fps=st.sampled_from([6.0, 8.0, 12.0, 23.976, 25.0, 29.97, 60.0]),
    duration_s=st.floats(0.8, 3.7),
    rate=st.sampled_from([8000, 16000, 22050, 44100]),
    channels=st.sampled_from([1, 2]),
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    index=st.integers(0, 10**6),
)
def test_a_clip_has_exactly_the_asked_form(fps, duration_s, rate, channels, height, width, index):
    config = ToyboxConfig(height, width, fps, duration_s, rate, channels)
    clip = Toybox(config)[index].clip
    assert clip.video.shape == (round(duration_s * fps), height, width, 3)
    assert clip.video.dtype == np.uint8
    assert clip.audio.shape == (channels, round(duration_s * rate))
    assert clip.audio.dtype == np.float32
    assert np.abs(clip.audio).max() < 1


def test_no_scene_reaches_full_scale():
    world = Toybox(ToyboxConfig(duration_s=4.0, scenes=("pair", "offscreen")), "test")
    assert max(float(np.abs(world[i].clip.audio).max()) for i in range(60)) < 0.95


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "lamp"])
def test_three_times_the_frame_rate_shows_the_same_instants(kind):
    # the middle third of an exposure is centred on the whole exposure's middle
    for i in range(12):
        toys = Toybox(ToyboxConfig(kinds=(kind,), scenes=("single", "turn", "pair")))
        slow, fast = (render(toys.scene(i), replace(toys.config, fps=fps)).clip.video for fps in (8.0, 24.0))
        assert np.abs(fast[1::3].astype(int) - slow).max() <= 1


def test_a_lamp_at_a_low_rate_is_the_mean_of_a_high_one():
    toys = Toybox(ToyboxConfig(kinds=("lamp",), scenes=("single", "turn")))
    for i in range(12):
        slow, fast = (render(toys.scene(i), replace(toys.config, fps=fps)).clip.video for fps in (8.0, 32.0))
        mean = fast.reshape(len(slow), 4, *slow.shape[1:]).astype(float).mean(1)
        assert np.abs(mean - slow).max() <= 1.5


def test_a_longer_rendering_begins_with_the_shorter_one():
    world = Toybox(CONFIG)
    for i in range(40):
        short, long = world[i], render(world.scene(i), replace(CONFIG, duration_s=5.0))
        frames, samples = len(short.clip.video), short.clip.audio.shape[1]
        assert np.array_equal(long.clip.video[:frames], short.clip.video)
        np.testing.assert_allclose(long.clip.audio[:, :samples], short.clip.audio, atol=2e-6)
        early = [replace(e, end_s=0) for e in long.events if e.instant_s < CONFIG.duration_s]
        assert early == [replace(e, end_s=0) for e in short.events]


@pytest.mark.parametrize("kind", ["ball", "lamp", "bar"])
@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_a_struck_sound_begins_at_its_instant(kind, rate):
    for first_s in (0.31234567, 0.7, 1.234):
        for colour in COLOURS:
            wave = render(scene(actor(kind, colour, first_s=first_s, count=1)), replace(CONFIG, sample_rate_hz=rate))
            sounding = np.flatnonzero(wave.clip.audio[0])
            assert 0 <= sounding[0] - first_s * rate <= 2
            peak = np.abs(wave.clip.audio).max()
            edges = wave.clip.audio[0, [sounding[0], sounding[-1]]]
            assert np.abs(edges).max() < 0.02 * peak  # no click


@pytest.mark.parametrize("kind", KINDS)
def test_later_by_whole_samples_is_the_same_sound_later(kind):
    early = scene(actor(kind, "green", first_s=0.6012345, count=2))
    late = retimed(early, 500 / CONFIG.sample_rate_hz)
    a, b = (render(s, CONFIG).clip.audio[0] for s in (early, late))
    if kind == "disc":  # its tone goes on as it was, only its loudness moves
        a, b = (np.convolve(np.abs(x), np.ones(200) / 200, "same") for x in (a, b))
        np.testing.assert_allclose(b[500:-200], a[:-700], atol=0.01)
    else:
        np.testing.assert_allclose(b[500:], a[:-500], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_sub_sample_instants_are_kept(kind):
    # sampled twice as finely the sound is the same at the common samples, whatever the fraction the start falls on
    some = scene(actor(kind, "red", first_s=0.50002, count=2))
    coarse, fine = (render(some, replace(CONFIG, sample_rate_hz=r)).clip.audio[0] for r in (32000, 64000))
    np.testing.assert_allclose(fine[::2], coarse, atol=0.02 * np.abs(coarse).max())


def test_a_hum_is_loudest_at_its_crest_and_follows_the_size():
    made = render(scene(actor("disc", first_s=0.9, count=1)), replace(CONFIG, fps=50.0))
    level = np.convolve(made.clip.audio[0] ** 2, np.hanning(800), "same")
    assert abs(level.argmax() / CONFIG.sample_rate_hz - 0.9) < 0.005
    area = (made.clip.video[..., 0] > 120).sum((1, 2))
    assert abs(np.mean(np.flatnonzero(area == area.max()) + 0.5) / 50 - 0.9) < 0.02
    assert [e.instant_s for e in made.events] == [0.9]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("colour", ["red", "white"])
def test_larger_is_louder(kind, colour):
    waves = [render(scene(actor(kind, colour, size, count=1)), CONFIG).clip.audio[0] for size in SIZES]
    peaks = [float(np.abs(wave).max()) for wave in waves]
    energies = [float(np.square(wave).sum()) for wave in waves]
    assert energies == sorted(energies)
    np.testing.assert_allclose(peaks, [LOUDNESS[size] for size in SIZES], rtol=0.05)


@pytest.mark.parametrize("kind", ["ball", "bar"])
def test_larger_rings_longer(kind):
    def fall_s(size):
        wave = render(scene(actor(kind, "red", size, count=1)), CONFIG).clip.audio[0]
        energy = np.cumsum(wave.astype(float) ** 2)
        return np.searchsorted(energy, 0.9 * energy[-1])

    lengths = [fall_s(size) for size in SIZES]
    assert lengths == sorted(lengths)
    assert lengths[0] < 0.95 * lengths[2]


def test_stereo_places_the_sound_where_the_actor_is():
    left, right = (replace(actor("lamp", count=1), x=x) for x in (0.1, 0.9))
    config = replace(CONFIG, audio_channels=2)
    for made, louder in ((render(scene(left), config), 0), (render(scene(right), config), 1)):
        energy = np.square(made.clip.audio).sum(1)
        assert energy[louder] > 4 * energy[1 - louder]


def test_a_ball_obeys_gravity():
    ball = actor(first_s=0.7, period_s=0.9)
    time_s = np.linspace(0.72, 1.58, 50)  # one flight
    height = ball_height(ball, time_s)
    fall = np.diff(height, 2) / np.diff(time_s)[0] ** 2
    np.testing.assert_allclose(fall, -GRAVITY, rtol=1e-6)
    np.testing.assert_allclose(ball_height(ball, np.array([0.7, 1.6, 2.5])), 0, atol=1e-9)
    assert ball_height(ball, np.array([0.0]))[0] == pytest.approx(GRAVITY * 0.9**2 / 8)  # it waits at the top


def test_silent_scenes_are_silent_and_unseen_ones_empty():
    silent = Toybox(replace(CONFIG, scenes=("silent",)))
    hidden = Toybox(replace(CONFIG, scenes=("offscreen",)))
    for i in range(20):
        assert not silent[i].clip.audio.any()
        assert silent[i].clip.video.std(0).max() > 10
        item = hidden[i]
        assert item.clip.audio.any()
        moving = bool(item.clip.video.std(0).max() > 0)
        assert moving == any(a.visible for a in item.scene.actors)


def test_held_out_combinations_are_never_trained_on():
    everything = {(kind, colour, size) for kind in KINDS for colour in COLOURS for size in SIZES}
    assert set(SEEN) | HELD_OUT == everything
    assert not set(SEEN) & HELD_OUT
    pairs = {(kind, colour) for kind, colour, _ in everything}
    never = pairs - {(kind, colour) for kind, colour, _ in SEEN}
    assert len(never) == len(KINDS)  # one colour per kind is unseen at any size
    # yet every kind, colour and size, and every kind at every size, is seen
    for names in (lambda c: c[0], lambda c: c[1], lambda c: c[2], lambda c: (c[0], c[2])):
        assert {names(c) for c in SEEN} == {names(c) for c in everything}
    for split, wanted in (("train", set(SEEN)), ("test", set(SEEN)), ("heldout", set(HELD_OUT))):
        world = Toybox(CONFIG, split)
        drawn = {(a.kind, a.colour, a.size) for i in range(1500) for a in world.scene(i).actors}
        assert drawn == wanted


def test_every_scene_type_and_weight():
    world = Toybox(CONFIG)
    types = [world.scene(i).type for i in range(400)]
    assert set(types) == set(SCENE_TYPES)
    weighted = Toybox(replace(CONFIG, scenes=("pair", "silent", "turn"), scene_weights=(3.0, 1.0, 0.0)))
    drawn = [weighted.scene(i).type for i in range(400)]
    assert "turn" not in drawn
    assert 0.65 < drawn.count("pair") / len(drawn) < 0.85


@settings(max_examples=150, deadline=None)
@given(index=st.integers(0, 10**9), duration_s=st.sampled_from([0.75, 1.0, 2.0, 3.3, 10.0]))
def test_what_is_drawn_keeps_the_worlds_rules(index, duration_s):
    world = Toybox(replace(CONFIG, duration_s=duration_s), "test")
    made = world.scene(index)
    found = events(made, duration_s)
    times = [e.instant_s for e in found]
    assert times == sorted(times)
    assert min(times) >= 0.15 - 1e-9
    assert max(times) <= duration_s - 0.15 + 1e-9
    colours = [a.colour for a in made.actors]
    assert len(set(colours)) == len(colours)
    for e in found:
        assert 0 <= e.start_s <= e.instant_s <= e.end_s <= duration_s
    if made.type == "turn":
        first, second = (max(a.instants_s(duration_s)) if i == 0 else min(a.instants_s(duration_s))
                         for i, a in enumerate(made.actors))  # fmt: skip
        assert first < second


actor_facts = st.builds(
    ActorFacts, st.sampled_from(KINDS), st.sampled_from(COLOURS), st.sampled_from(SIZES), st.integers(1, 4)
)


@settings(max_examples=80, deadline=None)
@given(one=actor_facts, other=actor_facts, type=st.sampled_from(["single", "pair", "turn"]), seed=st.integers(0, 99))
def test_a_scene_made_from_facts_has_them(one, other, type, seed):
    actors = (one,) if type == "single" else (one, other)
    facts = SceneFacts(type, actors)
    made = render_facts(facts, replace(CONFIG, duration_s=4.0), seed)
    assert made.facts == facts
    assert facts_of(made.scene, 4.0) == facts


def test_facts_that_do_not_fit_are_refused():
    many = SceneFacts("single", (ActorFacts("ball", "red", "small", most_events(2.0) + 1),))
    with pytest.raises(ValueError, match=r"do not fit in 2 s.*duration_s of at least"):
        render_facts(many, CONFIG)
    in_turn = SceneFacts("turn", (ActorFacts("ball", "red", "small", 3), ActorFacts("bar", "blue", "small", 3)))
    with pytest.raises(ValueError, match="in turn do not fit"):
        render_facts(in_turn, CONFIG)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"height": 4}, "height=4"),
        ({"fps": 0.0}, "fps"),
        ({"duration_s": 0.2}, "duration_s=0.2"),
        ({"audio_channels": 3}, "audio_channels=3"),
        ({"scenes": ("trio",)}, "trio"),
        ({"scenes": ()}, "scenes"),
        ({"kinds": ("bell",)}, "bell"),
        ({"scene_weights": (1.0,)}, "scene_weights"),
    ],
)
def test_a_wrong_configuration_names_the_key(wrong, word):
    with pytest.raises(ValueError, match=word):
        ToyboxConfig(**wrong)


def test_rendering_is_fast_enough_to_train_on():
    world = Toybox(CONFIG)
    for i in range(100):
        world[i]  # fills the tables of sounds
    best_s = np.inf
    for repeat in range(3):
        begin = time.process_time()
        for i in range(60):
            world[1000 * repeat + i]
        best_s = min(best_s, (time.process_time() - begin) / 60)
    assert 1 / best_s >= 300


def test_every_pitch_is_heard_at_the_lowest_rate_and_lower_ones_are_refused():
    world = Toybox(ToyboxConfig(sample_rate_hz=6000, scenes=("single",)), "test", 0)
    for i in range(40):
        audio = world[i].clip.audio
        assert np.isfinite(audio).all()
        assert np.abs(audio).max() > 0.01
    with pytest.raises(ValueError, match="sample_rate_hz=4000"):
        ToyboxConfig(sample_rate_hz=4000)
