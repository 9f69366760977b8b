"""Opening codecs: the class from the folder, the scale from its settings, and refusals that say what to change."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from einops import rearrange
from torchaudio.transforms import MelSpectrogram

from avgen.models.codec_files import CodecFiles
from avgen.models.codecs import Posterior
from avgen.models.embedded_video import PatchVideoCodec
from avgen.models.mel import LogMel
from avgen.models.opening import open_audio_codec, open_video_codec
from tests.models import codec_factory as factory


def test_wan_latents_are_its_own_brought_to_the_scale_in_its_settings(tmp_path):
    network = factory.wan21().eval()
    codec = open_video_codec(CodecFiles(str(factory.saved(network, tmp_path))))
    frames = torch.randint(0, 256, (1, 5, 16, 16, 3), dtype=torch.uint8)
    with torch.no_grad():
        own = network.encode(rearrange(frames / 127.5 - 1, "b t h w c -> b c t h w")).latent_dist
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (factory.MEAN, factory.STD))
    posterior = codec.encode(frames)
    torch.testing.assert_close(posterior.mean * std + mean, own.mean)
    torch.testing.assert_close(posterior.std * std, own.std)
    with torch.no_grad():
        pictures = network.decode(own.mean).sample.add(1).mul(127.5)
    made = rearrange(codec.decode(posterior.mean), "b t h w c -> b c t h w").float()
    assert (made - pictures).abs().max() <= 0.51


def test_ltx2_video_is_scaled_by_its_buffers_and_its_factor(tmp_path):
    network = factory.ltx2_video().eval()
    codec = open_video_codec(CodecFiles(str(factory.saved(network, tmp_path))))
    frames = torch.randint(0, 256, (1, 9, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        own = network.encode(rearrange(frames / 127.5 - 1, "b t h w c -> b c t h w")).latent_dist.mean
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (factory.MEAN, factory.STD))
    torch.testing.assert_close(codec.encode(frames).mean, (own - mean) * 0.8 / std)


def test_strides_are_those_of_the_layers_whatever_a_setting_says(tmp_path):
    """Wan 2.2's settings default to 8 pixels a cell, LTX-2's to a guess: their layers make 16 and 32."""
    wan = open_video_codec(CodecFiles(str(factory.saved(factory.wan22(), tmp_path / "wan"))))
    assert wan.geometry.space_stride == 16
    ltx = open_video_codec(CodecFiles(str(factory.saved(factory.ltx2_video(), tmp_path / "ltx"))))
    assert (ltx.geometry.space_stride, ltx.geometry.time.stride) == (32, 8)


SOUND = {
    "oobleck": (lambda: factory.oobleck((2, 4)), lambda: None),
    "ltx2": (factory.ltx2_audio, factory.ltx2_vocoder),
    "audioldm2": (factory.audioldm2, factory.hifigan),
    "mmaudio": (factory.mmaudio, factory.mmaudio_vocoder),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_codec_works_in_the_precision_it_is_opened_in_and_answers_in_float32(name, tmp_path):
    network, vocoder = SOUND[name]
    factory.saved(network(), tmp_path / "one", vocoder())
    exact = open_audio_codec(CodecFiles(str(tmp_path / "one")))
    codec = open_audio_codec(CodecFiles(str(tmp_path / "one"), dtype="bfloat16"))
    assert (exact.dtype, codec.dtype) == (torch.float32, torch.bfloat16)
    wave = 0.1 * torch.randn(1, codec.geometry.audio_channels, 4 * codec.geometry.time.stride)
    posterior, wanted = codec.encode(wave), exact.encode(wave)
    assert posterior.mean.dtype == posterior.std.dtype == codec.decode(posterior.mean).dtype == torch.float32
    assert (posterior.mean - wanted.mean).square().mean().sqrt() < 0.1 * wanted.mean.std()
    codec.save_pretrained(tmp_path / "two")
    again = type(codec).from_pretrained(tmp_path / "two")
    assert again.dtype == torch.bfloat16
    assert again.fingerprint == codec.fingerprint != exact.fingerprint


def test_a_fingerprint_tells_weights_and_scales_apart_and_a_copy_not(tmp_path):
    def opened(name, **changes):
        return open_video_codec(CodecFiles(str(factory.saved(factory.wan21(**changes), tmp_path / name)))).fingerprint

    plain = opened("a")
    assert opened("b") == plain
    assert opened("c", latents_std=(0.5, 2.0, 1.5, 0.8)) != plain
    other = factory.wan21()
    torch.nn.init.ones_(other.decoder.conv_out.bias)
    assert open_video_codec(CodecFiles(str(factory.saved(other, tmp_path / "d")))).fingerprint != plain


def test_a_fingerprint_does_not_depend_on_what_a_librarys_version_says_by_default(tmp_path):
    folder = factory.saved(factory.wan21(), tmp_path / "one")
    first = open_video_codec(CodecFiles(str(folder))).fingerprint
    said = json.loads((folder / "config.json").read_text())
    usual = {name: one.default for name, one in inspect.signature(AutoencoderKLWan.__init__).parameters.items()}
    without = {k: v for k, v in said.items() if k.startswith("_") or json.dumps(usual.get(k)) != json.dumps(v)}
    assert len(without) < len(said)
    (folder / "config.json").write_text(json.dumps(without))
    assert open_video_codec(CodecFiles(str(folder))).fingerprint == first


def test_a_download_cut_short_is_an_error_of_one_line(tmp_path):
    folder = factory.saved(factory.wan21(), tmp_path / "one")
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match=rf"the network in {folder} cannot be loaded: "):
        open_video_codec(CodecFiles(str(folder)))
    (folder / "config.json").write_text('{"_class_')
    with pytest.raises(ValueError, match=rf"{folder}/config.json cannot be loaded: "):
        open_video_codec(CodecFiles(str(folder)))


def test_pictures_are_rounded_once_whatever_the_precision(tmp_path):
    """To bfloat16 after they have been brought to [-1, 1], not before."""
    files = CodecFiles(str(factory.saved(factory.wan21(), tmp_path / "one")), dtype="bfloat16")
    codec = open_video_codec(files)
    seen = []
    codec.posterior = lambda x: seen.append(x) or type(codec).posterior(codec, x)
    side = codec.geometry.pixels_per_token
    frames = torch.arange(side * side * 3, dtype=torch.int64).remainder(256).to(torch.uint8)
    codec.encode(frames.reshape(1, 1, side, side, 3))
    exact = frames.reshape(side, side, 3).double() / 127.5 - 1
    found = rearrange(seen[0][0, :, 0].double(), "c h w -> h w c")
    assert torch.equal(found, exact.float().bfloat16().double())


def test_a_pipelines_subfolder_is_opened_and_never_the_folder_above(tmp_path):
    """Where the folder above holds weights too, diffusers would take those."""
    factory.saved(factory.oobleck((2, 2)), tmp_path)
    factory.saved(factory.ltx2_audio(), tmp_path / "audio_vae")
    factory.saved(factory.ltx2_vocoder(), tmp_path / "vocoder")
    codec = open_audio_codec(CodecFiles(str(tmp_path), subfolder="audio_vae"))
    assert codec.geometry.sample_rate_hz == 24000
    with pytest.raises(ValueError, match=r"vae.*holds no config\.json"):
        open_audio_codec(CodecFiles(str(tmp_path), subfolder="vae"))


def test_the_embedded_codecs_open_by_the_same_function(tmp_path):
    PatchVideoCodec(4, hidden=8).save_pretrained(tmp_path)
    codec = open_video_codec(CodecFiles(str(tmp_path)))
    assert isinstance(codec, PatchVideoCodec)
    assert isinstance(codec.encode(torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8)), Posterior)
    with pytest.raises(ValueError, match="leave them out"):
        open_video_codec(CodecFiles(str(tmp_path), tile_px=64))


def test_refusals_name_the_value_and_what_to_change(tmp_path):
    wan = str(factory.saved(factory.wan21(), tmp_path / "wan"))
    with pytest.raises(ValueError, match=r"codec\.audio\.path=.*a codec of video"):
        open_audio_codec(CodecFiles(wan))
    with pytest.raises(ValueError, match="no such folder"):
        open_video_codec(CodecFiles(str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"multiples of the codec's stride, 8"):
        open_video_codec(CodecFiles(wan)).encode(torch.zeros(1, 5, 12, 16, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="an odd one shifts"):
        open_audio_codec(CodecFiles(str(factory.saved(factory.oobleck((3, 2)), tmp_path / "odd"))))
    mixed = factory.saved(factory.mmaudio(), tmp_path / "mixed", factory.hifigan())
    with pytest.raises(ValueError, match="a MMAudioVAE is heard through MMAudioVocoder"):
        open_audio_codec(CodecFiles(str(mixed)))
    slow = factory.saved(factory.ltx2_audio(), tmp_path / "slow", factory.ltx2_vocoder())
    config = slow / "vocoder" / "config.json"
    config.write_text(config.read_text().replace("24000", "16000"))
    with pytest.raises(ValueError, match="they do not belong together"):
        open_audio_codec(CodecFiles(str(slow)))


def test_missing_weights_are_refused_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = factory.saved(factory.wan21(), tmp_path)
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    del weights["quant_conv.weight"]
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"do not fit.*quant_conv\.weight"):
        open_video_codec(CodecFiles(str(folder)))


def test_log_mels_are_torchaudios_at_ltx2s_settings():
    wave = 0.3 * torch.randn(2, 2, 16000)
    theirs = MelSpectrogram(
        16000, n_fft=1024, hop_length=160, n_mels=64, power=1.0, norm="slaney", mel_scale="slaney", center=True
    )(wave)
    ours = LogMel(16000, 64, 160)(wave, 101)
    torch.testing.assert_close(ours, theirs.clamp_min(1e-5).log().transpose(2, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 160, 513, 4000])
def test_sound_of_any_length_has_the_frames_asked_for(samples):
    mel = LogMel(16000, 16, 160)(torch.ones(1, samples), 5)
    assert mel.shape == (1, 5, 16)
    assert np.isfinite(mel.numpy()).all()


def test_a_hosted_codec_is_saved_and_read_back_with_its_vocoder(tmp_path: Path):
    folder = factory.saved(factory.audioldm2(), tmp_path / "one", factory.hifigan())
    codec = open_audio_codec(CodecFiles(str(folder)))
    codec.save_pretrained(tmp_path / "two")
    again = type(codec).from_pretrained(tmp_path / "two")
    assert again.fingerprint == codec.fingerprint
    wave = 0.1 * torch.randn(1, 1, 3000)
    latents = codec.encode(wave).mean
    assert torch.equal(again.encode(wave).mean, latents)
    assert torch.equal(again.decode(latents), codec.decode(latents))


def test_a_saved_codec_remembers_what_it_was_told_after_it_was_opened(tmp_path):
    picture = open_video_codec(CodecFiles(str(factory.saved(factory.ltx2_video(), tmp_path / "video"))))
    picture.tile(128)
    picture.in_pieces(8)
    sound = open_audio_codec(CodecFiles(str(factory.saved(factory.oobleck((2, 4)), tmp_path / "audio"))))
    sound.in_pieces(6)
    for codec, limits in ((picture, {"tile_px": 128, "piece_steps": 8}), (sound, {"piece_steps": 6})):
        codec.save_pretrained(tmp_path / type(codec).__name__)
        assert type(codec).from_pretrained(tmp_path / type(codec).__name__).limits == limits


def test_a_hub_that_does_not_answer_is_an_error_of_one_line(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub\nand more lines")

    monkeypatch.setattr("diffusers.AutoencoderKL.load_config", unreachable)
    with pytest.raises(ValueError, match=r"path=some/codec is no folder here.*couldn't connect to the hub$"):
        open_video_codec(CodecFiles("some/codec"))
