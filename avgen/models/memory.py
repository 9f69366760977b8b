"""What a training step needs of one device's memory, before the model is built.

Activations are counted the way autograd keeps them: for every operation, the tensors its backward reads, each
storage once. `act` is the size of an activation: 4 bytes, 2 under bf16 autocast. Norms, modulation and gates
work in float32 (4 bytes) either way: in float32 training the tensor itself is kept, under autocast the copy
that `x.float()` makes.

Shape letters: B samples, N tokens, T = B x N rows, L caption tokens, K noise levels, D a tower's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from avgen.models.architecture import ModelConfig, TowerConfig
from avgen.models.blocks import PARTNER
from avgen.models.checkpointing import Checkpointing
from avgen.models.cost import LEVEL_CHANNELS, REBUILT, BatchShape, StreamShape, joint_stages, linears, parameters
from avgen.models.local import NEIGHBOURS
from avgen.models.rope import anchor_channels

Dtype = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Numerics:
    """How activations are kept."""

    act: int = 2  # bytes of an activation: 2 under bf16 autocast, 4 without
    fused_norm: bool = True  # CUDA's RMS norm keeps its input; elsewhere the normalised value is kept as well
    plain: bool = False  # attention=math, whose products are operations like others

    @classmethod
    def of(cls, dtype: Dtype, fused_norm: bool = True, attention: str = "sdpa") -> Numerics:
        return cls({"fp32": 4, "bf16": 2, "fp16": 2}[dtype], fused_norm, attention == "math")

    def weighed(self, samples: int, heads: int, channels: int, queries: int, keys: int) -> int:
        """What plain attention keeps beside a fused kernel: the weight of every key for every query and, where those
        are not in float32 themselves, a copy of queries, keys and values that is; but no log-sums."""
        if not self.plain:
            return 0
        copies = (4 - self.act) * samples * heads * channels * (queries + 2 * keys)
        return 4 * samples * heads * queries * (keys - 1) + copies

    def head(self, rows: int, channels: int) -> int:
        """Queries or keys from projection to attention: the norm's input in float32, the normed, the attended."""
        return rows * channels * (4 + 4 * (not self.fused_norm) + self.act)

    def modulated(self, rows: int, d: int, levels: int) -> int:
        """Layer norm's input and output in float32, 1 + scale per token, the result that a linear layer reads."""
        return rows * d * (4 + 4 + spread(levels) + self.act)

    def gated(self, rows: int, d: int, levels: int) -> int:
        """The update in float32 and its gate per token."""
        return rows * d * (4 + spread(levels))


def spread(levels: int) -> int:
    """Bytes per token and channel of a modulation value: none while one level serves all tokens."""
    return 4 if levels > 1 else 0


@dataclass(frozen=True)
class StageBytes:
    """One stage of the model, summed over its modalities."""

    kept: int  # what autograd keeps between forward and backward
    inputs: int  # of the stage: what full checkpointing keeps
    attended: int  # the outputs of its attention kernels: what `keep_attention` keeps besides


def tower_layer(tower: TowerConfig, b: int, s: StreamShape, text: int, n: Numerics) -> StageBytes:
    """One layer of one tower."""
    rows, d, act = b * s.tokens, tower.width, n.act
    output = rows * (act * d + 4 * tower.heads)  # of an attention kernel: the mix and each row's log-sum
    itself = n.modulated(rows, d, s.levels) + 2 * n.head(rows, d) + rows * d * act  # q, k, v
    itself += n.weighed(b, tower.heads, tower.head_dim, s.tokens, s.tokens)
    itself += output + s.padded * rows * d * act + n.gated(rows, d, s.levels)  # a mask multiplies the output anew
    normed = rows * d * (4 + act if tower.text_norm else act)
    caption = n.head(b * text, d) + b * text * d * act  # k and v
    read = normed + n.head(rows, d) + caption + output + rows * d * act  # captions are always masked
    read += n.weighed(b, tower.heads, tower.head_dim, s.tokens, text)
    think = n.modulated(rows, d, s.levels) + 2 * rows * tower.mlp_width * act + n.gated(rows, d, s.levels)
    tables = 2 * 4 * 6 * b * s.levels * d
    beside = tower.local * 2 * rows * d * 4  # what takes in its neighbours, before attention and before the MLP
    return StageBytes(itself + read + think + tables + beside, rows * d * act, 2 * output)


def bridge(config: ModelConfig, batch: BatchShape, n: Numerics) -> StageBytes:
    """One bridge, both directions."""
    inner = config.bridge.heads * config.bridge.head_dim
    kept = attended = 0
    for m, s in batch.streams.items():
        partner, d, rows = batch.streams[PARTNER[m]], config.towers[m].width, batch.samples * s.tokens
        shared = 4 * rows * d if n.act == 4 else 0  # in float32 both norms keep the same input
        kept += 2 * n.modulated(rows, d, s.levels) - shared
        kept += 2 * n.head(rows, inner) + rows * inner * n.act  # queries of one direction, keys and values of the other
        output = rows * (inner * n.act + 4 * config.bridge.heads)
        kept += n.weighed(batch.samples, config.bridge.heads, config.bridge.head_dim, s.tokens, partner.tokens)
        kept += output + partner.padded * rows * inner * n.act
        kept += n.gated(rows, d, s.levels) + 4 * 5 * batch.samples * s.levels * d
        attended += output
    return StageBytes(kept, 0, attended)


def joint(config: ModelConfig, batch: BatchShape, n: Numerics) -> StageBytes:
    """What joint attention keeps beside its towers' layers: each modality's slice of the mix, copied to be contiguous.

    A mask on the keys makes that copy anyway; a single sample's slice is contiguous as it is.
    """
    masked = [s.padded for s in batch.streams.values()]
    slices = {m: batch.samples * s.tokens * config.towers[m].width * n.act for m, s in batch.streams.items()}
    if any(masked):
        copied = sum(size for m, size in slices.items() if not batch.streams[m].padded)
    else:
        copied = sum(slices.values()) if batch.samples > 1 else 0
    return StageBytes(copied + across(config, batch) * n.plain, 0, 0)


def across(config: ModelConfig, batch: BatchShape) -> int:
    """Of one attention over all tokens, the weights that neither modality's own attention has."""
    tokens = [s.tokens for s in batch.streams.values()]
    heads = next(iter(config.towers.values())).heads
    return 4 * batch.samples * heads * (sum(tokens) ** 2 - sum(count**2 for count in tokens))


def stages(config: ModelConfig, batch: BatchShape, n: Numerics) -> list[StageBytes]:
    """Every stage of the model in order."""
    streams = {m: s for m, s in batch.streams.items() if m in config.towers}
    of = {m: tower_layer(config.towers[m], batch.samples, s, batch.text_of(m), n) for m, s in streams.items()}
    inputs = sum(layer.inputs for layer in of.values())
    found = []
    for stage in range(config.stages):
        parts = [of[m] for m in config.layers(stage) if m in of]
        if len(streams) == 2 and config.bridged(stage):
            parts.append(bridge(config, batch, n))
        elif len(streams) == 2 and joint_stages(config):
            parts.append(joint(config, batch, n))
        kept, attended = sum(p.kept for p in parts), sum(p.attended for p in parts)
        found.append(StageBytes(kept, inputs, attended))
    return found


def ends(config: ModelConfig, batch: BatchShape, n: Numerics) -> int:
    """What lies before the blocks and serves them all: captions, positions, levels, tokens in."""
    b, total = batch.samples, 0
    lengths = [count for count in (batch.text_tokens, batch.audio_text_tokens) if count is not None]
    t = config.text
    if t.kind == "bytes":  # per layer: two norms, q k v, attention twice (masked), MLP
        layer = t.width * (2 * 4 + 15 * n.act) + 4 * t.heads
        total += b * sum(lengths) * (t.depth * layer + t.width * 3 * 4)
        total += t.depth * sum(n.weighed(b, t.heads, t.width // t.heads, length, length) for length in lengths)
    for m, s in batch.streams.items():
        if m not in config.towers:
            continue
        tower, rows = config.towers[m], b * s.tokens
        total += b * batch.text_of(m) * (t.width + 3 * tower.width) * n.act
        total += 4 * rows * tower.head_dim  # cosines and sines of half a head's channels each
        total += 4 * b * s.levels * (LEVEL_CHANNELS + 12 * tower.width)
        if config.bridges and len(batch.streams) == 2:
            total += 4 * rows * config.bridge.head_dim
            total += 4 * b * ((2 * s.levels + 1) * 6 * tower.width)
        total += rows * (tower.channels + tower.anchored * anchor_channels(m)) * n.act
        total += tower.local * rows * NEIGHBOURS * (8 + 4)  # their places, and whether they are there
    return total


def heads(config: ModelConfig, batch: BatchShape, n: Numerics) -> int:
    """What lies behind the blocks, whose backward pass is over when theirs begins."""
    total = 0
    for m, s in batch.streams.items():
        if m in config.towers:
            tower, rows = config.towers[m], batch.samples * s.tokens
            total += rows * tower.channels * n.act + n.modulated(rows, tower.width, s.levels)
    return total


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a training step, everything on that one device."""

    weights: int  # float32
    gradients: int  # float32, as with accumulation: alive throughout
    optimiser: int  # AdamW: two float32 moments
    ema: int  # a float32 copy of the weights
    casts: int  # bf16 copies of the weights that autocast has made and not yet dropped
    kept: int  # activations kept from the forward pass
    rebuilt: int  # activations of the one block that checkpointing is computing again
    working: int  # gradients of activations and float32 intermediates in flight

    @property
    def activations(self) -> int:
        return self.kept + self.rebuilt + self.working

    @property
    def states(self) -> int:
        return self.weights + self.gradients + self.optimiser + self.ema

    @property
    def total(self) -> int:
        return self.states + self.casts + self.activations


def memory(
    config: ModelConfig,
    batch: BatchShape,
    dtype: Dtype = "bf16",
    checkpointing: Checkpointing = "none",
    ema: bool = True,
    fused_norm: bool = True,
) -> Memory:
    """The predicted peak: the end of the forward pass or, under checkpointing, the rebuilding of the largest block."""
    n = Numerics.of(dtype, fused_norm, config.attention)
    every = stages(config, batch, n)
    cast = {True: 0, False: 0}  # inside blocks and outside
    for linear in linears(config):
        if linear.autocast and dtype != "fp32":
            cast[linear.in_block] += n.act * linear.parameters
    kept, rebuilt, casts, head = ends(config, batch, n), 0, sum(cast.values()), heads(config, batch, n)
    if checkpointing == "none":
        kept += sum(stage.kept for stage in every) + head
    else:
        keeps = checkpointing == "keep_attention" and config.attention not in REBUILT
        kept += sum(stage.inputs + keeps * stage.attended for stage in every)
        # in float32 a block's input is the same tensor that its first norm keeps
        block = max(s.kept - keeps * s.attended - (s.inputs if n.act == 4 else 0) for s in every)
        own = cast[True] // config.stages
        if block + own > head + casts:  # else the peak is the end of the forward pass, before autocast's copies go
            rebuilt, casts = block, own
        else:
            kept += head
    weights = 4 * parameters(config).total
    return Memory(weights, weights, 2 * weights, weights * ema, casts, kept, rebuilt, working(config, batch, n))


def working(config: ModelConfig, batch: BatchShape, n: Numerics) -> int:
    """The gradient of each stream's activations, and the most that one operation's surroundings hold besides."""
    gradients, most = 0, 0
    for m, s in batch.streams.items():
        if m not in config.towers:
            continue
        tower, rows = config.towers[m], batch.samples * s.tokens
        gradients += n.act * rows * tower.width
        # forward, in the residual: a copy of x, gate x update, their sum; with several levels, shift and scale besides
        floats = (3 if n.act < 4 else 2) + (2 if s.levels > 1 else 0)
        # backward, in the MLP: the gradient of its hidden layer
        most = max(most, 4 * floats * rows * tower.width, n.act * rows * tower.mlp_width)
    return gradients + most
