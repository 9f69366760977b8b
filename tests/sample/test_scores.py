"""Figures of generated toybox clips: right clips reach the ceiling, wrong ones fall to the null."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avgen.data.toybox import Toybox, ToyboxConfig
from avgen.data.toybox.reader import shows
from avgen.data.toybox.world import render_facts
from avgen.sample.exam import Exam, alone, crew
from avgen.sample.guidance import Guidance, ModalityGuidance
from avgen.sample.judge import Counted, Judge, Read, difference, estimate, f1, share_of
from avgen.sample.method import Method
from avgen.sample.scores import answers, plain, scored, scores, table
from avgen.sample.solvers import SolverConfig
from tests.sample.factory import pipeline

WORLD = ToyboxConfig(scenes=("single",))


def judge_of(world, clips):
    items = [Toybox(world, "test")[i] for i in range(clips)]
    twins = [Read.of(render_facts(item.facts, world, 0, i).clip) for i, item in enumerate(items)]
    return Judge(items, [Read.of(item.clip) for item in items], twins)


@pytest.fixture(scope="module")
def judge():
    return judge_of(WORLD, 12)


@pytest.fixture(scope="module")
def varied():
    """Every type of scene."""
    return judge_of(ToyboxConfig(), 20)


def figures(judge, task, made):
    return scored(judge, task, made, seed=0)[task]


@pytest.mark.parametrize("task", ["i2av", "v2a", "a2v"])
def test_the_true_clips_reach_the_ceiling_and_stand_above_the_null(judge, task):
    for name, found in figures(judge, task, judge.real).items():
        assert found.of_ceiling == pytest.approx(1), name
        if found.null is not None:
            assert found.null.value < found.figure.value, name


def test_text_alone_is_judged_by_the_clip_itself(judge):
    """Other clips of equal caption are as good as the true ones; with each other's sound they are not."""
    made = [c for i in range(6) for c in (judge.real[i], judge.twins[i])]
    found = figures(judge, "t2av", made)
    assert found["sync"].figure.value > 0.9
    assert found["sync"].null.value < 0.8
    assert found["caption kind"].figure.value == 1
    assert found["caption count"].figure.value > 0.8


def test_sound_of_other_clips_falls_to_the_null(judge):
    wrong = [c.with_sound_of(t) for c, t in zip(judge.real, judge.twins, strict=True)]
    onset = figures(judge, "v2a", wrong)["onset"]
    assert onset.figure == onset.null


@pytest.mark.parametrize(("task", "sense", "given"), [("v2a", "heard", "visible"), ("a2v", "seen", "audible")])
def test_what_the_given_stream_does_not_tell_counts_apart(varied, task, sense, given):
    """Whoever is off screen may be heard at any time, whoever is silent may move at any; others may not."""

    def late(read, actors):
        events = (
            replace(e, instant_s=e.instant_s + 0.4) if (e.kind, e.colour) in actors else e
            for e in getattr(read.reading, sense)
        )
        return replace(read, reading=replace(read.reading, **{sense: tuple(events)}))

    def matched(made, name):
        return sum(top for top, _ in varied.figures(task, made)[name].made)

    hidden, everyone = (
        [{(a.kind, a.colour) for a in item.facts.actors if every or not getattr(a, given)} for item in varied.items]
        for every in (False, True)
    )
    moved, shaken = ([late(*pair) for pair in zip(varied.real, who, strict=True)] for who in (hidden, everyone))
    assert matched(moved, "onset") < matched(varied.real, "onset")
    assert matched(moved, "onset told") == matched(varied.real, "onset told")
    assert matched(shaken, "onset told") < matched(varied.real, "onset told")


def test_a_clip_with_another_sound_reads_as_if_it_had_been_read_whole(judge):
    one, other = judge.real[0], judge.twins[1]
    mixed = replace(one.clip, audio=other.clip.audio)
    assert one.with_sound_of(other).reading == Read.of(mixed).reading


def test_a_scene_is_right_with_its_own_actors_and_wrong_with_others(varied):
    for sense in ("seen", "heard"):
        own = [shows(read.reading, item.facts, sense) for read, item in zip(varied.real, varied.items, strict=True)]
        assert np.mean(own) >= 0.9
    silent = next(i for i, item in enumerate(varied.items) if item.facts.type == "silent")
    hidden = next(i for i, item in enumerate(varied.items) if item.facts.type == "offscreen")
    single = next(i for i, item in enumerate(varied.items) if item.facts.type == "single")
    assert not shows(
        varied.real[silent].with_sound_of(varied.real[single]).reading, varied.items[silent].facts, "heard"
    )
    assert not shows(varied.real[single].reading, varied.items[hidden].facts, "seen")
    turn = next(i for i, item in enumerate(varied.items) if item.facts.type == "turn")
    facts = varied.items[turn].facts
    assert not shows(varied.real[turn].reading, replace(facts, actors=facts.actors[::-1]), "heard")


@pytest.mark.parametrize("task", ["t2av", "v2a"])
def test_scenes_are_counted_apart_and_together_make_the_whole(varied, task):
    made = [varied.real[i // 2 if task == "t2av" else i] for i in range(len(varied.items))]
    found = scored(varied, task, made, seed=0)
    apart = [figures["right"].figure for name, figures in found.items() if name != task and figures]
    counted = len(made) // (2 if task == "t2av" else 1)
    assert sum(f.clips for f in apart) == counted
    whole = found[task]["right"].figure.value
    assert sum(f.clips * f.value for f in apart) / counted == pytest.approx(whole)


@pytest.mark.parametrize(("task", "times"), [("i2av", 0), ("v2a", 1), ("a2v", 1)])
def test_items_are_read_once_for_all_scenes_and_only_where_they_are_needed(varied, task, times, monkeypatch):
    reads = []
    of = Read.of
    monkeypatch.setattr(Read, "of", lambda clip: reads.append(clip) or of(clip))
    scored(replace(varied), task, varied.real, seed=0)  # a judge that has read nothing
    assert len(reads) == times * len(varied.items)


def test_an_estimate_is_a_ratio_of_sums_and_its_interval_narrows():
    few, many = estimate([(1, 2), (0, 2)] * 5), estimate([(1, 2), (0, 2)] * 80)
    assert few.value == many.value == 0.25
    assert few.low < few.value < few.high
    assert many.high - many.low < few.high - few.low
    assert math.isnan(estimate([(0, 0)]).value)


def test_a_difference_is_paired_by_clip():
    """A gain that every clip shares is certain, however much the clips differ."""
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 9, 40)
    before, after = ([(float(n + gain), 10.0) for n in hard] for gain in (0, 1))
    found = difference(after, before)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert estimate(after).low < estimate(before).high
    shuffled = difference([after[i] for i in rng.permutation(40)], before)
    assert shuffled.value == pytest.approx(0.1)
    assert shuffled.high - shuffled.low > 0.02
    assert difference(before, before).high == 0


def shares_right(rng, clips):
    return [(float(right), 1.0) for right in rng.random(clips) < 0.9]


def matched_of(rng, hard, rate):
    """As F1 is counted: the easier an item, the more of its events are found."""
    events = rng.integers(2, 7, len(hard))
    return [(2.0 * m, 2.0 * n) for m, n in zip(rng.binomial(events, rate * hard), events, strict=True)]


def scenes(rng, clips):
    """Three types, of which one is hard for whoever is asked."""
    return rng.choice([0.1, 0.9, 1.0], clips)


def one_figure(rng):
    return estimate(shares_right(rng, 20)), 0.9


def pooled_figure(rng):
    return estimate(matched_of(rng, np.ones(20), 0.8)), 0.8


def one_share(rng):
    hard = scenes(rng, 60)
    return share_of(matched_of(rng, hard, 0.8), matched_of(rng, hard, 1.0)), 0.8


@pytest.mark.parametrize("drawn", [one_figure, pooled_figure, one_share])
def test_intervals_of_few_clips_cover_the_truth(drawn):
    """Of 300 intervals that cover 95 % of the time fewer than 92 % cover once in a hundred tries."""
    rng = np.random.default_rng(0)
    found = [drawn(rng) for _ in range(300)]
    assert np.mean([e.low <= truth <= e.high for e, truth in found]) >= 0.92


def test_one_clip_has_no_interval_and_one_without_a_miss_is_not_certain():
    one = estimate([(1, 2)])
    assert one.value == 0.5
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    all_right, none_right = estimate([(2, 2)] * 20), estimate([(0, 2)] * 20)
    # a rate at which 20 clips are all right once in 40 tries
    assert (all_right.low, all_right.high) == (pytest.approx(0.025 ** (1 / 20)), 1)
    assert (none_right.low, none_right.high) == (0, pytest.approx(1 - all_right.low))
    assert estimate([(30, 1)] * 20).low == 30  # decibels are no share


def test_share_of_the_ceiling_and_gap_to_the_null_are_paired_by_item():
    rng = np.random.default_rng(0)
    hard = scenes(rng, 200)
    made, real, null = (matched_of(rng, hard, rate) for rate in (0.9, 1.0, 0.4))
    found = Counted(made, real, null).scored(0)
    assert found.share.value == found.of_ceiling == pytest.approx(found.figure.value / found.ceiling.value)
    assert found.above.value == pytest.approx(found.figure.value - found.null.value)
    apart = (found.figure.high - found.figure.low) / found.ceiling.value
    assert found.share.high - found.share.low < 0.8 * apart
    assert found.above.low < found.above.value < found.above.high
    same = Counted(made, made, made).scored(0)
    assert (same.share.value, same.share.low, same.share.high) == (1, 1, 1)
    assert (same.above.value, same.above.low, same.above.high) == (0, 0, 0)
    assert math.isnan(Counted(made, [(0.0, n) for _, n in real]).scored(0).share.value)


def test_every_task_is_scored_and_the_figures_are_plain_data():
    pipe = pipeline(height=32, width=32, duration_s=2.0)
    heard = []
    exam = Exam.of(pipe, WORLD, "test", 0, 3, Method(SolverConfig("euler", 1)))
    found = scores(exam, alone(pipe), batch=2, advance=heard.append)
    assert set(found) == {"t2av", "i2av", "v2a", "a2v"}
    assert sum(heard) == 3 * 6
    json.loads(json.dumps(plain(found), allow_nan=False))
    assert table(found).row_count == sum(map(len, found.values()))


@pytest.mark.slow
def test_a_crew_makes_and_reads_the_same_clips(tmp_path):
    pipe = pipeline(height=32, width=32, duration_s=2.0)
    pipe.save_pretrained(tmp_path)
    exam = Exam.of(pipe, WORLD, "test", 0, 4, Method(SolverConfig("euler", 1)))
    with crew(tmp_path, pipe, 2) as reader:
        theirs = answers(exam, "t2av", reader, 2)
    ours = answers(exam, "t2av", alone(pipe), 2)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.clip.audio, other.clip.audio, atol=1e-4)
        assert np.abs(one.clip.video.astype(int) - other.clip.video).max() <= 1


def test_a_crew_is_of_processors(tmp_path):
    """On an accelerator its processes would make the clips on the CPU, at another precision."""
    pipe = SimpleNamespace(model=SimpleNamespace(device=torch.device("cuda")))
    with pytest.raises(ValueError, match="processes=2: on cuda one process makes the clips"), crew(tmp_path, pipe, 2):
        pass


def test_two_clips_of_a_caption_are_drawn_together(varied):
    """Made twice of every caption, the same clips say no more than once: the interval stays as wide."""
    clips = [varied.real[i] if i % 3 else varied.real[i].with_sound_of(varied.twins[i]) for i in range(10)]
    found = figures(varied, "t2av", [clip for clip in clips for _ in range(2)])["sync"].figure
    once = estimate([f1(clip.reading.agreement()) for clip in clips])
    assert (found.value, found.low, found.high) == pytest.approx((once.value, once.low, once.high))
    assert found.clips == 10


def test_a_clip_without_another_of_its_caption_has_no_null(judge):
    made = [c for i in range(3) for c in (judge.real[i], judge.twins[i])]
    with_one_more = [*made, judge.real[3]]
    nulls = [figures(judge, "t2av", clips)["sync"].null for clips in (made, with_one_more)]
    assert nulls[0] == nulls[1]


def test_a_method_that_the_model_cannot_follow_is_refused_before_anything_is_made():
    guidance = Guidance(ModalityGuidance(perturbed=1.0, layers=(9,)), ModalityGuidance())
    with pytest.raises(ValueError, match=r"guidance\.video\.layers=\[9\]"):
        Exam.of(pipeline(), WORLD, "test", 0, 3, Method(guidance=guidance))


def test_items_have_the_channels_of_the_model_and_one_precision_settled_before_processes_part(monkeypatch):
    pipe = pipeline()
    pipe.audio_codec.geometry = replace(pipe.audio_codec.geometry, audio_channels=2)
    monkeypatch.setattr("avgen.rate.faster_precision", lambda device: "bf16")
    exam = Exam.of(pipe, WORLD, "test", 0, 3, Method(precision="auto"))
    assert exam.world.audio_channels == 2
    assert exam.item(0).clip.audio.shape[0] == 2
    assert exam.method.precision == "bf16"


def test_the_given_stream_counts_untouched_in_the_ceiling_too(judge):
    """A codec that loses every sound costs a2v, which is given the true one, nothing."""
    deaf = [replace(r, reading=replace(r.reading, heard=())) for r in judge.real]
    found = figures(replace(judge, real=deaf), "a2v", judge.real)["sync"]
    assert found.ceiling.value == pytest.approx(found.figure.value)
