"""Guidance: what a velocity is pushed away from, per modality, all passes of a step in one forward.

    v = c + (text - 1) (c - no caption) + (cross - 1) (c - other modality off) + perturbed (c - perturbed attention)

A term that is off at a level costs no pass and changes nothing, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from avgen.flow import velocity_of
from avgen.models.dit import Perturbation, RunBlocks, run_blocks
from avgen.types import Batch, Text, stack_batches

TERMS = ("text", "cross", "perturbed")


@dataclass(frozen=True)
class ModalityGuidance:
    """The weights of one modality's velocity."""

    text: float = 1.0  # classifier-free guidance by the caption; 1 = off
    cross: float = 1.0  # guidance by the other modality: away from what is made with the bridge off; 1 = off
    perturbed: float = 0.0  # away from what is made where attention keeps to each token; 0 = off
    layers: tuple[int, ...] = ()  # whose self-attention is perturbed, counted from 0 in this modality's tower
    rescale: float = 0.0  # share of the way back to the spread of the unguided velocity, in [0, 1]; 0 = off
    low: float = 0.0  # terms apply at noise levels from here ...
    high: float = 1.0  # ... to here

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale={self.rescale} must lie in [0, 1]")
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"low={self.low} and high={self.high} must be ordered and lie in [0, 1]")
        if self.perturbed and not self.layers:
            raise ValueError(f"perturbed={self.perturbed} needs layers=[...]: which ones are to be perturbed")

    def weights(self, level: float) -> dict[str, float]:
        """Of each term that does anything at this noise level."""
        if not self.low <= level <= self.high:
            return {}
        found = {"text": self.text - 1, "cross": self.cross - 1, "perturbed": self.perturbed}
        return {name: weight for name, weight in found.items() if weight != 0}


@dataclass(frozen=True)
class Guidance:
    """Both modalities' guidance."""

    video: ModalityGuidance = field(default_factory=lambda: ModalityGuidance(text=2.0))
    audio: ModalityGuidance = field(default_factory=lambda: ModalityGuidance(text=2.0))

    def of(self, modality: str) -> ModalityGuidance:
        return self.video if modality == "video" else self.audio

    def check(self, depths: Mapping[str, int]) -> None:
        """Refuse layers that the towers do not have."""
        for m, depth in depths.items():
            wrong = [layer for layer in self.of(m).layers if not 0 <= layer < depth]
            if wrong:
                raise ValueError(f"guidance.{m}.layers={wrong}: the model's {m} tower has layers 0 to {depth - 1}")


NO_GUIDANCE = Guidance(ModalityGuidance(), ModalityGuidance())


def guided(
    model: nn.Module,
    batch: Batch,
    guidance: Guidance,
    levels: Mapping[str, float],
    made: Mapping[str, Tensor],
    predict: str = "velocity",
    run_for: Callable[[Sequence[str]], RunBlocks] = lambda terms: run_blocks,
) -> dict[str, Tensor]:
    """Per modality, the guided velocity (B, N, C) in float32.

    levels: of the tokens that are being made, per modality that has any
    made: (B, N) bool per modality, those tokens
    run_for: how the blocks are run, given the terms that have a pass
    """
    weights = {m: guidance.of(m).weights(level) for m, level in levels.items()}
    if batch.video is None or batch.audio is None:
        weights = {m: {name: w for name, w in terms.items() if name != "cross"} for m, terms in weights.items()}
    active = [name for name in TERMS if any(name in terms for terms in weights.values())]
    stacked = passes(batch, active)
    out = model(stacked, perturbation(model, batch.size, active, guidance), run_for(active))
    found = {}
    for m in made:
        answer = getattr(out, m).float()
        answer = answer if predict == "velocity" else velocity_of(answer, getattr(stacked, m), least=1e-3)
        plain, *others = answer.chunk(1 + len(active))
        found[m] = combine(plain, dict(zip(active, others, strict=True)), weights.get(m, {}))
        if weights.get(m) and guidance.of(m).rescale:
            found[m] = rescaled(found[m], plain, made[m], guidance.of(m).rescale)
    return found


def combine(plain: Tensor, others: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    return plain + sum(w * (plain - others[name]) for name, w in weights.items()) if weights else plain


def rescaled(guided: Tensor, plain: Tensor, made: Tensor, share: float) -> Tensor:
    """Guidance inflates a velocity's spread, which shows as burnt colours (Lin et al. 2024, eq. 15-16)."""

    def spread(x: Tensor) -> Tensor:
        count = (made.sum(1, keepdim=True).clamp(min=1) * x.shape[-1])[..., None]
        x = x * made[..., None]
        mean = x.sum((1, 2), keepdim=True) / count
        return (((x - mean) * made[..., None]).square().sum((1, 2), keepdim=True) / count).sqrt()

    factor = spread(plain) / spread(guided).clamp(min=1e-12)
    return guided * (share * factor + 1 - share)


def passes(batch: Batch, active: list[str]) -> Batch:
    """The batch as it is and once more for each active term, along the batch dimension."""
    if not active:
        return batch
    stacked = stack_batches([batch] * (1 + len(active)))
    unguided = torch.zeros(stacked.size, dtype=torch.bool, device=batch.video_text.x.device)
    if "text" in active:
        unguided[rows(batch.size, active, "text")] = True

    def without(text: Text) -> Text:
        return replace(text, dropped=text.dropped | unguided)

    video_text = without(stacked.video_text)
    shared = stacked.audio_text is stacked.video_text
    return replace(stacked, video_text=video_text, audio_text=video_text if shared else without(stacked.audio_text))


def perturbation(model: nn.Module, size: int, active: list[str], guidance: Guidance) -> Perturbation | None:
    if not {"cross", "perturbed"} & set(active):
        return None
    device = next(model.parameters()).device
    total = size * (1 + len(active))
    bridge = None
    if "cross" in active:
        bridge = torch.ones(total, device=device)
        bridge[rows(size, active, "cross")] = 0
    layers: dict[str, Tensor] = {}
    if "perturbed" in active:
        for m, tower in model.spec.towers.items():  # type: ignore[union-attr, operator]
            layers[m] = torch.zeros(total, tower.depth, dtype=torch.bool, device=device)
            for layer in guidance.of(m).layers if guidance.of(m).perturbed else ():
                layers[m][rows(size, active, "perturbed"), layer] = True
    return Perturbation(bridge_on=bridge, **layers)


def rows(size: int, active: list[str], name: str) -> slice:
    first = (1 + active.index(name)) * size
    return slice(first, first + size)
