"""AVTransformer: two towers, one for picture and one for sound, on one clock.

    x_t, levels, times, captions  ->  velocity = noise - data, per stream

Reading order: the configs say what is built, `forward` what happens, blocks.py what a layer does.
Shape letters: B samples, N tokens, K noise levels, D a tower's width, C latent channels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from avgen.models.architecture import ModelConfig, TextConfig, TowerConfig
from avgen.models.attention import choose
from avgen.models.blocks import (
    PARTNER,
    Attention,
    Block,
    Bridge,
    BridgeContext,
    Context,
    JointBlock,
    Modulation,
    Streams,
    TowerBlock,
    modulate,
    spread,
)
from avgen.models.checkpointing import Checkpointing
from avgen.models.compilation import compile_blocks
from avgen.models.loading import in_one_line
from avgen.models.local import neighbourhood
from avgen.models.rope import (
    Rotation,
    anchor_channels,
    anchors,
    space_time_rotation,
    span_of,
    time_rotation,
)
from avgen.models.sharing import Alone, Sharing, part
from avgen.models.text import ByteLayer, Captions
from avgen.types import Batch, Stream, Velocity

LEVEL_CHANNELS = 256


@dataclass(frozen=True)
class Perturbation:
    """What a guidance pass changes, as data: no recompilation, and passes can share a batch. None = nothing."""

    bridge_on: Tensor | None = None  # (B,) float32: 0 turns the cross-modal attention of a sample off
    video: Tensor | None = None  # (B, depth) bool: video layers whose self-attention keeps to each token
    audio: Tensor | None = None  # (B, depth) bool

    def of(self, layers: dict[str, int]) -> dict[str, Tensor]:
        """Per modality, (B,) bool: the samples in which this layer of it is perturbed."""
        return {m: which[:, layer] for m, layer in layers.items() if (which := getattr(self, m)) is not None}


RunBlocks = Callable[[Sequence[Block], Streams, dict[str, Context], Perturbation], Streams]


def run_blocks(blocks: Sequence[Block], x: Streams, context: dict[str, Context], perturbation: Perturbation) -> Streams:
    for block in blocks:
        x = block(x, context, perturbation.of(block.layers))
    return x


class Tower(nn.Module):
    """A tower's ends: tokens in, noise levels, captions, velocity out. Its layers stand in the blocks."""

    def __init__(self, config: TowerConfig, text: TextConfig, modality: str) -> None:
        super().__init__()
        width = config.width
        self.embed = nn.Linear(config.channels, width)
        self.anchor = nn.Linear(anchor_channels(modality), width) if config.anchored else None
        self.level_embed = nn.Sequential(nn.Linear(LEVEL_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))
        self.level_modulate = nn.Linear(width, 6 * width)
        self.text_embed = nn.Sequential(
            nn.Linear(text.width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.head_table = nn.Parameter(torch.zeros(2, width))
        self.head = nn.Linear(width, config.channels)

    def tokens(self, stream: Stream, span: Tensor | None) -> Tensor:
        """The stream's (B, N, C), in any float dtype, in a clip of that (B, 2) span -> (B, N, D) in the weights'"""
        # Tokens that do not lie in a row torch multiplies in another way where the weights are frozen, which some
        # processors round otherwise: freezing must not change what a model says.
        x = self.embed(stream.x.type_as(self.embed.weight).contiguous())
        if self.anchor is None:
            return x
        assert span is not None
        return x + self.anchor(anchors(stream, span).type_as(self.anchor.weight))

    def levels(self, levels: Tensor) -> Tensor:
        """(B, K) -> (B, K, D) float32"""
        return self.level_embed(sinusoid(levels))

    def modulation(self, level: Tensor, slot: Tensor) -> Modulation:
        return Modulation(self.level_modulate(F.silu(level)).unflatten(-1, (6, -1)), slot)

    def out(self, x: Tensor, level: Tensor, slot: Tensor) -> Tensor:
        """(B, N, D) with its levels' embedding (B, K, D) -> (B, N, C) velocity"""
        shift, scale = (spread(level + part.float(), slot) for part in self.head_table)
        return self.head(modulate(x, shift, scale))


class BridgeLevels(nn.Module):
    """How noise levels modulate every bridge of one stream: queries and keys by its own level, the gate by both."""

    def __init__(self, width: int, partner: int) -> None:
        super().__init__()
        self.own = nn.Linear(width, 5 * width)
        self.partner = nn.Linear(partner, width)

    def forward(self, own: Tensor, partner: Tensor) -> Tensor:
        """(B, K, D) own levels, (B, D') the partner's -> (B, K, 5, D)"""
        values = self.own(F.silu(own)).unflatten(-1, (5, -1))
        gate = F.pad(self.partner(F.silu(partner))[:, None, None], (0, 0, 4, 0))
        return values + gate


def sinusoid(level: Tensor) -> Tensor:
    """(...) levels in [0, 1] -> (..., 256) float32"""
    half = LEVEL_CHANNELS // 2
    rates = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float32, device=level.device))
    angles = level.float()[..., None] * 1000 * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class AVTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Dual-branch diffusion transformer. Build it with `AVTransformer.of(ModelConfig(...))`."""

    _supports_gradient_checkpointing = True
    _repeated_blocks = ["Block", "JointBlock"]  # noqa: RUF012
    _no_split_modules = ["Block", "JointBlock"]  # noqa: RUF012
    # loading compares these with whole parts of a parameter's dotted name
    _keep_in_fp32_modules = [  # noqa: RUF012
        *("level_embed", "level_modulate", "bridge_levels", "table", "head_table"),
        *("norm_q", "norm_k", "text_norm", "taps"),
    ]
    _skip_layerwise_casting_patterns = ["level", "table", "norm", "embed", "anchor", "head"]  # noqa: RUF012

    towers: dict[str, Tower]
    bridge_levels: dict[str, BridgeLevels]
    blocks: list[Block]

    @register_to_config
    def __init__(
        self,
        video: dict | None,
        audio: dict | None,
        text: dict,
        bridge: dict,
        coupling: str = "cross",
        attention: str = "sdpa",
    ) -> None:
        super().__init__()
        saved = {"video": video, "audio": audio, "text": text, "bridge": bridge}
        self.spec = spec = ModelConfig.of({**saved, "coupling": coupling, "attention": attention})
        self.sharing: Sharing = Alone()
        self.captions = Captions(spec.text, spec.attention)
        towers = {m: Tower(tower, spec.text, m) for m, tower in spec.towers.items()}
        self.towers = nn.ModuleDict(towers)  # type: ignore[assignment]
        widths = {m: tower.width for m, tower in spec.towers.items()}
        self.bridge_levels = nn.ModuleDict(  # type: ignore[assignment]
            {m: BridgeLevels(widths[m], widths[PARTNER[m]]) for m in widths} if spec.bridges else {}
        )
        self.blocks = nn.ModuleList(build_block(spec, i) for i in range(spec.stages))  # type: ignore[assignment]
        self.initialise()

    @classmethod
    def of(cls, config: ModelConfig) -> AVTransformer:
        return cls(**asdict(config))

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, **options: Any) -> AVTransformer:
        """ModelMixin's, but a weight that the file lacks or that has no place in the model is an error."""
        wants_info = options.pop("output_loading_info", False)
        with in_one_line(f"the model in {path}"):
            model, info = super().from_pretrained(path, output_loading_info=True, **options)
        require_whole(str(path), info)
        return (model, info) if wants_info else model  # type: ignore[return-value]

    def save_pretrained(self, folder: str | os.PathLike, **options: Any) -> None:
        """ModelMixin's, but adapted layers, whose weights go by other names, are refused while there is time."""
        if self._hf_peft_config_loaded:
            raise ValueError("the model has LoRA adapters: save those with save_lora, or fold them in with fold_lora")
        super().save_pretrained(folder, **options)

    def initialise(self) -> None:
        """Every gate, modulation and head at zero: a fresh block passes its input on, a fresh bridge is not there."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        zero: list[nn.Module] = [self.bridge_levels[m] for m in self.bridge_levels]
        for tower in self.towers.values():
            zero += [tower.level_modulate, tower.head]
        for block in self.blocks:
            zero += [tower.text_attn.to_out for tower in block.towers.values()]
            if block.bridge is not None:
                block.bridge.align(self.spec.bridge)
        for module in zero:
            for parameter in module.parameters():
                nn.init.zeros_(parameter)

    def forward(self, batch: Batch, perturbation: Perturbation | None = None, run: RunBlocks = run_blocks) -> Velocity:
        """run: how the tokens pass the blocks; a sampler may leave some out and foretell what they would add"""
        perturbation = perturbation or Perturbation()
        streams = {m: s for m, s in batch.streams.items() if m in self.towers}
        if not streams:
            raise ValueError(f"the batch has no stream for this model's towers ({', '.join(self.towers)})")
        texts = self.read_captions(batch)
        mine = {m: part(s, self.sharing) for m, s in streams.items()}
        with torch.autocast(batch.video_text.x.device.type, enabled=False):
            levels = {m: self.towers[m].levels(s.levels) for m, s in streams.items()}
            context = self.contexts(streams, mine, levels, texts, perturbation.bridge_on)
        anchored = any(tower.anchored for tower in self.spec.towers.values())
        span = span_of(streams.values()) if anchored else None
        x = {m: self.towers[m].tokens(s, span) for m, s in mine.items()}
        x = run(self.blocks, x, context, perturbation)
        made = {m: self.towers[m].out(x[m], levels[m], s.slot) for m, s in mine.items()}
        return Velocity(**{m: context[m].everyone(v) for m, v in made.items()})

    def read_captions(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Per tower, the caption's features at the tower's width and which of them count."""
        video = self.captions(batch.video_text)
        audio = video if batch.audio_text is batch.video_text else self.captions(batch.audio_text)
        both = {"video": video, "audio": audio}
        return {m: (tower.text_embed(both[m][0]), both[m][1]) for m, tower in self.towers.items()}

    def contexts(
        self,
        streams: dict[str, Stream],
        mine: dict[str, Stream],
        levels: Streams,
        texts: dict[str, tuple[Tensor, Tensor]],
        bridge_on: Tensor | None,
    ) -> dict[str, Context]:
        """What every block reads, computed once, in float32; `mine` are the streams' tokens here."""
        bridge: dict[str, BridgeContext] = {}
        if len(streams) == 2 and self.bridge_levels:
            clock, channels = self.spec.bridge.clock, self.spec.bridge.head_dim
            mean = {m: self.towers[m].levels(mean_level(s)[:, None])[:, 0] for m, s in streams.items()}
            for m, s in mine.items():
                values = self.bridge_levels[m](levels[m], mean[PARTNER[m]])
                bridge[m] = BridgeContext(Modulation(values, s.slot), time_rotation(s.time, clock, channels))
        return {
            m: Context(
                modulation=self.towers[m].modulation(levels[m], mine[m].slot),
                rotation=self.rotation(m, mine[m]),
                keys=s.valid,
                everyone=self.sharing.everyone(s.x.shape[1]),
                mine=self.sharing.mine,
                text=texts[m][0],
                text_keys=texts[m][1],
                beside=neighbourhood(s) if self.spec.towers[m].local else None,
                bridge=bridge.get(m),
                bridge_on=bridge_on,
            )
            for m, s in streams.items()
        }

    def rotation(self, modality: str, stream: Stream) -> Rotation:
        tower = self.spec.towers[modality]
        if self.spec.coupling == "joint" and self.spec.video is not None:
            tower = self.spec.video  # tokens that attend to each other must be turned alike
        elif modality == "audio":
            return time_rotation(stream.time, tower.clock, tower.head_dim)
        return space_time_rotation(stream, tower.clock, tower.space, tower.axes)

    def set_checkpointing(self, mode: Checkpointing) -> None:
        """Recompute activations in the backward pass: not at all, all of them, or all but attention's outputs."""
        if mode not in get_args(Checkpointing):
            raise ValueError(f"checkpointing={mode!r} must be one of {', '.join(get_args(Checkpointing))}")
        for block in self.blocks:
            block.checkpointing = mode

    def enable_gradient_checkpointing(self, *_: object) -> None:
        self.set_checkpointing("full")

    def disable_gradient_checkpointing(self) -> None:
        self.set_checkpointing("none")

    def compile_blocks(self, max_shapes: int = 8) -> None:
        """torch.compile every block, once per shape of batch and for at most `max_shapes` of them."""
        compile_blocks(self, max_shapes)

    def set_attention(self, backend: str, half: bool = True) -> None:
        """Another attention backend for towers, bridge and captions, checked against the model's device.

        half: whether the work is in half precision
        """
        backend = choose(backend, self.device, half)
        for module in self.modules():
            if isinstance(module, Attention | ByteLayer):
                module.backend = backend
        self.spec = replace(self.spec, attention=backend)
        self.register_to_config(attention=backend)


def require_whole(path: str, info: Mapping[str, Any]) -> None:
    """diffusers only warns of weights it did not find or could not place, and leaves the former on `meta`."""
    wrong = {what: sorted(map(str, info[f"{what}_keys"])) for what in ("missing", "unexpected", "mismatched")}
    if any(wrong.values()):
        listed = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in wrong.items() if keys)
        raise ValueError(f"the weights in {path} do not fit the model its config.json describes: {listed}")


def mean_level(stream: Stream) -> Tensor:
    """(B,) float32: how noisy a partner is, over its real tokens."""
    if stream.valid is None:
        return stream.level.mean(1)
    return (stream.level * stream.valid).sum(1) / stream.valid.sum(1).clamp(min=1)


def build_block(spec: ModelConfig, stage: int) -> Block:
    layers = spec.layers(stage)
    towers = {m: TowerBlock(spec.towers[m], spec.attention) for m in layers}
    widths = {m: spec.towers[m].width for m in layers}
    bridge = Bridge(widths, spec.bridge, spec.attention) if spec.bridged(stage) else None
    kind = JointBlock if spec.coupling == "joint" else Block
    return kind(layers, towers, bridge)
