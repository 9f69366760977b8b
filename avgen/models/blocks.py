"""The transformer blocks: two towers' layers side by side and the bridge between them.

A block is: self-attention inside each modality -> attention to the caption -> attention to the other modality ->
MLP; in local towers self-attention and MLP read each token with its neighbours. Activations travel as
{"video": ..., "audio": ...}; a modality that the batch lacks is simply not in the dict, so no forward pass asks which
task it is.

Shape letters: B samples, N tokens, L caption tokens, K noise levels, D a tower's width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avgen.models.architecture import BridgeConfig, TowerConfig
from avgen.models.attention import attend
from avgen.models.checkpointing import Checkpointing, checkpointed
from avgen.models.local import Local, Neighbourhood
from avgen.models.rope import Rotation, rotate, turned
from avgen.models.sharing import Everyone, unchanged

Streams = dict[str, Tensor]  # modality -> (B, N, D)
PARTNER = {"video": "audio", "audio": "video"}
ATTENTION_PARTS, MLP_PARTS = slice(0, 3), slice(3, 6)  # of a tower block's modulation
EPS = 1e-6


@dataclass(frozen=True)
class Modulation:
    """adaLN values of every noise level in use, computed once per forward and shared by all blocks."""

    values: Tensor  # (B, K, parts, D) float32
    slot: Tensor  # (B, N) which level is the token's

    def under(self, table: Tensor, parts: slice = slice(None)) -> tuple[Tensor, ...]:
        """The block's own table (parts, D) added, per token: tensors (B, N or 1, D) float32 of the parts asked for."""
        own = self.values[:, :, parts] + table[parts].float()
        return tuple(spread(part, self.slot) for part in own.unbind(2))


@dataclass(frozen=True)
class BridgeContext:
    """What the bridges read of one stream."""

    modulation: Modulation  # 5 parts: shift, scale as query; shift, scale as key; gate
    rotation: Rotation


@dataclass(frozen=True)
class Context:
    """What the blocks read of one stream besides its activations. Not a tuple on purpose: wrappers that
    cast tuples of inputs to half precision must leave positions and modulation alone."""

    modulation: Modulation  # 6 parts: shift, scale, gate of self-attention, then of the MLP
    rotation: Rotation
    keys: Tensor | None  # (B, N) bool, None when all tokens are real; of all tokens, wherever they are
    everyone: Everyone  # this stream's keys, values or features, from the tokens here to all of them
    mine: Callable[[Tensor], Tensor]  # and back from all of them to the tokens here
    text: Tensor  # (B, L, D)
    text_keys: Tensor  # (B, L) bool
    beside: Neighbourhood | None  # which of all tokens stand beside which; None unless the tower is local
    bridge: BridgeContext | None  # None when there is no partner to attend to
    bridge_on: Tensor | None  # (B,) float32 factor of what comes from the partner, None = 1


def spread(values: Tensor, slot: Tensor) -> Tensor:
    """(B, K, D) per level -> (B, N, D) per token; (B, 1, D), left to broadcasting, when there is one level.

    A few levels are selected rather than gathered: the backward of a gather adds N rows into K by
    atomics, that of a selection is a plain sum.
    """
    count = values.shape[1]
    if count == 1:
        return values
    if count > 4:
        return values.gather(1, slot[..., None].expand(-1, -1, values.shape[-1]))
    out = values[:, :1]
    for k in range(1, count):
        out = torch.where((slot == k)[..., None], values[:, k : k + 1], out)
    return out


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights, scaled and shifted in float32."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=EPS)
    return (normed * (1 + scale) + shift).type_as(x)


def residual(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    return (x.float() + update.float() * gate).type_as(x)


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32 over all heads together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), EPS).type_as(x)


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys, from one stream to another or to itself."""

    def __init__(self, width: int, source: int, heads: int, head_dim: int, backend: str) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads, self.backend = heads, backend
        self.to_q = nn.Linear(width, inner)
        self.to_k = nn.Linear(source, inner)
        self.to_v = nn.Linear(source, inner)
        self.norm_q = RMSNorm(inner)
        self.norm_k = RMSNorm(inner)
        self.to_out = nn.Linear(inner, width)

    def queries(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """(B, N, D) -> (B, N, H, head_dim)"""
        q = self.norm_q(self.to_q(x)).unflatten(-1, (self.heads, -1))
        return q if rotation is None else rotate(q, rotation)

    def keys(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        k = self.norm_k(self.to_k(x)).unflatten(-1, (self.heads, -1))
        return k if rotation is None else rotate(k, rotation)

    def values(self, x: Tensor) -> Tensor:
        return self.to_v(x).unflatten(-1, (self.heads, -1))

    def out(self, mixed: Tensor) -> Tensor:
        return self.to_out(mixed.flatten(-2))

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        keys: Tensor | None,
        rotation: Rotation | None = None,
        source_rotation: Rotation | None = None,
        everyone: Everyone = unchanged,
    ) -> Tensor:
        q, k, v = self.queries(x, rotation), self.keys(source, source_rotation), self.values(source)
        return self.out(attend(q, everyone(k), everyone(v), keys, self.backend))


class TowerBlock(nn.Module):
    """One layer of one tower: everything that stays inside its modality."""

    def __init__(self, config: TowerConfig, backend: str) -> None:
        super().__init__()
        width = config.width
        self.attn = Attention(width, width, config.heads, config.head_dim, backend)
        self.text_attn = Attention(width, width, config.heads, config.head_dim, backend)
        self.text_norm = nn.LayerNorm(width, EPS) if config.text_norm else nn.Identity()
        self.mlp = nn.Sequential(
            nn.Linear(width, config.mlp_width), nn.GELU(approximate="tanh"), nn.Linear(config.mlp_width, width)
        )
        self.table = nn.Parameter(torch.zeros(6, width))
        self.local_attn = Local(width) if config.local else None
        self.local_mlp = Local(width) if config.local else None

    def attend_self(self, x: Tensor, c: Context, perturbed: Tensor | None) -> Tensor:
        shift, scale, gate = c.modulation.under(self.table, ATTENTION_PARTS)
        h = with_neighbours(self.local_attn, modulate(x, shift, scale), c)
        q, k, v = self.attn.queries(h, c.rotation), self.attn.keys(h, c.rotation), self.attn.values(h)
        mixed = attend(q, c.everyone(k), c.everyone(v), c.keys, self.attn.backend)
        return residual(x, self.attn.out(perturb(mixed, v, perturbed)), gate)

    def attend_text(self, x: Tensor, c: Context) -> Tensor:
        h = self.text_norm(x.float()).type_as(x)
        return x + self.text_attn(h, c.text, c.text_keys)

    def think(self, x: Tensor, c: Context) -> Tensor:
        shift, scale, gate = c.modulation.under(self.table, MLP_PARTS)
        return residual(x, self.mlp(with_neighbours(self.local_mlp, modulate(x, shift, scale), c)), gate)


def with_neighbours(local: Local | None, x: Tensor, c: Context) -> Tensor:
    """The tokens here, having taken in their neighbours, wherever those are; in towers that are local."""
    if local is None:
        return x
    assert c.beside is not None
    return c.mine(local(c.everyone(x), c.beside))


def perturb(mixed: Tensor, values: Tensor, perturbed: Tensor | None) -> Tensor:
    """Each token attends only to itself in the samples (B,) whose guidance pass asks for it."""
    return mixed if perturbed is None else torch.where(perturbed[:, None, None, None], values, mixed)


class Bridge(nn.Module):
    """Attention in both directions between the towers, aligned by time alone on the common clock.

    Both directions read the state before either update, so their order cannot matter. Queries and keys are
    modulated by their own stream's level, the gate also by the partner's; gates start at zero.
    """

    attn: dict[str, Attention]

    def __init__(self, widths: dict[str, int], config: BridgeConfig, backend: str) -> None:
        super().__init__()
        self.attn = nn.ModuleDict(  # type: ignore[assignment]
            {m: Attention(widths[m], widths[PARTNER[m]], config.heads, config.head_dim, backend) for m in widths}
        )
        self.table = nn.ParameterDict({m: nn.Parameter(torch.zeros(5, width)) for m, width in widths.items()})

    @torch.no_grad()
    def align(self, config: BridgeConfig) -> None:
        """Untrained heads attend in time: a constant part of queries and keys, in their biases, whose rotated product
        peaks at a time difference of its own for each head. Without it the towers spend hundreds of steps on
        finding out that what matters is what happens now."""
        last = max(1, config.heads - 1)
        offsets_s = [
            config.reach_s * (2 * head - last) / last if config.heads > 1 else 0.0 for head in range(config.heads)
        ]
        size = 2 * config.focus  # content has a root mean square of 1 per channel, these constants of 1/2
        for attn in self.attn.values():
            queries = [turned(offset_s, config.clock, config.head_dim) for offset_s in offsets_s]
            attn.to_q.bias.copy_(size * torch.cat(queries))
            attn.to_k.bias.copy_(size * turned(0.0, config.clock, config.head_dim).repeat(config.heads))

    def forward(self, x: Streams, c: dict[str, Context]) -> Streams:
        bridge = {m: context for m in x if (context := c[m].bridge) is not None}
        asking, telling, gates = {}, {}, {}
        for m in x:
            q_shift, q_scale, k_shift, k_scale, gates[m] = bridge[m].modulation.under(self.table[m])
            asking[m] = modulate(x[m], q_shift, q_scale)
            telling[m] = modulate(x[m], k_shift, k_scale)
        out = {}
        for m, partner in PARTNER.items():
            rotation, partner_rotation = bridge[m].rotation, bridge[partner].rotation
            told = (telling[partner], c[partner].keys, rotation, partner_rotation, c[partner].everyone)
            update = self.attn[m](asking[m], *told)
            heard = update * audible(c[partner].keys, c[m].bridge_on)
            out[m] = residual(x[m], heard, gates[m])
        return out


def audible(keys: Tensor | None, on: Tensor | None) -> Tensor | float:
    """(B, 1, 1) factor of a cross-modal update: 0 where the partner is absent (even the output's bias must
    not come through) or a guidance pass turned the bridge off."""
    factor: Tensor | float = 1.0
    if keys is not None:
        factor = keys.any(1)[:, None, None]
    if on is not None:
        factor = factor * on[:, None, None]
    return factor


class Block(nn.Module):
    """One stage of the model: a layer of each tower (or of one, where depths differ) and perhaps a bridge."""

    towers: dict[str, TowerBlock]

    def __init__(self, layers: dict[str, int], towers: dict[str, TowerBlock], bridge: Bridge | None) -> None:
        super().__init__()
        self.layers = layers  # which layer of its tower each is; not read in forward, or every block would compile anew
        self.towers = nn.ModuleDict(towers)  # type: ignore[assignment]
        self.bridge = bridge
        self.checkpointing: Checkpointing = "none"

    def forward(self, x: Streams, c: dict[str, Context], perturbed: dict[str, Tensor]) -> Streams:
        mode = self.checkpointing if torch.is_grad_enabled() else "none"
        return checkpointed(self.run, mode, x, c, perturbed)

    def run(self, x: Streams, c: dict[str, Context], perturbed: dict[str, Tensor]) -> Streams:
        here = [m for m in x if m in self.towers]
        x = x | self.attend(x, c, perturbed, here)
        x = x | {m: self.towers[m].attend_text(x[m], c[m]) for m in here}
        if self.bridge is not None and len(here) == 2:
            x = self.bridge(x, c)
        return x | {m: self.towers[m].think(x[m], c[m]) for m in here}

    def attend(self, x: Streams, c: dict[str, Context], perturbed: dict[str, Tensor], here: list[str]) -> Streams:
        return {m: self.towers[m].attend_self(x[m], c[m], perturbed.get(m)) for m in here}


class JointBlock(Block):
    """The ablation: one attention over the tokens of both modalities, everything else per modality."""

    def attend(self, x: Streams, c: dict[str, Context], perturbed: dict[str, Tensor], here: list[str]) -> Streams:
        if len(here) < 2:
            return super().attend(x, c, perturbed, here)
        q, k, v, own, gates = {}, {}, {}, {}, {}
        for m in here:
            tower = self.towers[m]
            shift, scale, gates[m] = c[m].modulation.under(tower.table, ATTENTION_PARTS)
            h = with_neighbours(tower.local_attn, modulate(x[m], shift, scale), c[m])
            q[m], own[m] = tower.attn.queries(h, c[m].rotation), tower.attn.values(h)
            k[m], v[m] = c[m].everyone(tower.attn.keys(h, c[m].rotation)), c[m].everyone(own[m])
        lengths = [x[m].shape[1] for m in here]
        bridge_on = c[here[0]].bridge_on
        backend = self.towers[here[0]].attn.backend
        together = attend(cat(q, here), cat(k, here), cat(v, here), joint_keys(c, here, k), backend)
        mixed = dict(zip(here, together.split(lengths, dim=1), strict=True))
        for m in here:
            if bridge_on is not None:
                alone = attend(q[m], k[m], v[m], c[m].keys, backend)
                mixed[m] = torch.lerp(alone, mixed[m], bridge_on.type_as(alone)[:, None, None, None])
            mixed[m] = perturb(mixed[m], own[m], perturbed.get(m))
        return {m: residual(x[m], self.towers[m].attn.out(mixed[m]), gates[m]) for m in here}


def cat(parts: Streams, order: list[str]) -> Tensor:
    return torch.cat([parts[m] for m in order], dim=1)


def joint_keys(c: dict[str, Context], here: list[str], k: Streams) -> Tensor | None:
    if all(c[m].keys is None for m in here):
        return None
    masks = [k[m].new_ones(k[m].shape[:2], dtype=torch.bool) if c[m].keys is None else c[m].keys for m in here]
    return torch.cat(masks, dim=1)  # type: ignore[arg-type]
