"""Mixed clips and tasks: every clip trains what it has, exactly, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from avgen.config import ConfigError, build, to_plain
from avgen.data.stream import Share
from avgen.flow import LevelLaw
from avgen.models.dit import AVTransformer
from avgen.tasks import NAMED, in_training, lengths, possible
from avgen.train.config import LevelStage, TaskStage, TrainConfig
from avgen.train.loop import accumulate, train
from avgen.train.metrics import gradient_norms
from avgen.train.run import export, prepare
from avgen.train.step import draw, drawn_tasks, objective, step_losses
from avgen.train.trackers import METRICS, read_metrics
from avgen.types import stack_batches
from tests.models.factory import batch, model, scatter
from tests.models.factory import config as model_config
from tests.train.test_train import Clips, config, quiet, same


def three_clips():
    """One without sound, one without picture, one whose sound ends half way."""
    names = ("mute", "blind", "half")
    whole = [batch((name,), frames=4, audio_steps=8, level=1.0, seed=i) for i, name in enumerate(names)]
    short = replace(whole[2], audio=batch(("half",), frames=4, audio_steps=4, level=1.0, seed=2).audio)
    return [replace(whole[0], audio=None), replace(whole[1], video=None), short]


def gradients(net):
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("accumulate_steps", [1, 3])
def test_gradients_of_a_mixed_batch_are_those_of_its_clips_alone_summed_by_weight(tmp_path, accumulate_steps):
    """Through the training step: the normaliser is the number of supervised tokens of the whole batch."""
    settings = config(tmp_path, batch=3, accumulate=accumulate_steps, tasks={"t2av": 1, "i2av": 1, "v2a": 1})
    clips = three_clips()
    share = Share(3, accumulate_steps)
    run = prepare(settings)
    scatter(run.model)
    accumulate(run, [stack_batches([clips[i] for i in places]) for places in share.places()], share)
    together = gradients(run.model)

    alone = [draw(clip, settings, 0, range(i, i + 1)) for i, clip in enumerate(clips)]
    totals = {
        m: sum(float(s.weight.sum()) for part in alone if (s := getattr(part.clean, m)) is not None)
        for m in ("video", "audio")
    }
    assert totals["video"] > 0
    assert totals["audio"] > 0
    run.model.zero_grad()
    for part in alone:
        objective(step_losses(run.model, part, settings.flow), totals, settings.flow).backward()
    summed = gradients(run.model)
    zero = {name: torch.zeros_like(p) for name, p in run.model.named_parameters()}
    apart = max(float((together[name] - summed[name]).abs().max()) for name in summed)
    print(f"gradients of the mixed batch and of its clips alone differ by {apart:.1e}")
    assert same(zero | summed, zero | together, 1e-5)
    assert max(float(g.abs().max()) for g in together.values()) > 1e-3


def test_padding_and_absent_streams_may_hold_anything(tmp_path):
    """Noise, infinities: what is not there reaches neither loss nor gradient."""
    settings = config(tmp_path, batch=3, tasks={"t2av": 1})
    run = prepare(settings)
    scatter(run.model)
    sound = stack_batches(three_clips())
    spoilt = replace(
        sound,
        video=replace(sound.video, x=sound.video.x.masked_fill(~sound.video.mask()[..., None], 1e4)),
        audio=replace(sound.audio, x=sound.audio.x.masked_fill(~sound.audio.mask()[..., None], 1e4)),
    )
    found = []
    for clips in (sound, spoilt):
        run.model.zero_grad()
        accumulate(run, [clips], Share(3, 1))
        found.append(gradients(run.model))
    assert same(found[0], found[1], 1e-6)


def test_v2a_leaves_the_given_tokens_no_gradient():
    """Of the loss with respect to the model's answer for the picture, and in the weights that only it uses."""
    net, settings = model(), config("unused", tasks={"v2a": 1})
    drawn = draw(batch(level=1.0), settings, 0, range(2))
    out = net(drawn.noisy)

    class Answer(nn.Module):
        def forward(self, _):
            return out

    out.video.retain_grad()
    out.audio.retain_grad()
    found = step_losses(Answer(), drawn, settings.flow)
    assert torch.count_nonzero(found["video"].tokens) == 0
    objective(found, {"video": 0.0, "audio": 1.0}, settings.flow).backward()
    assert torch.count_nonzero(out.video.grad) == 0
    assert torch.count_nonzero(out.audio.grad) > 0
    head = net.towers["video"].head
    assert head.weight.grad is None or torch.count_nonzero(head.weight.grad) == 0
    assert float(gradient_norms(net)["video"]) > 0  # the tower still learns to be listened to


def test_v2a_alone_trains_through_the_loop(tmp_path):
    run = train(config(tmp_path, tasks={"v2a": 1}), Clips(), Clips(), quiet())
    assert run.step == 6
    head = run.model.towers["video"].head.weight
    torch.manual_seed(run.config.seed)
    assert torch.equal(head, AVTransformer.of(run.config.model).towers["video"].head.weight)


def test_t2a_trains_with_no_video_tower_at_all(tmp_path):
    """From configuration to export; the source may even offer pictures."""
    settings = config(tmp_path, model=replace(model_config(), video=None), tasks={"t2a": 1}, steps=30, batch=8)

    class Sounding(Clips):
        def batch(self, indices, at=None):
            return stack_batches([batch((f"clip {i}",), audio_steps=4 + i % 4, level=1.0, seed=i % 8) for i in indices])

    run = train(settings, Sounding(), Sounding(), quiet())
    assert list(run.model.towers) == ["audio"]
    exported = AVTransformer.from_pretrained(export(run))
    assert list(exported.towers) == ["audio"]
    lines = read_metrics(tmp_path / METRICS)
    held_out = [line["held_out/t2a/audio"] for line in lines if "held_out/t2a/audio" in line]
    print(f"T2A without a video tower: held-out loss {held_out[0]} -> {held_out[-1]}")
    assert held_out[-1] < held_out[0]
    assert not any("video" in name for line in lines for name in line)


def test_a_task_needs_what_it_generates_and_what_it_is_given():
    mixed = stack_batches(three_clips())
    expected = {
        "t2av": [True, True, True],
        "i2av": [True, False, True],
        "v2a": [False, False, True],
        "a2v": [False, False, True],
        "t2v": [True, False, True],
        "t2a": [False, True, True],
        "ai2v": [False, False, True],
        "i2v": [True, False, True],
    }
    for name, fits in expected.items():
        assert possible(NAMED[name], mixed).tolist() == fits, name


def test_tasks_are_drawn_among_those_that_the_clip_allows():
    settings = config("unused", tasks={"t2av": 1, "v2a": 2, "t2a": 1})
    mixed = stack_batches(three_clips())
    drawn = [[t.name for t in drawn_tasks(settings, mixed, step, range(3))] for step in range(300)]
    mute, blind, half = zip(*drawn, strict=True)
    assert set(mute) == {"t2av"}
    assert set(blind) == {"t2av", "t2a"}
    assert half.count("v2a") / 300 == pytest.approx(0.5, abs=0.08)
    assert blind.count("t2a") / 300 == pytest.approx(0.5, abs=0.08)


def test_a_clip_that_no_task_fits_is_counted_not_hidden(tmp_path):
    """Nothing but V2A, and a clip without sound, another without picture."""
    settings = config(tmp_path, batch=3, tasks={"v2a": 1}, steps=1, validation_clips=3)

    class Three:
        def batch(self, indices, at=None):
            clips = three_clips()
            return stack_batches([clips[i % 3] for i in indices])

    run = prepare(settings)
    accumulate(run, [Three().batch(range(3))], Share(3, 1))
    run.meter.step(1, {}, gradient_norms(run.model))
    assert run.meter.read(run.accelerator).line["idle_clips"] == pytest.approx(1 / 3, abs=1e-5)


def staged(**changes):
    stages = (TaskStage(2, {"t2a": 1}), TaskStage(4, {"t2v": 1, "t2a": 1}))
    return config("unused", tasks={"t2av": 1}, task_stages=stages, **changes)


def test_the_mix_of_tasks_changes_at_the_named_steps():
    settings = staged()
    clips = batch(("a",) * 40, level=1.0)
    names = [{t.name for t in drawn_tasks(settings, clips, step, range(40))} for step in range(6)]
    assert names == [{"t2a"}] * 2 + [{"t2a", "t2v"}] * 2 + [{"t2av"}] * 2
    assert settings.task_names == ["t2a", "t2av", "t2v"]


def test_stages_come_from_plain_data_and_wrong_ones_are_refused():
    plain = to_plain(staged())
    assert build(TrainConfig, plain).task_stages == staged().task_stages
    for stages, words in (
        ([{"until_step": 2, "tasks": {"t2a": 1}}, {"until_step": 2, "tasks": {"t2a": 1}}], "rise from stage to stage"),
        ([{"until_step": 0, "tasks": {"t2a": 1}}], "must be positive"),
        ([{"until_step": 6, "tasks": {"t2a": 1}}], "must lie below steps=6"),
        ([{"until_step": 2, "tasks": {"t2x": 1}}], "t2x"),
        ([{"until_step": 2, "tasks": {"t2a": 0}}], "at least one positive weight"),
        ([{"until": 2, "tasks": {"t2a": 1}}], "until_step"),
        ([{"until_step": 2}], "needs a value"),
    ):
        with pytest.raises(ConfigError, match=words):
            build(TrainConfig, plain | {"task_stages": stages})


def test_noise_levels_change_at_the_named_share_of_the_steps():
    """Those of the stream that the stage names; what it leaves out is as later."""
    plainly = config("unused", tasks={"t2av": 1}, steps=8)
    settings = replace(plainly, level_stages=(LevelStage(0.25, video=LevelLaw(shift=50.0)),))
    clips = batch(("a",) * 40, level=1.0)
    drawn = [draw(clips, settings, step, range(40)).noisy for step in range(4)]
    plain = [draw(clips, plainly, step, range(40)).noisy for step in range(4)]
    video = [float(seen.video.level.mean()) for seen in drawn]
    assert min(video[:2]) > 0.9 > max(video[2:])
    assert all(torch.equal(seen.audio.level, other.audio.level) for seen, other in zip(drawn, plain, strict=True))
    assert all(torch.equal(drawn[step].video.level, plain[step].video.level) for step in (2, 3))
    assert build(TrainConfig, to_plain(settings)).level_stages == settings.level_stages
    for stages, words in (
        ([{"until": 1.0, "video": {"shift": 2}}], "between 0 and 1"),
        ([{"until": 0.5}, {"until": 0.5}], "rise from stage to stage"),
        ([{"until": 0.5, "video": {"shift": 0}}], "must be positive"),
        ([{"video": {"shift": 2}}], "needs a value"),
    ):
        with pytest.raises(ConfigError, match=words):
            build(TrainConfig, to_plain(settings) | {"level_stages": stages})


def test_extend_is_given_a_head_whose_length_is_drawn_for_each_clip():
    """Of both streams, between a tenth and nine tenths of the clip; other tasks are drawn as they were without it."""
    settings = config("unused", tasks={"extend": 1})
    clips = batch(("a",) * 50, frames=16, audio_steps=40, level=1.0)
    length_s = float(lengths(clips)[0])
    drawn = drawn_tasks(settings, clips, 0, range(50))
    heads = torch.tensor([task.video.spans_s[0][1] for task in drawn], dtype=torch.float64) / length_s
    assert all(task.video == task.audio for task in drawn)
    assert len(set(heads.tolist())) == 50
    assert float(heads.min()) >= 0.1
    assert float(heads.max()) <= 0.9
    assert float(heads.mean()) == pytest.approx(0.5, abs=0.1)
    corrupted = draw(clips, settings, 0, range(50))
    for stream in (corrupted.noisy.video, corrupted.noisy.audio):
        ends = stream.time[..., 1] / length_s
        assert torch.equal(stream.level == 0, ends <= heads[:, None] + 1e-6)
        assert torch.equal(stream.weight == 0, stream.level == 0)
    mixed = config("unused", tasks={"t2av": 1, "v2a": 1})
    assert {t.name for t in drawn_tasks(mixed, clips, 0, range(50))} == {"t2av", "v2a"}


def test_extend_needs_picture_and_sound():
    mixed = stack_batches(three_clips())
    assert possible(in_training("extend", 0.1), mixed).tolist() == [False, False, True]
    drawn = drawn_tasks(config("unused", tasks={"extend": 9, "t2av": 1}), mixed, 0, range(3))
    assert [t.name for t in drawn[:2]] == ["t2av", "t2av"]


def test_a_mix_with_extend_trains_and_is_validated(tmp_path):
    run = train(config(tmp_path, tasks={"extend": 1, "t2av": 1}, validate_every=6), Clips(), Clips(), quiet())
    assert run.step == 6
    held_out = [line for line in read_metrics(tmp_path / METRICS) if "held_out/extend/video" in line]
    assert held_out


@pytest.mark.parametrize(("task", "clip"), [("t2a", 0), ("t2v", 1), ("v2a", 0), ("a2v", 1)])
def test_clips_that_no_task_of_the_mix_fits_train_nothing_and_end_nothing(tmp_path, task, clip):
    """Not even where a whole micro-batch has nothing that the task makes: another process may have."""
    settings = config(tmp_path, batch=2, tasks={task: 1})
    run = prepare(settings)
    scatter(run.model)
    useless = stack_batches([three_clips()[clip]] * 2)
    accumulate(run, [useless], Share(2, 1))
    assert all(torch.count_nonzero(p.grad) == 0 for p in run.model.parameters() if p.grad is not None)
    whole = draw(stack_batches(three_clips()), settings, 0, range(3))
    assert [drawn.levels.shape[1] for drawn in draw(useless, settings, 0, range(2)).noisy.streams.values()] == [
        stream.levels.shape[1] for stream in whole.noisy.streams.values()
    ]


@pytest.mark.parametrize(("tower", "task"), [("audio", "t2v"), ("video", "t2a")])
def test_a_model_of_one_tower_trains_on_clips_that_have_both_streams(tmp_path, tower, task):
    alone = replace(model_config(), **{tower: None})
    with pytest.raises(ValueError, match=f"model.{tower} is null: choose"):
        config(tmp_path, model=alone)
    settings = config(tmp_path, model=alone, tasks={task: 1}, steps=2, validate_every=2)
    run = train(settings, Clips(), Clips(), quiet())
    assert run.step == 2
    assert any("held_out" in name for line in read_metrics(settings.out / METRICS) for name in line)
