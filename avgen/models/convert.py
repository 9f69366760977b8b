"""Grafting: pretrained towers into an AVTransformer, and the video tower back out.

A tower's weights have names of their own (`embed.weight`, `layers.3.attn.to_q.bias`), whatever stage of the
model a layer stands in. Every conversion goes through them and is strict in both directions: each source
weight is used once, each weight of the tower is set, or the names are in the error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from einops import rearrange
from torch import Tensor

from avgen.models.architecture import BridgeConfig, ModelConfig, TextConfig, TowerConfig
from avgen.models.blocks import EPS
from avgen.models.dit import LEVEL_CHANNELS, AVTransformer, require_whole
from avgen.models.rope import Clock, Space
from avgen.types import TimeGrid

WAN_TIME = TimeGrid(stride=4, first=1)  # of both Wan codecs
THETA = 10_000.0  # of Wan's rotary positions; its class offers no other
PATCH = 2  # latent cells per token side of every published Wan

# Wan's name of a module -> the tower's
ENDS = {
    "patch_embedding": "embed",
    "condition_embedder.time_embedder.linear_1": "level_embed.0",
    "condition_embedder.time_embedder.linear_2": "level_embed.2",
    "condition_embedder.time_proj": "level_modulate",
    "condition_embedder.text_embedder.linear_1": "text_embed.0",
    "condition_embedder.text_embedder.linear_2": "text_embed.2",
    "scale_shift_table": "head_table",
    "proj_out": "head",
}
ATTENTION = {name: name for name in ("to_q", "to_k", "to_v", "norm_q", "norm_k")} | {"to_out.0": "to_out"}
LAYER = {
    **{f"attn1.{theirs}": f"attn.{ours}" for theirs, ours in ATTENTION.items()},
    **{f"attn2.{theirs}": f"text_attn.{ours}" for theirs, ours in ATTENTION.items()},
    "norm2": "text_norm",
    "ffn.net.0.proj": "mlp.0",
    "ffn.net.2": "mlp.2",
    "scale_shift_table": "table",
}

ROTATED = re.compile(
    r"^layers\.\d+\.attn\.(to|norm)_[qk]\."
)  # the tower's weights that make queries and keys with positions


def tower_config_of_wan(wan: Mapping[str, Any], fps: float, time: TimeGrid = WAN_TIME) -> TowerConfig:
    """The tower that a `WanTransformer3DModel`'s weights fit, with the rotary units they were trained in.

    `fps` is the frame rate of Wan's training (16 for 2.1 and 2.2-A14B, 24 for 2.2-TI2V-5B), not of the clips to
    come: Wan counts latent frames, and this clock puts latent frame f of a clip at that rate at exactly f.
    Step f ends at (first + f * stride) / fps seconds, so the end is the anchor and first / fps the origin.
    """
    patch = refuse_unless_plain(wan)
    width = wan["num_attention_heads"] * wan["attention_head_dim"]
    return TowerConfig(
        channels=wan["in_channels"] * patch**2,
        width=width,
        heads=wan["num_attention_heads"],
        depth=wan["num_layers"],
        mlp_ratio=wan["ffn_dim"] / width,
        clock=Clock(units_per_s=fps / time.stride, anchor="end", origin_s=time.first / fps, theta=THETA),
        space=Space(kind="index", theta=THETA),
        text_norm=wan["cross_attn_norm"],
    )


def refuse_unless_plain(wan: Mapping[str, Any]) -> int:
    """The patch side of a text-to-video Wan; ValueError for one with parts or settings that a tower lacks."""
    for key in ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"):
        if wan[key] is not None:
            raise ValueError(
                f"the Wan checkpoint has {key}={wan[key]}: its attention to image embeddings has no place in a tower. "
                "Take a text-to-video checkpoint; the first frame is given as tokens of level 0 instead"
            )
    time, rows, columns = wan["patch_size"]
    if time != 1 or rows != columns:
        raise ValueError(f"the Wan checkpoint has patch_size={tuple(wan['patch_size'])}: it must be (1, p, p)")
    out = wan["out_channels"] or wan["in_channels"]
    if wan["in_channels"] != out:
        raise ValueError(
            f"the Wan checkpoint reads {wan['in_channels']} channels and predicts {out}: a tower's must be equal. "
            "Checkpoints with a condition stacked on the channels (image-to-video, control) cannot be grafted"
        )
    wanted = {"qk_norm": "rms_norm_across_heads", "eps": EPS, "freq_dim": LEVEL_CHANNELS}
    for key, value in wanted.items():
        if wan[key] != value:
            raise ValueError(f"the Wan checkpoint has {key}={wan[key]}: a tower is built for {value}")
    return rows


def graft_wan(
    wan: WanTransformer3DModel | str | Path,
    fps: float,
    audio: TowerConfig | AVTransformer | None,
    *,
    copy_layers: bool = False,
    bridge: BridgeConfig | None = None,
    coupling: str = "cross",
    attention: str = "sdpa",
    time: TimeGrid = WAN_TIME,
    subfolder: str = "transformer",
) -> AVTransformer:
    """A model whose video tower is Wan's, beside a fresh audio tower, another model's, or none.

    `wan` is a model, a folder or a hub id (of a pipeline: `subfolder` says which of its models). With
    `copy_layers` a fresh audio tower starts from the video layers (see `copy_video_layers`). The bridge is
    fresh and its gates closed, so with coupling=cross each tower still answers exactly as before.
    """
    source = wan if isinstance(wan, WanTransformer3DModel) else load_wan(wan, subfolder)
    settings = dict(source.config)
    given = audio.spec if isinstance(audio, AVTransformer) else None
    config = ModelConfig(
        video=tower_config_of_wan(settings, fps, time),
        audio=audio_config(audio),
        text=TextConfig(kind="features", width=settings["text_dim"]),
        bridge=bridge or BridgeConfig(),
        coupling=coupling,  # type: ignore[arg-type]
        attention=attention,
    )
    if given is not None and (given.text.kind, given.text.width) != ("features", config.text.width):
        raise ValueError(
            f"the audio tower reads {given.text.kind} captions of width {given.text.width}, Wan's {config.text.width} "
            "features wide ones: both towers need one text encoder. Train the audio tower on Wan's captions first"
        )
    if given is not None and coupling == "joint":
        raise ValueError(
            "coupling=joint gives sound the picture's rotary positions, which an audio tower that was trained without "
            "Wan's has never seen: take coupling=cross, or give audio as a TowerConfig"
        )
    if copy_layers and not isinstance(audio, TowerConfig):
        raise ValueError("copy_layers=True starts a fresh audio tower: give audio as a TowerConfig")
    model = AVTransformer.of(config)
    load_tower(model, "video", tower_of_wan(source.state_dict(), settings))
    if isinstance(audio, AVTransformer):
        load_tower(model, "audio", tower_state(audio, "audio"))
        model.captions.load_state_dict(audio.captions.state_dict())  # its null is the only trained one
    if copy_layers:
        copy_video_layers(model)
    return model.eval()


def audio_config(audio: TowerConfig | AVTransformer | None) -> TowerConfig | None:
    if not isinstance(audio, AVTransformer):
        return audio
    if audio.spec.audio is None:
        raise ValueError("the model given as audio has no audio tower")
    return audio.spec.audio


def load_wan(path: str | Path, subfolder: str) -> WanTransformer3DModel:
    """Wan's model from a folder of its own, or from the subfolder of a pipeline's folder or hub id."""
    inside = "" if (Path(path) / "config.json").is_file() else subfolder
    model, info = WanTransformer3DModel.from_pretrained(path, subfolder=inside, output_loading_info=True)
    require_whole(str(path), info)
    return model


@torch.no_grad()
def copy_video_layers(model: AVTransformer) -> None:
    """Start the audio tower from the video tower: everything but its embedding, its anchors, its head and what mixes
    neighbours, which stay fresh: a picture has others than a sound.

    Both towers need the same width, heads and MLP; a shallower audio tower takes evenly spread layers. What the
    video tower's heads did along rows and columns they now do along time too: a start, not a working tower.
    """
    video, audio = model.spec.video, model.spec.audio
    if video is None or audio is None:
        raise ValueError("copying the video tower's layers needs a model with both towers")
    for name in ("width", "heads", "mlp_width", "text_norm"):
        ours, theirs = getattr(audio, name), getattr(video, name)
        if ours != theirs:
            raise ValueError(f"audio.{name}={ours} must equal the video tower's {theirs} for its layers to be copied")
    theirs = tower_state(model, "video")
    state = tower_state(model, "audio")
    for name in state:
        if not name.startswith(("embed.", "anchor.", "head.")) and not name.endswith(".taps"):
            origin = re.sub(r"^layers\.(\d+)", lambda m: f"layers.{int(m[1]) * video.depth // audio.depth}", name)
            state[name] = theirs[origin]
    load_tower(model, "audio", state)


def tower_names(model: AVTransformer, modality: str) -> dict[str, str]:
    """The tower's own name of each of its weights -> the model's."""
    prefix = f"towers.{modality}."
    names = {f"{name}": f"{prefix}{name}" for name, _ in model.towers[modality].named_parameters()}
    for stage, block in enumerate(model.blocks):
        if modality in block.layers:
            for name, _ in block.towers[modality].named_parameters():
                names[f"layers.{block.layers[modality]}.{name}"] = f"blocks.{stage}.{prefix}{name}"
    return names


def tower_state(model: AVTransformer, modality: str) -> dict[str, Tensor]:
    """The tower's weights by its own names: they share memory with the model."""
    state = model.state_dict()
    return {ours: state[name] for ours, name in tower_names(model, modality).items()}


@torch.no_grad()
def load_tower(model: AVTransformer, modality: str, weights: Mapping[str, Tensor]) -> None:
    """Set every weight of one tower, in the model's own dtype."""
    into = tower_state(model, modality)
    require_same(weights, into, f"weights of the {modality} tower")
    for name, value in into.items():
        if value.shape != weights[name].shape:
            found, wanted = tuple(weights[name].shape), tuple(value.shape)
            raise ValueError(f"{modality} tower: {name} has shape {found} in the source, but {wanted} here")
        value.copy_(weights[name])


def require_same(found: Collection[str], wanted: Collection[str], what: str) -> None:
    missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or unexpected:
        raise ValueError(f"{what} do not match: missing {missing or 'none'}, unexpected {unexpected or 'none'}")


@dataclass(frozen=True)
class Turned:
    """How one weight's layout changes on the way in, and back."""

    inward: Callable[[Tensor], Tensor]
    outward: Callable[[Tensor], Tensor]


def turned(name: str, patch: int, heads: int) -> Turned:
    """Wan's patch convolution reads (c p q) as a linear layer would; its head writes (p q c); its tables have
    a batch dimension; its rotary positions turn neighbouring channels of a head, where ours turn its halves."""
    sides = {"p": patch, "q": patch}
    if ROTATED.search(name):
        return Turned(
            lambda w: rearrange(w, "(h r pair) ... -> (h pair r) ...", h=heads, pair=2),
            lambda w: rearrange(w, "(h pair r) ... -> (h r pair) ...", h=heads, pair=2),
        )
    if name == "embed.weight":
        return Turned(lambda w: w.flatten(1), lambda w: rearrange(w, "d (c t p q) -> d c t p q", t=1, **sides))
    if name in ("head.weight", "head.bias"):
        return Turned(
            lambda w: rearrange(w, "(p q c) ... -> (c p q) ...", **sides),
            lambda w: rearrange(w, "(c p q) ... -> (p q c) ...", **sides),
        )
    if name.split(".")[-1] in ("table", "head_table"):
        return Turned(lambda w: w.squeeze(0), lambda w: w.unsqueeze(0))
    return Turned(lambda w: w, lambda w: w)


def wan_names(depth: int, text_norm: bool) -> dict[str, str]:
    """Wan's name of each weight -> the tower's."""
    modules = dict(ENDS)
    for i in range(depth):
        modules |= {f"blocks.{i}.{theirs}": f"layers.{i}.{ours}" for theirs, ours in LAYER.items()}
    names = {}
    for theirs, ours in modules.items():
        if ours.endswith("table"):
            names[theirs] = ours
        elif text_norm or not ours.endswith("text_norm"):
            kinds = ("weight",) if ours.endswith(("norm_q", "norm_k")) else ("weight", "bias")
            names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in kinds}
    return names


def tower_of_wan(weights: Mapping[str, Tensor], wan: Mapping[str, Any]) -> dict[str, Tensor]:
    """Wan's weights by the tower's names and in its layout."""
    patch = refuse_unless_plain(wan)
    names = wan_names(wan["num_layers"], wan["cross_attn_norm"])
    require_same(weights, names, "weights of the Wan checkpoint")
    return {
        ours: turned(ours, patch, wan["num_attention_heads"]).inward(weights[theirs]) for theirs, ours in names.items()
    }


def wan_state(model: AVTransformer, patch: int = PATCH) -> dict[str, Tensor]:
    """The video tower's weights as a `WanTransformer3DModel` names and lays them out: `graft_wan` undone."""
    tower = video_tower(model)
    weights = tower_state(model, "video")
    names = wan_names(tower.depth, tower.text_norm)
    require_same(weights, names.values(), "weights of the video tower")
    return {
        theirs: turned(ours, patch, tower.heads).outward(weights[ours]).contiguous() for theirs, ours in names.items()
    }


def wan_config(model: AVTransformer, patch: int = PATCH) -> dict[str, Any]:
    """The settings of a `WanTransformer3DModel` that computes what the video tower does on its own."""
    tower = video_tower(model)
    if model.spec.text.kind != "features":
        raise ValueError("the video tower reads captions as bytes; Wan reads features of a frozen encoder")
    wanted = {"clock.anchor": "end", "clock.theta": THETA, "space.kind": "index", "space.theta": THETA}
    for key, value in wanted.items():
        part, name = key.split(".")
        found = getattr(getattr(tower, part), name)
        if found != value:
            raise ValueError(f"the video tower has {key}={found}, but Wan counts positions with {value}")
    if tower.channels % patch**2:
        raise ValueError(f"patch={patch}: the video tower's {tower.channels} channels are no multiple of {patch**2}")
    return {
        "patch_size": (1, patch, patch),
        "num_attention_heads": tower.heads,
        "attention_head_dim": tower.head_dim,
        "in_channels": tower.channels // patch**2,
        "out_channels": tower.channels // patch**2,
        "text_dim": model.spec.text.width,
        "freq_dim": LEVEL_CHANNELS,
        "ffn_dim": tower.mlp_width,
        "num_layers": tower.depth,
        "cross_attn_norm": tower.text_norm,
        "eps": EPS,
    }


def export_wan(model: AVTransformer, patch: int = PATCH) -> WanTransformer3DModel:
    """The video tower as a diffusers model, for Wan's own pipelines. The bridge and the null caption stay behind."""
    wan = WanTransformer3DModel(**wan_config(model, patch))
    wan.load_state_dict(wan_state(model, patch), strict=True)
    return wan.eval()


def video_tower(model: AVTransformer) -> TowerConfig:
    if model.spec.video is None:
        raise ValueError("the model has no video tower")
    return model.spec.video
