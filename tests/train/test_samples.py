"""Samples while training: every task's clips, always the same ones, and a training that does not notice."""

from __future__ import annotations

import json
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from avgen.data.media import probe
from avgen.sample.solvers import SolverConfig
from avgen.train.config import SamplesConfig, TrackingConfig
from avgen.train.loop import train
from avgen.train.run import prepare
from avgen.train.samples import clip_of, made_of, sample
from tests.models.factory import scatter
from tests.train.factory import CODECS, quiet
from tests.train.test_train import Clips, config, same, weights

OFTEN = SamplesConfig(every=2, clips=2, solver=SolverConfig(steps=2))
TASKS = {"t2av": 2, "i2av": 1, "v2a": 1, "t2a": 1}


def test_a_training_does_not_notice_and_leaves_clips_and_a_sheet(tmp_path):
    without = train(config(tmp_path / "without", steps=5), Clips(), Clips(), quiet())
    settings = config(tmp_path / "with", steps=5, samples=OFTEN, tracking=TrackingConfig())
    run = train(settings, Clips(), Clips(), quiet(), codecs=CODECS)
    assert same(weights(without), weights(run))
    folders = sorted(path.name for path in (tmp_path / "with" / "samples").iterdir())
    assert folders == ["step_000002", "step_000004", "step_000005"]
    made = {path.name for path in (tmp_path / "with" / "samples" / "step_000004").iterdir()}
    assert made == {f"{task}_{place:02d}.mp4" for task in settings.tasks for place in (0, 1)} | {"sheet.png"}
    shown = EventAccumulator(str(tmp_path / "with" / "tensorboard"))
    shown.Reload()
    assert [image.step for image in shown.Images("samples")] == [2, 4, 5]


def test_files_hold_the_clips_of_their_task_and_say_what_made_them(tmp_path):
    run = prepare(config(tmp_path, samples=OFTEN, tasks=TASKS))
    sheet = sample(run, Clips(), CODECS)
    folder = tmp_path / "samples" / "step_000000"
    assert probe(folder / "t2a_00.m4a").video is None
    info = probe(folder / "v2a_01.mp4")
    assert (info.video.width, info.video.height, float(info.video.fps)) == (24, 16, 8.0)
    assert info.duration_s == pytest.approx(3 * 2 / 8, abs=0.05)  # clip 1 has three latent steps of two frames
    with av.open(str(folder / "v2a_01.mp4")) as file:
        said = json.loads(file.metadata["comment"])
    assert (said["task"], said["prompt"], said["step"], said["text"]) == ("v2a", "clip 1", 0, OFTEN.text)
    with Image.open(folder / "sheet.png") as written:
        assert np.array_equal(np.asarray(written), np.asarray(sheet))


def test_a_task_is_shown_on_the_clips_that_have_its_streams(tmp_path):
    settings = replace(OFTEN, clips=3)  # of which the third is silent
    run = prepare(config(tmp_path, samples=settings, tasks={"t2av": 1, "t2a": 1, "v2a": 1}))
    sample(run, Clips(), CODECS)
    made = {path.stem for path in (tmp_path / "samples" / "step_000000").iterdir()}
    assert made == {"t2av_00", "t2av_01", "t2av_02", "t2a_00", "t2a_01", "v2a_00", "v2a_01", "sheet"}


def test_what_is_given_is_shown_and_what_is_not_is_made_by_the_average(tmp_path):
    run = prepare(config(tmp_path, samples=OFTEN))
    scatter(run.model)
    run.average.weights = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    [(given, caption)] = made_of(run, Clips(), CODECS, [("v2a", 1)])
    truth = clip_of(Clips().batch([1]), {m: s.x for m, s in Clips().batch([1]).streams.items()}, 0, CODECS)
    assert caption == "clip 1"
    assert np.array_equal(given.video, truth.video)
    assert not np.allclose(given.audio, truth.audio, atol=1e-3)
    sheet = np.asarray(sample(run, Clips(), CODECS))
    scatter(run.model, seed=1)
    assert np.array_equal(np.asarray(sample(run, Clips(), CODECS)), sheet)
    run.average.weights = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    assert not np.array_equal(np.asarray(sample(run, Clips(), CODECS)), sheet)


def test_a_clip_is_the_same_in_any_company(tmp_path):
    """Whatever tasks and lengths share its batch: processes and settings may cut the work as they like."""
    run = prepare(config(tmp_path, samples=OFTEN, tasks=TASKS))
    scatter(run.model)
    wanted = [("t2av", 0), ("t2a", 1), ("v2a", 4), ("i2av", 1)]
    together = made_of(run, Clips(), CODECS, wanted)
    for (crowd, _), one in zip(together, wanted, strict=True):
        [(alone, _)] = made_of(run, Clips(), CODECS, [one])
        assert (crowd.video is None) == (alone.video is None) == (one[0] == "t2a")
        if alone.video is not None:
            assert np.abs(crowd.video.astype(int) - alone.video).max() <= 1
        assert np.allclose(crowd.audio, alone.audio, atol=1e-5)


@pytest.mark.parametrize("text", [1.0, 2.0])
def test_no_more_rows_are_sampled_together_than_a_micro_batch_holds(tmp_path, text):
    """Guidance takes two for a clip."""
    most, sheets = [], []
    for accumulate in (1, 4):
        settings = replace(OFTEN, clips=3, text=text)
        run = prepare(config(tmp_path / str(accumulate), samples=settings, tasks={"t2av": 1}, accumulate=accumulate))
        scatter(run.model)
        run.average.weights = {name: p.detach().clone() for name, p in run.model.named_parameters()}
        rows: list[int] = []
        run.model.register_forward_pre_hook(lambda _, given, rows=rows: rows.append(given[0].size))
        sheets.append(np.asarray(sample(run, Clips(), CODECS)).astype(int))
        most.append(max(rows))
    assert most == ([3, 1] if text == 1.0 else [4, 2])
    assert np.abs(sheets[0] - sheets[1]).max() <= 1


class Elsewhere(nn.Module):
    """A codec whose weights lie on another device than the model, where it cannot decode."""

    def __init__(self, codec):
        super().__init__()
        self.codec, self.geometry, self.fingerprint = codec, codec.geometry, codec.fingerprint
        self.register_buffer("weight", torch.ones(1, device="meta"))

    def to(self, device):
        self.weight = torch.ones(1, device=device)
        return self

    def decode(self, latents):
        assert self.weight.device == latents.device == torch.device("cpu")
        return self.codec.decode(latents)


def test_codecs_stand_beside_the_model_while_clips_are_made(tmp_path):
    run = prepare(config(tmp_path, samples=OFTEN))
    codecs = tuple(Elsewhere(codec) for codec in CODECS)
    sheet = sample(run, Clips(), codecs)
    assert {codec.weight.device.type for codec in codecs} == {"meta"}
    assert np.array_equal(np.asarray(sheet), np.asarray(sample(run, Clips(), CODECS)))


def test_held_out_clips_may_be_encoded_by_the_codecs_that_decode(tmp_path):
    """The toybox's are: where their codecs stood beside the model meanwhile, they could not read media on the host."""

    class Encoded(Clips):
        def batch(self, indices):
            assert {codec.weight.device.type for codec in codecs} == {"meta"}
            return super().batch(indices)

    codecs = tuple(Elsewhere(codec) for codec in CODECS)
    assert sample(prepare(config(tmp_path, samples=OFTEN)), Encoded(), codecs) is not None


def test_what_a_kill_left_over_is_cleared_away(tmp_path):
    run = prepare(config(tmp_path, samples=OFTEN))
    left = tmp_path / "samples" / ".step_000000.part" / "junk.mp4"
    left.parent.mkdir(parents=True)
    left.touch()
    for _ in range(2):  # the second time, over the first's
        sample(run, Clips(), CODECS)
        assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step_000000"]
        assert not (tmp_path / "samples" / "step_000000" / "junk.mp4").exists()


def test_samples_need_codecs(tmp_path):
    with pytest.raises(ValueError, match=r"samples.every=2 needs the codecs"):
        train(config(tmp_path, samples=OFTEN), Clips(), Clips(), quiet())
    with pytest.raises(ValueError, match="clips=0 must be at least 1"):
        replace(OFTEN, clips=0)
