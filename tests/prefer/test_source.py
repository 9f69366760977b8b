"""Pairs of files to training and back to clips."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import replace

import pytest
import torch

from avgen.config import ConfigError
from avgen.data.media import write_clip
from avgen.data.stream import Share
from avgen.models.identity import folder_mark
from avgen.prefer.pairs import Pair, Side, write_pairs
from avgen.prefer.source import Couples, Latents, PairSource, Winners, encode
from avgen.sample.folder import open_pipeline
from avgen.sample.inputs import Form, read_picture
from avgen.sample.method import Method
from avgen.sample.solvers import SolverConfig
from avgen.train.config import (
    CheatingConfig,
    LoraConfig,
    OptimizerConfig,
    PreferenceConfig,
    SamplesConfig,
    TrackingConfig,
    TrainConfig,
)
from avgen.train.data import READ, in_rounds, reading
from avgen.train.data_config import PairsData
from avgen.train.loop import train
from avgen.train.run import export
from tests.models.factory import scatter
from tests.sample.factory import MODEL, clip, pipeline
from tests.train.factory import quiet

METHOD = Method(SolverConfig("euler", 2))
FORM = Form(1.0, 8.0, 16, 16)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pipeline's folder, and pairs of real files beside it: of t2av and v2a, of either modality or both."""
    root = tmp_path_factory.mktemp("pairs")
    pipeline().save_pretrained(root / "pipeline")
    pairs = []
    for i in range(12):
        sides = []
        for name, fps in (("a", 8.0), ("b", 4.0)):  # at any rate: read at the form's
            file = root / f"{i}{name}.mp4"
            write_clip(file, clip(fps=fps), comment=file.name)  # no two files are the same
            sides.append(Side(file.name, 0, hashlib.sha256(file.read_bytes()).hexdigest()))
        task = "v2a" if i % 3 == 2 else "t2av"
        trains = (("video", "audio"), ("video",), ("audio",))[i % 3]
        pairs.append(Pair(f"p{i}", f"caption {i}", task, FORM, *sides, trains, "metrics"))
    write_pairs(root / "pairs.jsonl", pairs)
    return root, tuple(pairs)


@pytest.fixture(scope="module")
def latents(made):
    root, pairs = made
    pipe = pipeline()
    found = Latents.of(pipe, root / "latents")
    encode(pairs, root, pipe, found)
    return found


def test_winner_and_loser_lie_side_by_side_with_what_the_pair_says_nothing_about_unsupervised(made, latents):
    _, pairs = made
    batch = PairSource(pairs, latents).batch(range(6))
    assert batch.size == 6
    video, audio = (stream.weight.sum(1) > 0 for stream in (batch.video, batch.audio))
    assert video.tolist() == [True, True, True, True, False, False]
    assert audio.tolist() == [True, True, False, False, True, True]
    given = (batch.video.level == 0).all(1)
    assert given.tolist() == [False] * 4 + [True] * 2  # of v2a the picture is given
    assert not torch.equal(batch.video.x[0], batch.video.x[1])
    order = Couples(type("Order", (), {"clips": lambda self, step: [step, 7]})())
    assert order.clips(3) == [6, 7, 14, 15]
    whole = Winners(pairs, latents).batch([1])
    assert torch.equal(whole.video.x[0], PairSource(pairs, latents).batch([2]).video.x[0])
    assert whole.audio.weight.sum() > 0


def test_clips_are_encoded_once_and_refused_when_they_have_changed(made, latents):
    root, pairs = made
    files = sorted(latents.folder.iterdir())
    before = [file.stat().st_mtime_ns for file in files]
    assert not [file for file in files if file.name.startswith(".")]
    encode(pairs, root, pipeline(), latents, first=0.5)
    assert [file.stat().st_mtime_ns for file in sorted(latents.folder.iterdir())] == before
    left, young = (latents.folder / f".{name}.safetensors.0a.part" for name in ("left", "young"))
    for draft in (left, young):
        draft.write_bytes(b"cut short")
    os.utime(left, (time.time() - 7200,) * 2)
    encode(pairs, root, pipeline(), latents)
    assert not left.exists()
    assert young.exists()  # another process may be writing it
    young.unlink()
    other = pairs[0].winner
    changed = replace(pairs[0], winner=replace(other, sha256="0" * 64))
    with pytest.raises(ValueError, match="is not the clip that was compared"):
        encode([changed], root, pipeline(), latents)
    gone = replace(pairs[0], winner=replace(other, sha256="1" * 64, file="gone.mp4"))
    with pytest.raises(ValueError, match=r"gone\.mp4 is not there, but stands in a pair"):
        encode([gone], root, pipeline(), latents)


def settings(root, **changes):
    start = root / "pipeline" / "model"
    quick = SolverConfig("euler", 2)
    defaults = TrainConfig(
        model=MODEL,
        steps=3,
        batch=4,
        out=root / "run",
        start=start,
        lora=LoraConfig(rank=2),
        data=PairsData(root / "pairs.jsonl", root / "pipeline", held_out_share=0.4),
        preference=PreferenceConfig(cheating=CheatingConfig(every=2, prompts=1)),
        optimizer=OptimizerConfig(kind="adamw", warmup_steps=1, lr=1e-2),
        precision="fp32",
        tracking=TrackingConfig(to=()),
        samples=SamplesConfig(solver=quick),
        validation_clips=2,
        log_every=1,
    )
    return replace(defaults, **changes)


def test_a_run_on_pairs_of_files_ends_in_a_model_that_samples(made):
    root, pairs = made
    config = settings(root)
    read = reading(config)
    held = {pair.prompt for pair in read.held_out.pairs}
    assert held
    assert held | {pair.prompt for pair in read.source.pairs} == {pair.prompt for pair in pairs}
    assert not held & {pair.prompt for pair in read.source.pairs}
    run = train(config, read.source, read.held_out, quiet(), read.order, read.codecs)
    export(run)
    lines = (root / "run" / "metrics.jsonl").read_text()
    assert "held_out/t2av/audio" in lines
    assert "cheating/alarms" in lines
    before, after = open_pipeline(root / "pipeline"), open_pipeline(root / "run")
    assert after.fingerprint != before.fingerprint
    [one], [other] = (pipe("t2av", "a", method=METHOD) for pipe in (before, after))
    assert (one.clip.video != other.clip.video).any()


def test_too_few_pairs_to_judge_by_are_refused(made):
    root, _ = made
    with pytest.raises(ConfigError, match="lower validation_clips, or mine more"):
        reading(settings(root, validation_clips=11))
    watched = PreferenceConfig(cheating=CheatingConfig(every=2, prompts=11))
    with pytest.raises(ConfigError, match=r"preference\.cheating\.prompts: 11 clips are asked for"):
        reading(settings(root, preference=watched))
    reading(settings(root, preference=PreferenceConfig(cheating=CheatingConfig(every=0, prompts=11))))


def test_no_caption_and_no_clip_is_both_read_and_judged_by(made):
    """Whatever ids they stand under."""
    root, pairs = made
    twice = root / "twice.jsonl"
    again = [replace(pair, prompt=f"again {pair.prompt}") for pair in pairs]
    beside = [replace(pair, text=f"also {pair.text}", prompt=f"also {pair.prompt}") for pair in pairs]
    write_pairs(twice, [*pairs, *again, *beside])
    config = settings(root, out=root / "twice_run")
    read = reading(replace(config, data=replace(config.data, pairs=twice)))
    seen, judged = read.source.pairs, read.judges.pairs
    assert {pair.text for pair in seen} & {pair.text for pair in judged} == set()
    files = [{side.sha256 for pair in part for side in (pair.winner, pair.loser)} for part in (seen, judged)]
    assert files[0] & files[1] == set()
    assert seen
    assert judged


def test_a_run_goes_on_with_the_pairs_and_weights_it_began_with(made, tmp_path):
    root, pairs = made
    mined = root / "again.jsonl"
    write_pairs(mined, pairs)
    config = settings(root, out=tmp_path / "run", steps=1, preference=PreferenceConfig(cheating=CheatingConfig(0)))
    config = replace(config, data=replace(config.data, pairs=mined))
    read = reading(config)
    train(config, read.source, read.held_out, quiet(), read.order, read.codecs)
    reading(config)
    with pytest.raises(
        ConfigError, match=r"data\.held_out_share: .*began with held_out_share=0.4 of captions, now it is .*=0.3"
    ):
        reading(replace(config, data=replace(config.data, held_out_share=0.3)))
    write_pairs(mined, pairs[::-1])
    with pytest.raises(ConfigError, match=r"data\.pairs.*has read pairs, start weights and codecs .* another out="):
        reading(config)
    write_pairs(mined, pairs)
    start = tmp_path / "start"
    other = pipeline().model
    with torch.no_grad():
        next(other.parameters()).add_(1)
    other.save_pretrained(start)
    with pytest.raises(ConfigError, match="start weights"):
        reading(replace(config, start=start))


def test_a_run_goes_on_with_the_codecs_it_began_with(made, tmp_path):
    root, _ = made
    other = pipeline()
    scatter(other.video_codec, 7)
    other.save_pretrained(tmp_path / "other")
    config = settings(root, out=tmp_path / "run", steps=1, preference=PreferenceConfig(cheating=CheatingConfig(0)))
    read = reading(config)
    train(config, read.source, read.held_out, quiet(), read.order, read.codecs)
    latents = root / "latents"
    encoded = set(latents.iterdir())
    otherwise = replace(config, data=replace(config.data, pipeline=tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"has read pairs, start weights and codecs"):
        reading(otherwise)
    assert set(latents.iterdir()) == encoded
    # as earlier versions wrote it: nobody can tell
    record = json.loads((config.out / READ).read_text())
    (config.out / READ).write_text(json.dumps({**record, "read": record["read"][:2]}))
    reading(config)


@pytest.mark.parametrize("start", ["gone", "pipeline"])
def test_start_weights_that_are_not_there_are_missed_before_anything_is_encoded(made, tmp_path, start):
    root, _ = made
    config = settings(root, out=tmp_path / "run", start=root / start)
    data = replace(config.data, latents=tmp_path / "latents")
    with pytest.raises(ConfigError, match=r"start: .* holds no model"):
        reading(replace(config, data=data))
    assert not list(tmp_path.iterdir())


def test_the_mark_of_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        folder_mark(tmp_path / "gone")


def test_held_out_clips_are_of_many_prompts_first(made):
    _, (one, other, *_) = made
    found = in_rounds([one, one, other, one, other], lambda pair: pair.prompt)
    assert [pair.prompt for pair in found] == ["p0", "p1", "p0", "p1", "p0"]


def test_a_pair_is_not_parted_by_ranks(made, monkeypatch):
    """Sixteen clips on sixteen processes would be one clip each."""
    root, _ = made
    config = settings(root, batch=4, steps=1, out=root / "parted")
    read = reading(config)
    monkeypatch.setattr("avgen.train.loop.Share", lambda *_: Share(4, 1, 0, 4))
    with pytest.raises(ConfigError, match=r"4 clips on 4 processes .* would part winners from losers"):
        train(config, read.source, read.held_out, quiet(), read.order, read.codecs)


def test_both_clips_of_an_image_are_given_the_image_and_nothing_of_how_either_moves(made, tmp_path):
    """The toy's codec puts two frames into its first step."""
    root, pairs = made
    pipe, found = pipeline(), Latents.of(pipeline(), tmp_path)
    pair = replace(pairs[0], task="i2av")
    encode([pair], root, pipe, found)
    batch = PairSource((pair,), found).batch([0, 1])
    first = batch.video.level[0] == 0
    assert torch.equal(batch.video.x[0, first], batch.video.x[1, first])
    frames = read_picture(root / pair.winner.file, FORM, [])[0][:1].repeat(2, axis=0)
    image = pipe.video_codec.geometry.stream(pipe.encoded(pipe.video_codec, frames), FORM.fps).x[0]
    torch.testing.assert_close(batch.video.x[0, first], image)
    assert not torch.equal(batch.video.x[0], batch.video.x[1])
