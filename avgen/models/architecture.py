"""What a model is made of, as data: towers, bridge, captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from avgen.config import at_least_one, build
from avgen.models.attention import BACKENDS
from avgen.models.rope import Clock, Space

COUPLINGS = ("cross", "joint", "none")


@dataclass(frozen=True)
class TowerConfig:
    """One modality's transformer."""

    channels: int  # numbers per token, in and out
    width: int  # numbers per token between layers
    heads: int  # of its attentions, width / heads channels each
    depth: int  # layers
    mlp_ratio: float = 4.0  # of the MLP's hidden width to width
    clock: Clock = field(default_factory=Clock)  # how self-attention counts time; coupling=joint: video's for both
    space: Space = field(default_factory=Space)  # video only
    text_norm: bool = True  # layer norm before attention to the caption
    anchored: bool = False  # tokens know how far they are from the clip's ends and edges, not only from each other
    local: bool = False  # attention and MLP of every layer read each token together with those beside it

    def __post_init__(self) -> None:
        at_least_one(self, "channels", "width", "heads", "depth")
        if not self.mlp_ratio > 0:
            raise ValueError(f"mlp_ratio={self.mlp_ratio} must be positive")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")
        if self.head_dim % 2:
            raise ValueError(f"width / heads = {self.head_dim} must be even: rotary positions turn pairs of channels")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def mlp_width(self) -> int:
        return round(self.width * self.mlp_ratio)

    @property
    def axes(self) -> tuple[int, int, int]:
        """Channels of a head turned by time, rows and columns."""
        side = 2 * (self.head_dim // 6)
        return self.head_dim - 2 * side, side, side


@dataclass(frozen=True)
class BridgeConfig:
    """Cross-modal attention."""

    heads: int = 8  # of either direction
    head_dim: int = 64  # channels of a head, all turned by time
    at: tuple[int, ...] | None = None  # stages that have a bridge; None = every stage where both towers have a layer
    clock: Clock = field(default_factory=Clock)  # common to both streams
    focus: float = 1.5  # how strongly untrained heads look at what happens at the same time; 0 = not at all
    reach_s: float = 0.06  # untrained heads look from so much earlier to so much later, one after the other

    def __post_init__(self) -> None:
        if self.focus < 0 or self.reach_s < 0:
            raise ValueError(f"bridge focus={self.focus} and reach_s={self.reach_s} cannot be negative")
        at_least_one(self, "heads", "head_dim")
        if self.head_dim % 2:
            raise ValueError(f"bridge head_dim={self.head_dim} must be even: rotary positions turn pairs of channels")


@dataclass(frozen=True)
class TextConfig:
    """Where captions come from: `bytes` trains an encoder with the model, `features` takes a frozen encoder's."""

    kind: Literal["bytes", "features"] = "bytes"  # trained with the model, or of a frozen encoder
    width: int = 128  # of the features
    depth: int = 2  # of the byte encoder
    heads: int = 4  # of the byte encoder
    max_length: int = 256  # bytes of a caption, the rest is cut off

    def __post_init__(self) -> None:
        if self.kind not in ("bytes", "features"):
            raise ValueError(f"text kind {self.kind!r} must be bytes or features")
        at_least_one(self, "width", "depth", "heads", "max_length")
        if self.kind == "bytes" and self.width % self.heads:
            raise ValueError(f"width={self.width} of the byte encoder must be a multiple of heads={self.heads}")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the weights' names and shapes."""

    video: TowerConfig | None  # null: a model of sound alone
    audio: TowerConfig | None  # null: a model of pictures alone
    text: TextConfig = field(default_factory=TextConfig)
    bridge: BridgeConfig = field(default_factory=BridgeConfig)
    coupling: Literal["cross", "joint", "none"] = "cross"  # bridges, one attention over all tokens, or nothing
    attention: str = "sdpa"  # kernel: sdpa (torch chooses), cudnn, flash, efficient, math, xformers or flex

    def __post_init__(self) -> None:
        if self.video is None and self.audio is None:
            raise ValueError("a model needs a video tower, an audio tower or both")
        if self.coupling not in COUPLINGS:
            raise ValueError(f"coupling={self.coupling!r} must be one of {', '.join(COUPLINGS)}")
        if self.attention not in BACKENDS:
            raise ValueError(f"attention={self.attention!r} is unknown: choose one of {', '.join(BACKENDS)}")
        towers = self.towers
        if self.coupling == "joint" and len(towers) == 2:
            shapes = {(t.heads, t.head_dim, t.depth) for t in towers.values()}
            if len(shapes) > 1:
                raise ValueError(f"coupling=joint needs towers of equal heads, head_dim and depth, not {shapes}")
        shared = [i for i in range(self.stages) if len(self.layers(i)) == len(towers) == 2]
        wrong = [i for i in self.bridge.at or () if i not in shared]
        if wrong:
            raise ValueError(f"bridge.at={wrong}: only stages {shared} have a layer of both towers")

    @property
    def towers(self) -> dict[str, TowerConfig]:
        both = {"video": self.video, "audio": self.audio}
        return {m: tower for m, tower in both.items() if tower is not None}

    @property
    def stages(self) -> int:
        return max(tower.depth for tower in self.towers.values())

    def layers(self, stage: int) -> dict[str, int]:
        """Which layer of each tower a stage holds; a shallower tower's layers are spread evenly over the stages."""

        def before(tower: TowerConfig, stage: int) -> int:
            return stage * tower.depth // self.stages

        return {m: before(t, stage) for m, t in self.towers.items() if before(t, stage + 1) > before(t, stage)}

    def bridged(self, stage: int) -> bool:
        if self.coupling != "cross" or len(self.layers(stage)) < 2:
            return False
        return self.bridge.at is None or stage in self.bridge.at

    @property
    def bridges(self) -> int:
        """How many stages have one."""
        return sum(self.bridged(stage) for stage in range(self.stages))

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> ModelConfig:
        """The config back from plain values, as a checkpoint's config.json holds them."""
        ours = {name: value for name, value in saved.items() if not name.startswith("_")}  # the rest is diffusers'
        return build(cls, ours)
