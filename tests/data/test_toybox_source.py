"""Toybox clips as training data: several shapes in one run, clips that lack something, and learning from all of it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avgen.config import ConfigError, build, to_plain
from avgen.data.stream import At, Share
from avgen.data.toybox import Toybox, ToyboxConfig
from avgen.data.toybox.captions import parse
from avgen.data.toybox_source import Gaps, ToyboxSource, mixture
from avgen.models import fit_codecs
from avgen.models.embedded_audio import SpectralAudioCodec
from avgen.models.embedded_video import PatchVideoCodec
from avgen.models.text import captions_of
from avgen.sample.folder import parts_for
from avgen.tasks import I2AV, T2AV, V2A, assign
from avgen.train.compare import held_out_of
from avgen.train.data import fitted, worlds_of
from avgen.train.data_config import SceneStage, ToyboxData, ToyboxShape
from avgen.train.loop import accumulate, optimise, train
from avgen.train.run import prepare, save
from avgen.train.validate import validate
from avgen.types import stack_batches
from tests.models.factory import scatter
from tests.train.factory import config as tiny
from tests.train.factory import quiet

WORLD = ToyboxConfig(16, 16, scenes=("single",), sample_rate_hz=8000)
SHAPES = (
    ToyboxShape(height=16, width=16, fps=8.0, duration_s=1.0),
    ToyboxShape(height=16, width=24, fps=8.0, duration_s=1.0),
    ToyboxShape(height=16, width=16, fps=12.0, duration_s=1.0),
    ToyboxShape(height=16, width=16, fps=8.0, duration_s=2.0),
)


@pytest.fixture(scope="module")
def codecs() -> tuple[PatchVideoCodec, SpectralAudioCodec]:
    """Principal components only: nothing is decoded here."""
    clips = [Toybox(WORLD)[i].clip for i in range(6)]
    video, audio = PatchVideoCodec(6), SpectralAudioCodec.at_rate(8000, 5)
    video.components.fit(video.patches(torch.stack([torch.from_numpy(c.video) for c in clips])).flatten(0, 3))
    audio.components.fit(audio.features(torch.stack([torch.from_numpy(c.audio) for c in clips])).flatten(0, 1))
    return video.eval().requires_grad_(False), audio.eval().requires_grad_(False)


def sources(codecs, gaps=Gaps(), shapes=SHAPES, split="train"):  # noqa: B008  # frozen
    data = ToyboxData(world=WORLD, shapes=shapes)
    return [ToyboxSource(Toybox(world, split), *codecs, gaps) for world in data.worlds]


@pytest.mark.parametrize("scenes", [("single", "silent"), ("single", "turn", "pair", "offscreen", "silent")])
def test_captions_are_as_long_as_a_plan_takes_them_for(codecs, scenes):
    data = ToyboxData(world=replace(WORLD, scenes=scenes))
    text = ToyboxSource(Toybox(data.world), *codecs).batch(range(16)).video_text
    assert text.x.shape[1] == data.caption_tokens


def settings(folder, **changes):
    tasks = {"t2av": 2, "v2a": 1, "a2v": 1}
    return tiny(folder, **{"steps": 10, "batch": 2, "tasks": tasks} | changes)


def test_every_step_reads_one_shape_within_the_budget_and_all_shapes_come(codecs):
    worlds = sources(codecs)
    source, order = mixture(worlds, batch=2, step_tokens=200)
    read: Counter[ToyboxSource] = Counter()
    for step in range(60):
        clips = order.clips(step)
        (world,) = {source.item(index)[0] for index in clips}
        batch = source.batch(clips)
        assert batch.video.valid is None
        assert batch.audio.valid is None
        tokens = batch.video.x.shape[1] + batch.audio.x.shape[1]
        assert tokens == world.tokens
        assert batch.size == 200 // (2 * tokens) * 2
        read[world] += batch.size
    assert set(read) == set(worlds)
    expected = sum(read.values()) / len(worlds)
    assert all(abs(count - expected) <= 2 * 200 / world.tokens for world, count in read.items())


def test_mixed_rates_stand_in_one_batch_each_on_its_own_clock(codecs):
    worlds = sources(codecs)
    source, order = mixture(worlds, batch=8, mixed_fps=True)
    assert [len(members) for members in source.buckets] == [2, 1, 1]
    step = next(s for s in range(20) if order.turn(s)[0] == 0)
    indices = order.clips(step)
    batch = source.batch(indices)
    found = [source.item(index) for index in indices]
    assert {world.world.config.fps for world, _ in found} == {8.0, 12.0}
    for row, (world, number) in enumerate(found):
        alone = world.batch([number])
        tokens = alone.video.x.shape[1]
        assert batch.video.mask()[row].sum() == tokens
        assert torch.allclose(batch.video.x[row, :tokens], alone.video.x[0], atol=1e-5)
        assert torch.equal(batch.video.time[row, :tokens], alone.video.time[0])
        assert torch.allclose(batch.audio.x[row], alone.audio.x[0], atol=1e-5)
        length = int(alone.video_text.valid.sum())
        assert torch.equal(batch.video_text.x[row, :length], alone.video_text.x[0, :length])


def test_who_is_given_the_first_frame_is_given_what_an_image_file_holds(codecs):
    """Nothing of how it moves: the codec's first step is of two frames, and an image is one."""
    worlds = sources(codecs)[:2]  # of 4 and of 6 tokens a step
    batch = stack_batches([world.batch(range(4)) for world in worlds])
    given = assign(batch, [I2AV, I2AV, T2AV, V2A] * 2).video
    moved = 0
    for row in range(8):
        world, number = worlds[row // 4], row % 4
        frames = torch.from_numpy(world.world[number].clip.video)[None]
        image = world.video.encode(frames[:, :1].expand_as(frames)).mean
        image = world.video.geometry.stream(image, world.world.config.fps).x[0]
        cells = 4 + 2 * (row // 4)
        found, whole = given.x[row], batch.video.x[row]
        if row % 4 < 2:
            torch.testing.assert_close(found[:cells], image[:cells])
            moved += not torch.allclose(found[:cells], whole[:cells])
        else:
            assert torch.equal(found[:cells], whole[:cells])
        assert torch.equal(found[cells:], whole[cells:])
    assert moved, "no clip moves in its first step: this shows nothing"


def test_gaps_are_a_clips_own_and_as_frequent_as_asked():
    gaps = Gaps(0.2, 0.1, 0.3, seed=4)
    found = [gaps.of(i) for i in range(4000)]
    shares = {lack: count / len(found) for lack, count in Counter(found).items()}
    expected = {"sound": 0.2, "picture": 0.1, "tail": 0.3, "nothing": 0.4}
    assert shares == pytest.approx(expected, abs=0.03)  # four standard deviations
    assert found != [Gaps(0.2, 0.1, 0.3, seed=5).of(i) for i in range(4000)]
    assert all(Gaps().of(i) == "nothing" for i in range(100))


def test_clips_lack_what_they_are_said_to_lack(codecs):
    (plain,), (gapped,) = (sources(codecs, g, SHAPES[:1]) for g in (Gaps(), Gaps(0.3, 0.2, 0.3)))
    whole, holed = plain.batch(range(24)), gapped.batch(range(24))
    lacks = [gapped.gaps.of(i) for i in range(24)]
    assert set(lacks) == {"nothing", "sound", "picture", "tail"}
    for row, lack in enumerate(lacks):
        video, audio = holed.video.mask()[row], holed.audio.mask()[row]
        assert video.all() if lack != "picture" else not video.any()
        ends = holed.audio.time[row, :, 1][audio]
        assert len(ends) == {"sound": 0, "tail": 10}.get(lack, 20)
        if lack == "tail":
            assert float(ends.max()) == pytest.approx(0.5)
        world = plain.world[row]
        said = {"sound": world.video_caption, "picture": world.audio_caption}.get(lack, world.caption)
        letters = holed.video_text.x[row][holed.video_text.valid[row]][1:]
        assert bytes(letters.tolist()).decode() == said
    for stream, full in ((holed.video, whole.video), (holed.audio, whole.audio)):
        assert torch.equal(stream.weight > 0, stream.mask())
        assert not stream.x[~stream.mask()].any()
        complete = [i for i, lack in enumerate(lacks) if lack == "nothing"]
        assert torch.allclose(stream.x[complete], full.x[complete], atol=1e-5)


def test_clips_with_gaps_train_what_they_have(codecs, tmp_path):
    """The gradients of a mute, a blind, a half-heard and a whole clip together are those of each alone, added up."""
    (source,) = sources(codecs, Gaps(0.25, 0.25, 0.25), SHAPES[:1])
    first = {source.gaps.of(i): i for i in reversed(range(60))}
    clips = [first[lack] for lack in ("sound", "picture", "tail", "nothing")]
    gradients = []
    for micro_batches in (1, 4):
        config = settings(tmp_path, batch=4, accumulate=micro_batches, tasks={"t2av": 1})
        run, share = prepare(config), Share(4, micro_batches)
        scatter(run.model)
        found = accumulate(run, [source.batch([clips[i] for i in places]) for places in share.places()], share)
        assert all(torch.isfinite(value) for value in found.values())
        gradients.append({name: p.grad for name, p in run.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        assert (value - gradients[1][name]).abs().max() <= 1e-5 * (1 + value.abs().max())


def test_a_batch_in_which_nothing_can_be_heard_still_trains_the_picture(codecs, tmp_path):
    (source,) = sources(codecs, Gaps(mute=1.0), SHAPES[:1])
    run = prepare(settings(tmp_path, tasks={"t2av": 1}))
    scatter(run.model)
    found = accumulate(run, [source.batch([0, 1])], Share(2, 1))
    assert found["video"] > 0
    assert "audio" not in found  # nothing of it was supervised
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in run.model.parameters())


def mixed_run(codecs, folder, step_tokens=150, **changes):
    worlds = sources(codecs, Gaps(0.1, 0.1, 0.2))
    config = settings(folder, **changes)
    source, order = mixture(worlds, config.batch, step_tokens, True)
    return config, source, order


def test_a_mixture_cut_short_goes_on_exactly(codecs, tmp_path):
    config, source, order = mixed_run(codecs, tmp_path / "whole")
    whole = train(config, source, source, quiet(), order)
    cut = replace(config, out=tmp_path / "cut")
    again, share = prepare(cut), Share(config.batch, 1)
    for step in range(6):
        clips = order.clips(step)
        optimise(again, [source.batch([clips[i] for i in places]) for places in share.places(len(clips))], share)
    save(again)
    again.writer.wait()
    resumed = train(cut, source, source, quiet(), order)
    assert resumed.step == whole.step == 10
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    whole_log, cut_log = (losses_of(tmp_path / name) for name in ("whole", "cut"))
    assert list(cut_log) == [7, 8, 9, 10]
    assert cut_log == {step: whole_log[step] for step in cut_log}


def losses_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "seconds" in line]
    return {line["step"]: {k: v for k, v in line.items() if k.startswith("loss/")} for line in steps}


@pytest.mark.slow
def test_a_mixture_teaches_every_shape(codecs, tmp_path):
    config, source, order = mixed_run(codecs, tmp_path, step_tokens=400, steps=120, batch=4)
    before = prepare(config)
    held_out = sources(codecs, split="test")
    first = [validate(before.model, before.average, world, config, before.accelerator) for world in held_out]
    run = train(config, source, held_out[0], quiet(), order)
    last = [validate(run.model, run.average, world, config, run.accelerator) for world in held_out]
    for early, late in zip(first, last, strict=True):
        for name in ("held_out/t2av/video", "held_out/t2av/audio"):
            assert late[name] < 0.96 * early[name]


def test_late_sounds_are_the_worlds_a_while_later(codecs):
    (on_time,), (late,) = sources(codecs, shapes=SHAPES[:1]), sources(codecs, Gaps(late=0.5, seed=3), SHAPES[:1])
    delays = [late.gaps.delay_s(i) for i in range(40)]
    assert 12 <= sum(delay > 0 for delay in delays) <= 28
    assert all(delay == 0 or 0.2 <= delay <= 0.6 for delay in delays)
    for index, delay in enumerate(delays[:12]):
        ours, theirs = late.batch([index]), on_time.batch([index])
        assert torch.equal(ours.video.x, theirs.video.x)
        assert torch.equal(ours.video_text.x, theirs.video_text.x)
        moved = (ours.audio.x - theirs.audio.x)[0].abs().amax(1) > 1e-3
        assert moved.any() == (delay > 0)
        if delay > 0:
            wave = on_time.world[index].clip.audio
            shifted = np.concatenate([np.zeros_like(wave), wave], 1)
            start = wave.shape[1] - round(delay * late.world.config.sample_rate_hz)
            expected = late.audio.encode(torch.from_numpy(shifted[None, :, start : start + wave.shape[1]])).mean
            assert torch.allclose(ours.audio.x, late.audio.geometry.stream(expected).x, atol=1e-5)


def test_what_cannot_be_mixed_is_refused(codecs):
    with pytest.raises(ValueError, match="clips of 20x16 pixels: both must be multiples of 8"):
        sources(codecs, shapes=(replace(SHAPES[0], height=20),))
    with pytest.raises(ValueError, match=r"lists a shape twice"):
        mixture(sources(codecs, shapes=SHAPES[:1] * 2), 2)
    with pytest.raises(ValueError, match=r"mute_share=0.7, blind_share=0.4.* at most 1"):
        ToyboxData(mute_share=0.7, blind_share=0.4)
    shape = {"height": 32, "width": 32, "fps": 8, "duration_s": 2}
    assert build(ToyboxData, {"shapes": [shape]}).worlds == (ToyboxConfig(),)


def test_scenes_change_at_the_named_share_of_the_steps(codecs):
    """In training alone: clips that are asked for outside of any step, as held-out ones are, are of all scenes."""
    data = ToyboxData(
        world=replace(WORLD, duration_s=2.0, scenes=("single", "turn")), scene_stages=(SceneStage(0.5, (0.0, 1.0)),)
    )
    (source,) = worlds_of(settings("unused", data=data, steps=4), data, *codecs)
    indices = range(40)

    def turns(at: At | None) -> float:
        captions = captions_of(source.batch(indices, at).video_text)
        return sum(parse(caption).type == "turn" for caption in captions) / len(captions)

    shares = [turns(At(step, indices)) for step in range(4)]
    assert shares[:2] == [1.0, 1.0]
    assert 0.2 < shares[2] == shares[3] == turns(None) < 0.8
    assert build(ToyboxData, to_plain(data)) == data
    for stages, words in (
        ([{"until": 1.0, "weights": [0, 1]}], "between 0 and 1"),
        ([{"until": 0.5, "weights": [0, 1]}, {"until": 0.5, "weights": [1, 0]}], "rise from stage to stage"),
        ([{"until": 0.5, "weights": [0, 1, 1]}], "has 3 numbers for 2 scenes"),
        ([{"until": 0.5, "weights": [0, 0]}], "not all 0"),
        ([{"until": 0.5}], "needs a value"),
    ):
        with pytest.raises(ConfigError, match=words):
            build(ToyboxData, to_plain(data) | {"scene_stages": stages})


def test_a_run_keeps_the_codecs_that_it_was_begun_with(codecs, tmp_path, monkeypatch):
    """A later version fits others to the same clips: their latents are not those the model has learned."""
    fits = []
    monkeypatch.setattr(fit_codecs, "fit_embedded", lambda *about: fits.append(about) or codecs)
    data = ToyboxData(world=WORLD, codecs=tmp_path / "codecs", fit_clips=8)
    begun = settings(tmp_path / "run", data=data)
    fitted(data, begun.out, begins=begun)
    monkeypatch.setattr(fit_codecs, "FIT_VERSION", fit_codecs.FIT_VERSION + 1)
    fitted(data, begun.out)  # to sample
    fitted(data, begun.out, begins=begun)  # to go on
    assert len(fits) == 1
    (begun.out / "checkpoints" / "step_00000001").mkdir(parents=True)
    (begun.out / "checkpoints" / "step_00000001" / "about.json").touch()
    other = replace(data, fit_clips=9)
    with pytest.raises(ConfigError, match="has read latents of the codecs"):
        fitted(other, begun.out, begins=replace(begun, data=other))
    shutil.rmtree(data.codecs)
    with pytest.raises(ConfigError, match=r"learned latents of .* which is not there"):
        fitted(data, begun.out)
    fitted(data, tmp_path / "new", begins=replace(begun, out=tmp_path / "new"))
    assert len(fits) == 2


def test_codecs_are_never_fitted_to_a_model_that_has_learned(codecs, tmp_path, monkeypatch):
    """Found from every working directory and beside a run that was moved, else asked for."""
    fits = []
    monkeypatch.setattr(fit_codecs, "fit_embedded", lambda *about: fits.append(about) or codecs)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    data = ToyboxData(world=WORLD, codecs=Path("runs/codecs"), fit_clips=8)
    begun = settings(Path("runs/run"), data=data)
    fitted(data, begun.out, begins=begun)

    def found(run):
        return parts_for(begun, run)[0].fingerprint

    assert found(begun.out) == codecs[0].fingerprint
    monkeypatch.chdir(tmp_path)
    assert found(home / "runs/run") == codecs[0].fingerprint
    (home / "runs").rename(tmp_path / "moved")
    assert found(tmp_path / "moved/run") == codecs[0].fingerprint
    judged_by = held_out_of(tmp_path / "moved/run", begun)  # of runs that are compared
    assert judged_by.video.fingerprint == codecs[0].fingerprint
    shutil.copytree(tmp_path / "moved/run", tmp_path / "alone")
    with pytest.raises(
        ConfigError, match=r"data\.codecs: the model in .*alone learned latents of .*put that folder back"
    ):
        found(tmp_path / "alone")
    assert len(fits) == 1
