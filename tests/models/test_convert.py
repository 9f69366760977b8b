"""Grafts: a Wan model and its tower agree, joint towers answer as if alone, and nothing is lost on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from torch import Tensor

from avgen.compose import load
from avgen.models.architecture import BridgeConfig, ModelConfig, TextConfig, TowerConfig
from avgen.models.convert import (
    export_wan,
    graft_wan,
    load_tower,
    tower_config_of_wan,
    tower_names,
    tower_of_wan,
    tower_state,
    wan_names,
    wan_state,
)
from avgen.models.dit import AVTransformer
from avgen.train.config import TrainConfig
from avgen.types import AudioGeometry, Batch, Stream, Text, TimeGrid, VideoGeometry
from tests.models.factory import scatter

FPS = 16.0
CHANNELS = 4
VIDEO = VideoGeometry(channels=CHANNELS, time=TimeGrid(4, 1), space_stride=8, patch=2)
AUDIO = AudioGeometry(channels=6, time=TimeGrid(640, 640), sample_rate_hz=16000)
TEXT = 20


def tiny_wan(seed: int = 0, **changes: Any) -> WanTransformer3DModel:
    """Every weight random, also those that diffusers starts at one or zero."""
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 20,  # 20 = 8 + 6 + 6: the axes' shares differ
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "text_dim": TEXT,
        "ffn_dim": 52,
        "num_layers": 3,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return scatter(WanTransformer3DModel(**{**settings, **changes}), seed).eval()


def audio_tower(**changes: Any) -> TowerConfig:
    return replace(TowerConfig(channels=6, width=32, heads=2, depth=2), **changes)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def captions(count: int, length: int = 7) -> Text:
    """As Wan reads them: the padding's zeros count as tokens."""
    x = draw(count, length, TEXT, seed=5)
    x[:, length - 2 :] = 0
    return Text.of(x)


def noised(stream: Stream, levels: Tensor) -> Stream:
    """The stream with a level per sample (B,), or per token (B, N) taken from a few distinct ones."""
    if levels.dim() == 1:
        return replace(stream, levels=levels[:, None])
    distinct = [row.unique() for row in levels]
    width = max(map(len, distinct))
    table = torch.stack([torch.cat([d, d[-1:].expand(width - len(d))]) for d in distinct])
    slot = torch.stack([torch.searchsorted(d, row) for d, row in zip(distinct, levels, strict=True)])
    return replace(stream, levels=table, slot=slot)


def video_of(model: AVTransformer, latents: Tensor, levels: Tensor, text: Text, fps: float = FPS) -> Tensor:
    stream = noised(VIDEO.stream(latents, fps), levels)
    with torch.no_grad():
        velocity = model(Batch(stream, None, text, text)).video
    rows, columns = latents.shape[-2] // VIDEO.patch, latents.shape[-1] // VIDEO.patch
    return VIDEO.latents(velocity, rows, columns)


def joint_batch(levels: tuple[float, float] = (0.7, 0.3), count: int = 2) -> Batch:
    text = captions(count)
    video = noised(VIDEO.stream(draw(count, CHANNELS, 3, 4, 6), FPS), torch.full((count,), levels[0]))
    audio = noised(AUDIO.stream(draw(count, 6, 9, seed=1)), torch.full((count,), levels[1]))
    return Batch(video, audio, text, text)


@pytest.mark.parametrize("cross_attn_norm", [True, False])
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 2, 2), (3, 4, 6), (5, 6, 2)])
def test_graft_agrees_with_wan(frames: int, height: int, width: int, cross_attn_norm: bool) -> None:
    # No change of sign: diffusers' Wan, like avgen, predicts noise - data (see test_velocity_is_noise_minus_data).
    wan = tiny_wan(cross_attn_norm=cross_attn_norm)
    model = graft_wan(wan, FPS, audio_tower())
    latents, text = draw(3, CHANNELS, frames, height, width), captions(3)
    levels = torch.tensor([0.0, 0.317, 1.0])
    with torch.no_grad():
        wanted = wan(latents, levels * 1000, text.x).sample
    assert wanted.std() > 0.05
    torch.testing.assert_close(video_of(model, latents, levels, text), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kinds", [2, 5])
def test_graft_agrees_with_wan_of_a_level_per_token(kinds: int) -> None:
    """As Wan 2.2 TI2V is run: the first frame's tokens given, others noised (and, here, at several levels)."""
    wan = tiny_wan()
    model = graft_wan(wan, FPS, None)
    latents, text = draw(2, CHANNELS, 3, 4, 6), captions(2)
    tokens = 3 * 2 * 3
    levels = torch.linspace(0, 1, kinds)[torch.arange(2 * tokens).view(2, tokens) * 7 % kinds].clone()
    levels[:, :6] = 0.0
    with torch.no_grad():
        wanted = wan(latents, levels * 1000, text.x).sample
    torch.testing.assert_close(video_of(model, latents, levels, text), wanted, atol=1e-5, rtol=0)
    assert (video_of(model, latents, levels.amax(1), text) - wanted).abs().max() > 1e-3


def test_frames_of_another_rate_keep_their_real_time() -> None:
    """The clock counts as Wan does at Wan's own rate; at twice the rate latent frames lie half as far apart."""
    clock = tower_config_of_wan(dict(tiny_wan().config), FPS).clock
    steps = torch.arange(6, dtype=torch.float64)
    torch.testing.assert_close(clock.units(VIDEO.time.intervals(6, FPS)), steps)
    fast = clock.units(VIDEO.time.intervals(6, 2 * FPS))
    torch.testing.assert_close(fast - fast[0], steps / 2)
    late = clock.units(VIDEO.time.intervals(6, FPS, start_s=5.0))
    torch.testing.assert_close(late - late[0], steps)


def test_velocity_is_noise_minus_data() -> None:
    """FlowMatchEuler's step, which Wan's pipelines feed with the raw output, is ours: x - dt * (noise - data)."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.6])
    data, noise = draw(1, 4), draw(1, 4, seed=1)
    stepped = scheduler.step(noise - data, scheduler.timesteps[0], noise).prev_sample
    torch.testing.assert_close(stepped, 0.4 * data + 0.6 * noise)


@pytest.mark.parametrize("source", ["fresh", "copied", "pretrained"])
def test_joint_output_is_each_tower_alone(source: str) -> None:
    wan = tiny_wan()
    tower = audio_tower(width=40, mlp_ratio=52 / 40) if source == "copied" else audio_tower()
    config = ModelConfig(None, tower, TextConfig("features", TEXT))
    pretrained = scatter(AVTransformer.of(config), 3).eval()
    bridge = BridgeConfig(heads=2, head_dim=8)
    audio = pretrained if source == "pretrained" else tower
    model = graft_wan(wan, FPS, audio, copy_layers=source == "copied", bridge=bridge)
    scatter_bridge(model)
    if source != "pretrained":  # a fresh head answers zero, which would hide everything
        scatter(model.towers["audio"])
    batch = joint_batch()
    with torch.no_grad():
        joint = model(batch)
        assert torch.equal(joint.video, model(replace(batch, audio=None)).video)
        assert torch.equal(joint.audio, model(replace(batch, video=None)).audio)
        assert torch.equal(joint.video, graft_wan(wan, FPS, None)(replace(batch, audio=None)).video)
        assert joint.audio.std() > 0.05
        if source == "pretrained":
            dropped = replace(batch.video_text, dropped=torch.tensor([True, False]))
            alone = replace(batch, video=None, video_text=dropped, audio_text=dropped)
            assert torch.equal(model(alone).audio, pretrained(alone).audio)
            assert torch.equal(joint.audio, pretrained(replace(batch, video=None)).audio)
        open_gates(model)
        assert not torch.equal(model(batch).video, joint.video)
        assert not torch.equal(model(batch).audio, joint.audio)


@torch.no_grad()
def scatter_bridge(model: AVTransformer) -> None:
    """Every weight of the bridge random, except those of its gates."""
    for block in model.blocks:
        if block.bridge is not None:
            scatter(block.bridge)
            for table in block.bridge.table.values():
                table[4] = 0
    for levels in model.bridge_levels.values():
        scatter(levels.own)
        gate = levels.own.out_features // 5 * 4
        levels.own.weight[gate:] = 0
        levels.own.bias[gate:] = 0


@torch.no_grad()
def open_gates(model: AVTransformer) -> None:
    for block in model.blocks:
        if block.bridge is not None:
            for table in block.bridge.table.values():
                table[4] = 1


@pytest.mark.parametrize("told", [{}, {"anchored": True}, {"local": True}])
def test_copied_layers_are_the_video_towers(told: dict[str, bool]) -> None:
    wan = tiny_wan(num_layers=4)
    tower = audio_tower(width=40, mlp_ratio=52 / 40, depth=2, **told)
    model = graft_wan(wan, FPS, tower, copy_layers=True)
    fresh = tower_state(graft_wan(wan, FPS, tower), "audio")
    video, audio = tower_state(model, "video"), tower_state(model, "audio")
    for ours, theirs in (("layers.0", "layers.0"), ("layers.1", "layers.2")):
        names = [n.removeprefix(ours) for n in audio if n.startswith(f"{ours}.") and not n.endswith(".taps")]
        assert len(names) == 27
        assert all(torch.equal(audio[ours + n], video[theirs + n]) for n in names)
    assert torch.equal(audio["level_modulate.weight"], video["level_modulate.weight"])
    assert audio["embed.weight"].shape == fresh["embed.weight"].shape
    assert not audio["head.weight"].any()
    assert not any(audio[name].any() for name in audio if name.endswith(".taps"))


def test_copying_wants_equal_layers() -> None:
    with pytest.raises(ValueError, match=r"audio\.width=32 must equal the video tower's 40"):
        graft_wan(tiny_wan(), FPS, audio_tower(), copy_layers=True)


@pytest.mark.parametrize("audio_depth", [0, 2, 3, 5])
@pytest.mark.parametrize("cross_attn_norm", [True, False])
def test_round_trip_is_exact(audio_depth: int, cross_attn_norm: bool) -> None:
    """Whatever stages the video layers stand in beside a shallower or deeper audio tower."""
    wan = tiny_wan(cross_attn_norm=cross_attn_norm)
    model = graft_wan(wan, FPS, audio_tower(depth=audio_depth) if audio_depth else None)
    back = export_wan(model)
    state, wanted = back.state_dict(), wan.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    latents, text = draw(1, CHANNELS, 2, 4, 4), captions(1)
    with torch.no_grad():
        assert torch.equal(*(m(latents, torch.tensor([250.0]), text.x).sample for m in (wan, back)))


def test_every_weight_is_used_once_and_every_one_is_set() -> None:
    wan = tiny_wan()
    names = wan_names(3, text_norm=True)
    assert names.keys() == wan.state_dict().keys()
    assert len(set(names.values())) == len(names)
    model = graft_wan(wan, FPS, audio_tower())
    assert set(names.values()) == tower_names(model, "video").keys()
    elements = sum(value.numel() for value in tower_state(model, "video").values())
    assert elements == sum(value.numel() for value in wan.parameters())


def test_wrong_names_are_errors_in_both_directions() -> None:
    wan = tiny_wan()
    settings, weights = dict(wan.config), dict(wan.state_dict())
    weights["blocks.1.attn1.to_qkv.weight"] = weights.pop("blocks.1.attn1.to_q.weight")
    with pytest.raises(
        ValueError, match=r"missing \['blocks.1.attn1.to_q.weight'\].*unexpected \['blocks.1.attn1.to_qkv"
    ):
        tower_of_wan(weights, settings)
    model = graft_wan(wan, FPS, audio_tower())
    tower = tower_state(model, "video")
    with pytest.raises(ValueError, match=r"missing \['embed.bias'\], unexpected none"):
        load_tower(model, "video", {n: v for n, v in tower.items() if n != "embed.bias"})
    with pytest.raises(ValueError, match=r"embed.bias has shape \(39,\) in the source, but \(40,\) here"):
        load_tower(model, "video", {**tower, "embed.bias": torch.zeros(39)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_dim": 16}, "image_dim=16.*text-to-video"),
        ({"added_kv_proj_dim": 40}, "added_kv_proj_dim=40"),
        ({"in_channels": 9}, "reads 9 channels and predicts 4"),
        ({"patch_size": (2, 2, 2)}, "patch_size=.2, 2, 2."),
        ({"eps": 1e-5}, "eps=1e-05"),
        ({"freq_dim": 128}, "freq_dim=128"),
    ],
)
def test_other_kinds_of_wan_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        graft_wan(tiny_wan(**changes), FPS, audio_tower())


def test_audio_of_other_captions_is_refused() -> None:
    other = AVTransformer.of(ModelConfig(None, audio_tower(), TextConfig("features", 8)))
    with pytest.raises(ValueError, match="one text encoder"):
        graft_wan(tiny_wan(), FPS, other)
    silent = graft_wan(tiny_wan(), FPS, None)
    with pytest.raises(ValueError, match="has no audio tower"):
        graft_wan(tiny_wan(), FPS, silent)


def test_a_trained_audio_tower_keeps_its_own_positions() -> None:
    """Joint attention would turn its queries and keys by the video tower's clock."""
    trained = AVTransformer.of(ModelConfig(None, audio_tower(width=40, depth=3), TextConfig("features", TEXT)))
    with pytest.raises(ValueError, match=r"coupling=joint gives sound the picture's rotary positions"):
        graft_wan(tiny_wan(), FPS, trained, coupling="joint")


def test_export_refuses_what_wan_cannot_say() -> None:
    tower = TowerConfig(channels=16, width=40, heads=2, depth=1)
    with pytest.raises(ValueError, match=r"clock\.anchor=middle"):
        export_wan(AVTransformer.of(ModelConfig(tower, None, TextConfig("features", TEXT))))
    with pytest.raises(ValueError, match="captions as bytes"):
        export_wan(AVTransformer.of(ModelConfig(tower, None)))
    with pytest.raises(ValueError, match="no video tower"):
        wan_state(AVTransformer.of(ModelConfig(None, tower)))


def test_wan_from_its_folder_or_a_pipelines(tmp_path) -> None:
    wan = tiny_wan()
    wan.save_pretrained(tmp_path / "pipeline" / "transformer")
    for folder in (tmp_path / "pipeline", tmp_path / "pipeline" / "transformer"):
        model = graft_wan(folder, FPS, None)
        assert torch.equal(model.towers["video"].head_table, wan.scale_shift_table[0])
    wan.blocks[0].norm2 = torch.nn.Identity()
    wan.save_pretrained(tmp_path / "damaged")
    with pytest.raises(ValueError, match=r"damaged.*missing: blocks\.0\.norm2\.bias, blocks\.0\.norm2\.weight"):
        graft_wan(tmp_path / "damaged", FPS, None)


WAN_1_3B = {  # as published in Wan-AI/Wan2.1-T2V-1.3B-Diffusers, transformer/config.json
    "added_kv_proj_dim": None,
    "attention_head_dim": 128,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "ffn_dim": 8960,
    "freq_dim": 256,
    "image_dim": None,
    "in_channels": 16,
    "num_attention_heads": 12,
    "num_layers": 30,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "pos_embed_seq_len": None,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 1024,
    "text_dim": 4096,
}


@pytest.mark.parametrize("recipe", ["base_av_audio", "base_av"])
def test_what_a_graft_saves_is_what_the_base_recipes_start_from(recipe):
    """The way docs/graft.md grafts; a run refuses to start from another model than its own."""
    words = [f"recipe={recipe}", "data.path=latents", "start=grafted"]
    wanted = load(TrainConfig, "train", words).model
    assert tower_config_of_wan(WAN_1_3B, FPS) == wanted.video
    assert TowerConfig(channels=64, width=768, heads=12, depth=30) == wanted.audio
    assert BridgeConfig(heads=12) == wanted.bridge
    assert TextConfig(kind="features", width=WAN_1_3B["text_dim"]) == wanted.text
    assert wanted.coupling == "cross"
