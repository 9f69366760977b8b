"""Sampling with hosted codecs: a causal first frame, tokens of several latents, sound at its own rate, folders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from avgen.models.codec_files import CodecFiles
from avgen.models.dit import AVTransformer
from avgen.models.opening import open_audio_codec, open_folder, open_video_codec
from avgen.sample.folder import open_pipeline
from avgen.sample.method import Method
from avgen.sample.pipeline import AVPipeline
from avgen.sample.solvers import SolverConfig
from tests.models import codec_factory as factory
from tests.models.factory import scatter
from tests.sample.factory import MODEL, clip, files

QUICK = Method(SolverConfig("euler", 2))


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codecs")
    video = open_video_codec(CodecFiles(str(factory.saved(factory.wan21(), folder / "video")), patch=2))
    audio = open_audio_codec(CodecFiles(str(factory.saved(factory.oobleck((2, 4, 8)), folder / "audio"))))
    spec = replace(MODEL, video=replace(MODEL.video, channels=16), audio=replace(MODEL.audio, channels=3))
    torch.manual_seed(0)
    model = scatter(AVTransformer.of(spec).eval(), 0)
    return AVPipeline(model, video, audio, height=32, width=16, fps=8.0, duration_s=0.5)


def test_a_saved_pipeline_opens_with_its_codecs_as_they_were(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = open_pipeline(tmp_path)
    assert again.video_codec.geometry == pipe.video_codec.geometry
    assert again.fingerprint == pipe.fingerprint
    ours, theirs = (p(prompt="a red ball", method=QUICK)[0].clip for p in (pipe, again))
    assert np.array_equal(ours.video, theirs.video)
    assert np.array_equal(ours.audio, theirs.audio)


def test_a_saved_codec_remembers_how_much_it_works_on_at_once(tmp_path):
    files = CodecFiles(str(factory.saved(factory.wan21(), tmp_path / "video")), patch=2, tile_px=64)
    open_video_codec(files).save_pretrained(tmp_path / "again")
    again = open_folder(tmp_path / "again")
    assert (again.patch, again.tile_px) == (2, 64)
    assert again.network.use_tiling


def test_a_pipeline_in_tiles_or_pieces_is_another(pipe, tmp_path):
    """What it makes differs, so finished work of the other is not taken for its own."""
    pipe.save_pretrained(tmp_path / "whole")
    tiled, pieces = (open_pipeline(tmp_path / "whole") for _ in range(2))
    assert tiled.fingerprint == pipe.fingerprint
    tiled.video_codec.tile(64)
    pieces.audio_codec.in_pieces(8)
    assert len({pipe.fingerprint, tiled.fingerprint, pieces.fingerprint}) == 3
    tiled.save_pretrained(tmp_path / "tiled")
    assert open_pipeline(tmp_path / "tiled").fingerprint == tiled.fingerprint


@pytest.mark.parametrize("duration_s", [0.125, 0.5, 0.7])
def test_clips_last_as_long_as_asked_for_at_the_codecs_rate(pipe, duration_s):
    made = pipe(prompt="x", method=QUICK, duration_s=duration_s)[0].clip
    assert made.video.shape == (round(duration_s * 8), 32, 16, 3)
    assert made.sample_rate_hz == 44100
    assert len(made.audio) == 2
    assert abs(made.audio_duration_s - duration_s) < 0.6 / 44100


def test_a_given_image_is_the_first_frame_through_the_codec(pipe, tmp_path):
    """The causal first step holds one frame, so an image fills it, and nothing later has a part in it."""
    given = files(tmp_path, height=32)
    made = pipe("i2av", "x", image=given["image"], method=QUICK)[0].clip
    codec = pipe.video_codec
    image = torch.from_numpy(clip(height=32).video[:1])[None]
    wanted = codec.decode(codec.encode(image).mean)[0, 0].numpy()
    assert len(made.video) == 4
    assert np.abs(made.video[0].astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("frames", [1, 5, 7])
def test_a_clip_comes_back_from_the_codecs_as_long_as_it_went_in(pipe, frames):
    went = clip(frames / 8, height=32, rate_hz=44100)
    went = replace(went, audio=np.repeat(went.audio, 2, axis=0))
    came = pipe.through_codecs(went)
    assert abs(came.video_duration_s - went.video_duration_s) < 1e-3
    assert abs(came.audio_duration_s - went.audio_duration_s) < 1e-3
    assert (came.fps, came.sample_rate_hz, came.start_s) == (went.fps, went.sample_rate_hz, went.start_s)
