"""Training from a store: what a toybox run in memory learns, exact resume, and refusals that say what to change."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from avgen.compose import load
from avgen.config import ConfigError
from avgen.data.store_source import StoreSource
from avgen.data.toybox import Toybox, ToyboxConfig
from avgen.data.toybox_source import ToyboxSource
from avgen.models.embedded_audio import SpectralAudioCodec
from avgen.models.embedded_video import PatchVideoCodec
from avgen.train.compare import CompareConfig, compared
from avgen.train.config import OptimizerConfig, TrainConfig
from avgen.train.data import reading
from avgen.train.data_config import MixedStore, StoreData, ToyboxData
from avgen.train.loop import train
from avgen.train.run import export
from avgen.train.trackers import METRICS, read_metrics
from tests.data.store_factory import BLIND, BOTH, MUTE, WIDE, header, row, toybox_store, write_store
from tests.train.factory import config as tiny
from tests.train.factory import quiet

WORLD = ToyboxConfig(16, 16, duration_s=1.0, scenes=("single",), sample_rate_hz=8000)


@pytest.fixture(scope="module")
def toys() -> ToyboxSource:
    clips = [Toybox(WORLD)[i].clip for i in range(6)]
    video, audio = PatchVideoCodec(6), SpectralAudioCodec.at_rate(8000, 5)
    video.components.fit(video.patches(torch.stack([torch.from_numpy(c.video) for c in clips])).flatten(0, 3))
    audio.components.fit(audio.features(torch.stack([torch.from_numpy(c.audio) for c in clips])).flatten(0, 1))
    return ToyboxSource(Toybox(WORLD), video.eval().requires_grad_(False), audio.eval().requires_grad_(False))


def losses(folder):
    return [line["loss/video"] + line["loss/audio"] for line in read_metrics(folder / METRICS) if "loss/video" in line]


def test_a_run_sees_in_a_store_what_it_sees_in_memory(toys, tmp_path):
    store = toybox_store(tmp_path / "latents", toys, 24)
    found = {}
    for name, source in (("memory", toys), ("store", StoreSource((store,)))):
        config = tiny(tmp_path / name)
        train(config, source, source, quiet())
        found[name] = losses(tmp_path / name)
    assert len(found["store"]) == 6
    assert found["store"] == pytest.approx(found["memory"], rel=2e-3)  # latents are kept as halves
    assert found["store"] != found["memory"]


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    head = header((BOTH, WIDE, MUTE, BLIND))
    rows = [row(head, i, bucket=i % 4) for i in range(48)]
    return write_store(tmp_path_factory.mktemp("latents") / "store", head, rows)


def settings(folder, store, **changes):
    data = StoreData(store.path, workers=0, held_out_share=0.25)
    steady = OptimizerConfig(warmup_steps=2, schedule="constant")  # rates that do not depend on where a run ends
    return tiny(
        folder,
        **{"data": data, "optimizer": steady, "steps": 8, "batch": 2, "validation_clips": 4, "save_every": 4} | changes,
    )


def run(config):
    read = reading(config)
    return train(config, read.source, read.held_out, quiet(), read.order)


def test_the_first_windows_to_judge_by_are_of_many_clips_and_of_all_sources(tmp_path):
    """A store lists clips source after source, each with its windows."""
    head = header((BOTH, WIDE))
    rows = [row(head, i, clip=i // 4, path=f"{i // 4}.mp4", bucket=i % 2) for i in range(160)]  # from 20 on of another
    store = write_store(tmp_path / "many", head, rows)
    judge = write_store(tmp_path / "judge", head, [one | {"path": f"other/{one['path']}"} for one in rows])
    for data in (StoreData(store.path, workers=0, held_out_share=0.5), StoreData(store.path, held_out=judge.path)):
        held_out = reading(settings(tmp_path, store, data=data)).held_out
        clips = [index // 4 for index in held_out.indices]
        count = len(set(clips))
        assert count > 10
        assert sorted(held_out.indices) == [i for i in range(160) if i // 4 in set(clips)]
        for turn in range(4):
            assert clips[turn * count : (turn + 1) * count] == clips[:count]
        assert {clip < 20 for clip in clips[:8]} == {True, False}
        assert {index % 4 for index in held_out.indices[:count]} == {0, 1, 2, 3}  # not all of one shape or start


def test_resume_is_exact_with_posteriors_that_are_sampled_anew(latents, tmp_path):
    whole = run(settings(tmp_path / "whole", latents)).model.state_dict()
    run(settings(tmp_path / "cut", latents, steps=4))
    cut = run(settings(tmp_path / "cut", latents)).model.state_dict()
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    assert json.loads((tmp_path / "whole/run.json").read_text())["stores"] == [latents.fingerprint]
    lines = read_metrics(tmp_path / "whole" / METRICS)
    assert all(torch.tensor(value).isfinite() for line in lines for key, value in line.items() if "loss" in key)


def test_workers_read_the_same(latents, tmp_path):
    from avgen.data.stream import STARTING_STEPS, Share, read_steps

    config = settings(tmp_path, latents)
    read = reading(replace(config, data=replace(config.data, mix=(MixedStore(latents.path, 0.5),))))
    steps = STARTING_STEPS + 4
    here = read_steps(read.source, read.order, Share(2, 1), 0, steps, workers=0)
    there = read_steps(read.source, read.order, Share(2, 1), 0, steps, workers=1)
    for (one,), (other,) in zip(here, there, strict=True):
        for m, stream in one.streams.items():
            assert torch.equal(stream.x, getattr(other, m).x)


def test_a_run_goes_on_with_the_stores_it_began_with(latents, tmp_path):
    run(settings(tmp_path / "run", latents, steps=4))
    head = header((BOTH, WIDE, MUTE, BLIND))
    other = write_store(tmp_path / "other", head, [row(head, 100 + i, bucket=i % 4) for i in range(48)])
    with pytest.raises(ConfigError, match="has read the stores"):
        reading(settings(tmp_path / "run", other))
    reading(settings(tmp_path / "fresh", other))


def test_a_run_goes_on_with_the_clips_held_out_that_it_began_with(latents, tmp_path):
    begun = settings(tmp_path / "run", latents, steps=4)
    run(begun)
    with pytest.raises(ConfigError, match=r"data\.held_out_share: .*began with held_out_share=0.25, now it is .*=0.5"):
        reading(replace(begun, data=replace(begun.data, held_out_share=0.5)))
    head = header((BOTH, WIDE, MUTE, BLIND))
    rows = [row(head, i, bucket=i % 4) for i in range(6)]
    judge = write_store(tmp_path / "judge", head, [*rows, row(head, 99, path="elsewhere.mp4")])
    with pytest.raises(ConfigError, match=rf"data\.held_out: .* now it is held_out={judge.fingerprint}"):
        reading(replace(begun, data=replace(begun.data, held_out=judge.path)))
    assert reading(begun).said == ()
    # earlier versions wrote the stores' fingerprints alone
    (begun.out / "reads.json").write_text(json.dumps([latents.fingerprint]))
    (said,) = reading(begun).said
    assert "it may have learnt from some that judge it" in said


def test_clips_of_the_store_that_judges_are_not_trained_on(latents, tmp_path):
    head = header((BOTH, WIDE, MUTE, BLIND))
    judge = write_store(tmp_path / "judge", head, [row(head, i, bucket=i % 4) for i in range(40, 52)])
    mix = (MixedStore(latents.path, 0.5),)
    read = reading(settings(tmp_path, latents, data=StoreData(latents.path, mix=mix, workers=0, held_out=judge.path)))
    assert read.said == (f"16 windows are not trained on: their files are in {judge.path}",)
    assert {i % 48 for step in range(200) for i in read.order.clips(step)} == set(range(40))
    assert len(read.held_out.indices) == 12


def test_every_store_of_a_mix_keeps_the_same_files_out_and_the_first_judges(latents, tmp_path):
    config = settings(tmp_path, latents)
    alone = reading(config)
    both = reading(replace(config, out=tmp_path / "mixed", data=replace(config.data, mix=(MixedStore(latents.path),))))
    assert both.held_out.indices == alone.held_out.indices
    read = {i % 48 for step in range(200) for i in both.order.clips(step)}
    assert read == set(range(48)) - set(alone.held_out.indices)


def test_runs_are_compared_by_the_losses_that_their_own_validation_gives(latents, tmp_path):
    steps = settings(tmp_path, latents).steps
    folders = tuple(tmp_path / f"seed_{seed}" for seed in range(3))
    for seed, folder in enumerate(folders):
        export(run(settings(folder, latents, seed=seed, validate_every=steps)))
    same = compared(CompareConfig(folders[:2], folders[:2], by=folders[0], clips=4))
    assert all(found.errors == 0 and found.spread_ours == found.spread_theirs > 0 for found in same.values())
    other = compared(CompareConfig(folders[:2], folders[1:], by=folders[1], clips=4))
    for key, wrong in (
        ("theirs", (folders[:2], (folders[0], tmp_path), folders[0])),
        ("by", (folders[:2], folders[:2], tmp_path)),
    ):
        with pytest.raises(ConfigError) as refused:
            CompareConfig(*wrong)
        assert refused.value.key == key
    assert all(found.errors != 0 for found in other.values())
    # each run keeps the same clips out, and judges at the same levels and noise
    first, second, third = (read_metrics(folder / METRICS)[-1] for folder in folders)
    for name in same:
        logged = f"held_out/{name}"
        assert same[name].ours == pytest.approx((first[logged] + second[logged]) / 2, rel=1e-4)
        assert other[name].theirs == pytest.approx((second[logged] + third[logged]) / 2, rel=1e-4)


def test_a_model_that_cannot_read_the_store_is_refused(latents, tmp_path):
    config = settings(tmp_path, latents)
    wide = replace(config.model, video=replace(config.model.video, channels=7))
    with pytest.raises(ConfigError, match=r"model.video.channels: 7 is not what .* tokens of 6 numbers"):
        reading(replace(config, model=wide))
    featured = replace(config.model, text=replace(config.model.text, kind="features"))
    with pytest.raises(ConfigError, match="prepared without a text encoder"):
        reading(replace(config, model=featured))
    with pytest.raises(ConfigError, match="validation_clips: 40 windows are asked for"):
        reading(replace(config, validation_clips=40))
    shown = replace(config.samples, every=5, clips=40)
    with pytest.raises(ConfigError, match=r"samples.clips: 40 windows are asked for.*lower samples.clips"):
        reading(replace(config, samples=shown))
    head = header(text_width=12)
    rows = [row(head, i, text=bytes(24), text_tokens="[1]") for i in range(40)]
    store = write_store(tmp_path / "featured", head, rows)
    with pytest.raises(ConfigError, match=r"set model\.text\.kind=features"):
        reading(settings(tmp_path, store))


def test_a_section_without_a_kind_is_the_toybox():
    assert isinstance(load(TrainConfig, "train", ["data.fit_clips=9"]).data, ToyboxData)
    with pytest.raises(ConfigError, match=r"data\.path"):
        load(TrainConfig, "train", ["data.path=latents"])


def test_the_record_of_a_run_builds_its_data_again(latents, tmp_path):
    from avgen.config import build, to_plain

    config = settings(tmp_path, latents)
    assert build(TrainConfig, json.loads(json.dumps(to_plain(config)))) == config


def test_captions_are_read_as_far_as_the_model_reads(toys, tmp_path, monkeypatch):
    monkeypatch.setattr("avgen.train.data.load_or_fit", lambda *_: (toys.video, toys.audio))
    short = tiny(tmp_path, data=ToyboxData(world=WORLD, workers=0))
    short = replace(short, model=replace(short.model, text=replace(short.model.text, max_length=24)))
    read = reading(short)
    for source in (read.source, read.held_out):
        assert source.batch([0, 1, 2]).video_text.x.shape == (3, 24)


def test_captions_of_stores_too(latents, tmp_path):
    head = header((BOTH, WIDE, MUTE, BLIND))
    judge = write_store(tmp_path / "judge", head, [row(head, 100 + i, bucket=i % 4) for i in range(8)])
    for data in (settings(tmp_path, latents).data, StoreData(latents.path, workers=0, held_out=judge.path)):
        short = settings(tmp_path, latents, data=data)
        short = replace(short, model=replace(short.model, text=replace(short.model.text, max_length=5)))
        read = reading(short)
        for source in (read.source, read.held_out):
            assert source.batch([0, 1]).video_text.x.shape[1] == 5


def test_captions_longer_than_the_model_reads_are_told_of(tmp_path):
    head = header()
    told = {3: ["x" * 400, "short"], 5: ["é" * 128], 6: ["x" * 255]}  # of 256 bytes the mark of the beginning takes one
    rows = [row(head, i, **({"captions": json.dumps(told[i])} if i in told else {})) for i in range(40)]
    config = settings(tmp_path, write_store(tmp_path / "store", head, rows))
    text = replace(config.model.text, max_length=256)
    (said,) = reading(replace(config, model=replace(config.model, text=text))).said
    assert said.startswith("2 captions are cut to the 255 bytes that model.text.max_length=256 reads")
    assert said.endswith("the longest has 400")
    text = replace(text, max_length=401)
    assert reading(replace(config, model=replace(config.model, text=text))).said == ()
