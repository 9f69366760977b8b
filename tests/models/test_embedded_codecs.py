"""The embedded codecs: what a latent covers, what comes back, and that a codec is what its fingerprint says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avgen import command
from avgen.data.toybox import Toybox, ToyboxConfig
from avgen.data.toybox.reader import Score, read_events, score
from avgen.models import fit_codecs
from avgen.models.codec_report import main as report_main
from avgen.models.codec_report import onset_errors_s, psnr_db, spectral_convergence
from avgen.models.codecs import AudioCodec, VideoCodec
from avgen.models.embedded_audio import SpectralAudioCodec, fit_audio
from avgen.models.embedded_video import PatchVideoCodec, fit_video
from avgen.models.fit_codecs import fit_embedded, fit_folder, load_or_fit
from avgen.models.fit_codecs import main as fit_main

RATE_HZ = 16000
WORLD = ToyboxConfig()


def media(split, count, config=WORLD, seed=0):
    items = [Toybox(config, split=split, seed=seed)[i] for i in range(count)]
    frames = torch.from_numpy(np.stack([i.clip.video for i in items]))
    waves = torch.from_numpy(np.stack([i.clip.audio for i in items]))
    return frames, waves, items


@pytest.fixture(scope="module")
def quick():
    """A pair that is fitted just enough for what holds for any weights."""
    frames, waves, _ = media("train", 48)
    video, audio = PatchVideoCodec(24), SpectralAudioCodec(32)
    fit_video(video, frames, steps=15)
    fit_audio(audio, waves, steps=15)
    return video.requires_grad_(False), audio.requires_grad_(False)


@pytest.fixture(scope="module")
def full():
    return fit_embedded(WORLD, 256)  # half of what users have: enough for what is asked below


def test_both_are_codecs(quick):
    assert isinstance(quick[0], VideoCodec)
    assert isinstance(quick[1], AudioCodec)


@settings(max_examples=12, deadline=None)
@given(length=st.integers(1, 40), rows=st.integers(1, 4), columns=st.integers(1, 4), batch=st.integers(1, 2))
def test_video_shapes_follow_the_geometry(quick, length, rows, columns, batch):
    codec, time = quick[0], quick[0].geometry.time
    frames = torch.randint(0, 256, (batch, length, 8 * rows, 8 * columns, 3), dtype=torch.uint8)
    latents = codec.encode(frames).mean
    assert latents.shape == (batch, codec.geometry.channels, time.steps(length), rows, columns)
    decoded = codec.decode(latents)
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (batch, time.units(time.steps(length)), 8 * rows, 8 * columns, 3)


@settings(max_examples=12, deadline=None)
@given(length=st.integers(1, 9000), batch=st.integers(1, 2))
def test_audio_shapes_follow_the_geometry(quick, length, batch):
    codec, time = quick[1], quick[1].geometry.time
    latents = codec.encode(torch.randn(batch, 1, length)).mean
    assert latents.shape == (batch, codec.geometry.channels, time.steps(length))
    decoded = codec.decode(latents)
    assert decoded.dtype == torch.float32
    assert decoded.shape == (batch, 1, time.units(time.steps(length)))
    assert torch.isfinite(decoded).all()


def test_a_part_step_is_filled_with_a_still_frame_and_with_silence(quick):
    video, audio = quick
    frames, waves, _ = media("test", 1)
    still = torch.cat([frames[:, :5], frames[:, 4:5]], dim=1)
    assert torch.equal(video.encode(frames[:, :5]).mean, video.encode(still).mean)
    silent = torch.cat([waves[..., :1000], torch.zeros(1, 1, 600)], dim=-1)
    assert torch.equal(audio.encode(waves[..., :1000]).mean, audio.encode(silent).mean)


def test_wrong_shapes_are_refused_with_the_rule(quick):
    video, audio = quick
    with pytest.raises(ValueError, match="multiples of the codec's stride, 8"):
        video.encode(torch.zeros(1, 2, 12, 16, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="uint8"):
        video.encode(torch.zeros(1, 2, 16, 16, 3))
    with pytest.raises(ValueError, match=r"\(B, 1, S\)"):
        audio.encode(torch.zeros(1, 2, 1000))
    with pytest.raises(ValueError, match="multiple of 4"):
        SpectralAudioCodec(hop=150, window=600)


@settings(max_examples=15, deadline=None)
@given(frame=st.integers(0, 15))
def test_a_flash_changes_only_the_latent_of_its_interval(quick, frame):
    codec = quick[0]
    dark = torch.full((1, 16, 32, 32, 3), 30, dtype=torch.uint8)
    flash = dark.clone()
    flash[:, frame] = 220
    changed = (codec.encode(flash).mean != codec.encode(dark).mean).any(1).flatten(2).any(2)[0]
    for fps in (8.0, 24.0):
        intervals = codec.geometry.time.intervals(8, fps)
        middle_s = (frame + 0.5) / fps
        assert torch.equal(changed, (intervals[:, 0] <= middle_s) & (middle_s < intervals[:, 1]))


@settings(max_examples=25, deadline=None)
@given(sample=st.integers(0, 8000 - 1))
def test_a_click_changes_its_latent_and_others_only_within_reach(quick, sample):
    codec = quick[1]
    click = torch.zeros(1, 1, 8000)
    click[..., sample] = 0.9
    changed = (codec.encode(click).mean - codec.encode(torch.zeros(1, 1, 8000)).mean).abs().amax(1)[0] > 1e-4
    intervals = codec.geometry.time.intervals(10, RATE_HZ)
    at_s, reach_s = sample / RATE_HZ, codec.reach_samples / RATE_HZ
    assert reach_s < 0.02
    assert changed[(intervals[:, 0] <= at_s) & (at_s < intervals[:, 1])].all()
    assert not changed[(at_s < intervals[:, 0] - reach_s) | (at_s >= intervals[:, 1] + reach_s)].any()


def test_a_shift_by_a_stride_shifts_the_latents(quick):
    video, audio = quick
    frames, waves, _ = media("test", 2)
    later = torch.cat([frames[:, :2], frames], dim=1)
    torch.testing.assert_close(video.encode(later).mean[:, :, 1:], video.encode(frames).mean, rtol=0, atol=1e-4)
    stride = audio.geometry.time.stride
    shifted = torch.cat([torch.zeros(2, 1, 3 * stride), waves], dim=-1)
    torch.testing.assert_close(audio.encode(shifted).mean[..., 3:], audio.encode(waves).mean, rtol=0, atol=1e-4)


def test_clips_of_a_batch_do_not_touch_each_other(quick):
    frames, waves, _ = media("test", 3)
    for codec, x in zip(quick, (frames, waves), strict=True):
        together, alone = codec.encode(x).mean, codec.encode(x[1:2]).mean
        torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)
        gap = (codec.decode(together)[1:2].float() - codec.decode(together[1:2]).float()).abs().max()
        assert gap <= (1 if x is frames else 1e-3)  # a grey level; a thousandth of full scale


def test_latents_are_centred_with_mean_variance_one(quick):
    frames, waves, _ = media("train", 48)
    for codec, x in zip(quick, (frames, waves), strict=True):
        per_channel = codec.encode(x).mean.transpose(0, 1).flatten(1)
        torch.testing.assert_close(per_channel.mean(1), torch.zeros(len(per_channel)), rtol=0, atol=0.02)
        assert per_channel.var(1).mean() == pytest.approx(1, abs=0.02)


def test_decoding_is_deterministic_and_leaves_the_generator_alone(quick):
    latents = torch.randn(1, 32, 10, generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    assert torch.equal(quick[1].decode(latents), quick[1].decode(latents))
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_reach_the_pixels_and_the_latents(quick):
    video, audio = quick
    for decode, shape in ((video.pixels, (1, 24, 2, 2, 2)), (audio.decode, (1, 32, 4))):
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(2)).requires_grad_()
        decode(latents).square().sum().backward()
        assert latents.grad is not None
        assert torch.isfinite(latents.grad).all()
        assert (latents.grad != 0).any()


def test_save_and_load_keep_every_bit_and_the_fingerprint(quick, tmp_path):
    frames, waves, _ = media("test", 2)
    for codec, x in zip(quick, (frames, waves), strict=True):
        codec.save_pretrained(tmp_path / type(codec).__name__)
        loaded = type(codec).from_pretrained(tmp_path / type(codec).__name__)
        assert loaded.fingerprint == codec.fingerprint
        assert loaded.geometry == codec.geometry
        latents = codec.encode(x).mean
        assert torch.equal(loaded.encode(x).mean, latents)
        assert torch.equal(loaded.decode(latents), codec.decode(latents))


def test_any_weight_or_setting_changes_the_fingerprint(quick):
    for codec in quick:
        seen = {codec.fingerprint}
        for name, value in codec.state_dict().items():
            flat = value.view(-1)
            before = flat[-1].clone()
            flat[-1] = torch.nextafter(before, before + 1)
            seen.add(codec.fingerprint)
            flat[-1] = before
            assert len(seen) > 1, name
        assert len(seen) == 1 + len(codec.state_dict())
    plain = SpectralAudioCodec()
    fingerprints = {SpectralAudioCodec(refinements=n).fingerprint for n in (1, 2, 3)} | {plain.fingerprint}
    assert len(fingerprints) == 4  # the weights of unfitted codecs are random


def test_a_setting_alone_changes_the_fingerprint(quick):
    audio = quick[1]
    settings_ = {k: v for k, v in dict(audio.config).items() if not k.startswith("_")}
    other = SpectralAudioCodec(**{**settings_, "refinements": 5})
    other.load_state_dict(audio.state_dict())
    same = SpectralAudioCodec(**settings_)
    same.load_state_dict(audio.state_dict())
    assert same.fingerprint == audio.fingerprint != other.fingerprint


def test_the_same_seed_fits_the_same_codecs():
    frames, waves, _ = media("train", 16)

    def fingerprints(seed):
        video, audio = PatchVideoCodec(8), SpectralAudioCodec.at_rate(RATE_HZ // 4, 8)  # small: a quick fit
        torch.manual_seed(int(torch.randint(1000, ())))  # whatever came before must not matter
        fit_video(video, frames, steps=4, seed=seed)
        fit_audio(audio, waves, steps=4, seed=seed)
        return video.fingerprint, audio.fingerprint

    first, second, other = fingerprints(0), fingerprints(0), fingerprints(1)
    assert first == second
    assert first[0] != other[0]
    assert first[1] != other[1]


@pytest.mark.parametrize("rate_hz", [8000, 22050, 44100, 48000])
def test_the_vocoder_returns_what_it_is_told(rate_hz):
    """Without the latents between them, analysis and synthesis keep a tone's pitch, level and beginning."""
    codec = SpectralAudioCodec.at_rate(rate_hz)
    assert codec.geometry.time.stride / rate_hz == pytest.approx(0.05, rel=0.01)
    time_s = torch.arange(round(0.5 * rate_hz)) / rate_hz
    tone = 0.5 * torch.sin(2 * torch.pi * 610 * time_s) * (time_s > 0.2)
    wave = codec.padded(tone[None, None])
    frames, envelope = codec.descriptions(wave)
    again = codec.synthesise(frames[0], envelope[0])[0]
    middle = slice(round(0.3 * rate_hz), round(0.45 * rate_hz))
    assert float(again[middle].square().mean()) == pytest.approx(float(tone[middle].square().mean()), rel=0.05)
    spectrum = torch.fft.rfft(again[middle] * torch.hann_window(len(again[middle])), n=1 << 17).abs()
    assert int(spectrum.argmax()) * rate_hz / (1 << 17) == pytest.approx(610, rel=0.003)
    power = again[: wave.shape[-1]].square()
    assert power[: round(0.192 * rate_hz)].max() < 1e-3 * power.max()
    assert power[round(0.2 * rate_hz) : round(0.21 * rate_hz)].max() > 0.3 * power.max()


def test_stereo_keeps_each_channels_level():
    world = ToyboxConfig(sample_rate_hz=8000, audio_channels=2)
    _, waves, _ = media("train", 32, world)
    codec = SpectralAudioCodec.at_rate(8000, 24, audio_channels=2)
    fit_audio(codec, waves, steps=30)
    codec.requires_grad_(False)
    left_only = waves[:8].clone()
    left_only[:, 1] = 0
    decoded = codec.decode(codec.encode(waves[:8]).mean)
    assert decoded.shape == waves[:8].shape
    balance = [10 * torch.log10((x[:, 0].square().sum() + 1e-3) / (x[:, 1].square().sum() + 1e-3))
               for x in (waves[:8], decoded)]  # fmt: skip
    torch.testing.assert_close(balance[0], balance[1], rtol=0, atol=3)  # dB


@pytest.fixture
def few_steps(monkeypatch):
    """For what holds however long a decoder is trained."""
    monkeypatch.setattr(fit_codecs, "STEPS", {"video": (15, 0.0, 15), "audio": (15, 0.0, 15)})


def test_a_pair_is_fitted_once_for_each_choice_of_clips(few_steps, tmp_path):
    small = ToyboxConfig(height=8, width=8, sample_rate_hz=8000, kinds=("lamp",), scenes=("single",))
    first = load_or_fit(tmp_path, small, n_clips=8)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    again = load_or_fit(tmp_path, small, n_clips=8)
    assert [c.fingerprint for c in first] == [c.fingerprint for c in again]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")} == stamps
    assert fit_folder(tmp_path, small, 8).is_dir()
    assert len({fit_folder(tmp_path, w, n, s) for w in (small, WORLD) for n in (8, 9) for s in (0, 1)}) == 8


def test_a_fit_that_cannot_be_written_leaves_nothing(few_steps, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(SpectralAudioCodec, "save_pretrained", full)
    small = ToyboxConfig(height=8, width=8, sample_rate_hz=8000, kinds=("lamp",), scenes=("single",))
    with pytest.raises(OSError, match="space"):
        load_or_fit(tmp_path, small, n_clips=8)
    assert not list(tmp_path.iterdir())


def test_the_command_fits_what_the_function_fits(few_steps, tmp_path, capsys):
    assert (
        fit_main([f"out={tmp_path}", "n_clips=16", "world.height=8", "world.width=8", "world.sample_rate_hz=8000"]) == 0
    )
    printed = capsys.readouterr().out
    pair = fit_embedded(ToyboxConfig(height=8, width=8, sample_rate_hz=8000), 16)
    for codec, name in zip(pair, ("video", "audio"), strict=True):
        assert codec.fingerprint in printed
        assert type(codec).from_pretrained(tmp_path / name).fingerprint == codec.fingerprint


def decoded_clips(pair, items, noise=0.0):
    """The items' clips through both codecs, with gaussian noise of `noise` standard deviations on the latents."""
    draw = torch.Generator().manual_seed(0)
    out = []
    for codec, name in zip(pair, ("video", "audio"), strict=True):
        x = torch.from_numpy(np.stack([getattr(i.clip, name) for i in items]))
        latents = codec.encode(x).mean
        spread = latents.std(dim=[0, *range(2, latents.ndim)], keepdim=True)
        out.append(codec.decode(latents + noise * spread * torch.randn(latents.shape, generator=draw)).numpy())
    return [
        dataclasses.replace(i.clip, video=v[: len(i.clip.video)], audio=a[:, : i.clip.audio.shape[1]])
        for i, v, a in zip(items, *out, strict=True)
    ]


@pytest.mark.slow
class TestFitted:
    def test_silence_is_silence(self, full):
        _, audio = full
        quiet = torch.zeros(1, 1, 32000)
        assert torch.equal(audio.decode(audio.encode(quiet).mean), quiet)

    def test_pictures_and_sounds_come_back(self, full):
        _, _, items = media("test", 60, seed=5)
        decoded = decoded_clips(full, items)
        pictures = [(torch.from_numpy(i.clip.video), torch.from_numpy(c.video))
                    for i, c in zip(items, decoded, strict=True)]  # fmt: skip
        assert np.mean([psnr_db(*both) for both in pictures]) >= 28
        heard = [(torch.from_numpy(i.clip.audio), torch.from_numpy(c.audio), i)
                 for i, c in zip(items, decoded, strict=True) if i.clip.audio.any()]  # fmt: skip
        assert np.mean([spectral_convergence(true, made) for true, made, _ in heard]) < 0.3
        errors_s = np.concatenate([onset_errors_s(*both) for both in heard])
        assert len(errors_s) > 30
        assert np.median(np.abs(errors_s)) < 0.003
        level_db = [10 * np.log10(made.square().sum() / true.square().sum()) for true, made, _ in heard]
        assert abs(np.median(level_db)) < 0.5

    @pytest.mark.parametrize(("noise", "kept"), [(0.0, 0.95), (0.2, 0.85)])
    def test_the_reader_still_reads(self, full, noise, kept):
        _, _, items = media("test", 60, seed=6)
        before, after = Score(), Score()
        for item, clip in zip(items, decoded_clips(full, items, noise), strict=True):
            before += score(read_events(item.clip), item.events)
            after += score(read_events(clip), item.events)
        for name in ("seen", "heard", "sync"):
            assert getattr(after, name).f1 >= kept * getattr(before, name).f1, name


def test_a_world_without_sound_is_fitted_and_decodes_to_silence():
    codec = SpectralAudioCodec(6, hidden=8, rank=8)
    fit_audio(codec, torch.zeros(8, 1, 16000), steps=1)
    codec.requires_grad_(False)
    decoded = codec.decode(codec.encode(torch.zeros(1, 1, 16000)).mean)
    assert decoded.isfinite().all()
    assert decoded.abs().max() < 1e-3


def test_the_report_reads_clips_of_the_codecs_rate_and_says_where_there_is_nothing_to_say(quick, tmp_path, capsys):
    quick[0].save_pretrained(tmp_path / "video")
    slow = SpectralAudioCodec.at_rate(8000, 6)
    slow.save_pretrained(tmp_path / "audio")
    words = [f"codecs={tmp_path}", "n_clips=2", "noise=[0.0]"]
    assert report_main([*words, "world.scenes=[single]"]) == 0
    capsys.readouterr()
    assert report_main([*words, "world.scenes=[silent]"]) == 0
    assert " - " in capsys.readouterr().out
    for wrong in ([*words[:1], "n_clips=0"], [f"codecs={tmp_path / 'none'}"]):
        assert command.run(report_main, wrong) == command.USER_ERROR
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
