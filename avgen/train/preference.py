"""AV-DPO: learning which of two clips is better, against a reference that keeps the model what it was.

With l the mean squared velocity error of a clip's modality, w the winner, l the loser, 0 the reference and W_m
`flow.video_weight` or `flow.audio_weight`,

    margin_m = beta_m / 2 ((l_l - l_w) - (l_l0 - l_w0)),    loss = -log sigmoid(margin) + anchor sum_m W_m l_w

over one margin that is the sum of the modalities' (`joint`), or over each (`per_modality`). `kind=nft` (negative-aware
fine-tuning, Zheng et al. 2025) has no sigmoid: with v the model's velocity, v_0 the reference's and u what a clip asks
for,

    loss_m = W_m (|(1 - beta) v_0 + beta v - u_w|^2 + |(1 + beta) v_0 - beta v - u_l|^2) / beta

so v is fitted to winners, and its mirror image in v_0 to losers: it goes away from the reference as far as winners and
losers differ on average, divided by 2 beta. The anchor is added here too.

Winner and loser are rows 2 k and 2 k + 1 of a batch and were drawn alike: same noise, levels, given tokens and dropped
captions. Otherwise the difference of their errors would be mostly that of their draws.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from avgen.flow import FlowConfig, Loss, as_velocity, losses
from avgen.models.dit import AVTransformer
from avgen.models.lora import lora_off
from avgen.train.config import PreferenceConfig
from avgen.train.step import Draw, Learned, Whole
from avgen.types import MODALITIES, Velocity

Reference = Callable[[], AbstractContextManager[Any]]  # of an AVTransformer, however it is spread


def adapter_off(model: AVTransformer) -> Reference:
    """The model's own frozen weights: no second copy of anything."""

    @contextmanager
    def reference():  # type: ignore[no-untyped-def]  # noqa: ANN202
        with lora_off(model):
            yield model

    return reference


def frozen_copy(copy: nn.Module) -> Reference:
    """Another model, where all weights are trained and none keeps what it was."""

    @contextmanager
    def reference():  # type: ignore[no-untyped-def]  # noqa: ANN202
        yield copy

    return reference


@dataclass(frozen=True)
class Errors:
    """One modality's errors in a batch of pairs: winner, loser."""

    clips: Tensor  # (P, 2) mean squared error over the supervised tokens of a clip; 0 where there are none
    known: Tensor  # (P,) bool: both clips have supervised tokens

    @classmethod
    def of(cls, loss: Loss, weight: Tensor) -> Errors:
        """`weight` (B, N) of the clean stream's tokens."""
        whole = weight.sum(1)
        means = loss.tokens.sum(1) / torch.where(whole > 0, whole, 1.0)
        return cls(means.view(-1, 2), (whole > 0).view(-1, 2).all(1))


def advantage(policy: Errors, reference: Errors) -> Tensor:
    """(P,) how much better than the reference the model tells winner from loser; 0 where nothing is supervised."""
    gap = policy.clips - reference.clips
    return torch.where(policy.known, 0.5 * (gap[:, 1] - gap[:, 0]), 0.0)


def penalty(margin: Tensor, config: PreferenceConfig) -> Tensor:
    """(P,) loss of margins. IPO wants a margin of 1/2, not an endless one (Azar et al. 2023, in units of beta)."""
    if config.kind == "ipo":
        return (margin - 0.5).square()
    wrong = config.label_smoothing  # share of pairs that are labelled the wrong way round
    return -(1 - wrong) * logsigmoid(margin) - wrong * logsigmoid(-margin)


def preference_loss(
    policy: dict[str, Errors],
    reference: dict[str, Errors],
    config: PreferenceConfig,
    flow: FlowConfig,
    mixed: dict[str, Errors] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(P,) the loss of each pair, and (P,) the margin of each modality; `mixed` are errors of `kind=nft`'s mixtures."""
    weights = {"video": flow.video_weight, "audio": flow.audio_weight}
    margins = {m: config.beta(m) * advantage(policy[m], reference[m]) for m in policy}
    if mixed is not None:
        parts = [
            torch.where(both.known, weights[m] / config.beta(m) * both.clips.sum(1), 0.0)
            for m, both in mixed.items()
            if config.beta(m) > 0
        ]
    elif config.margin == "joint":
        parts = [penalty(torch.stack(list(margins.values())).sum(0), config)]
    else:
        parts = [torch.where(policy[m].known, penalty(margins[m], config), 0.0) for m in margins]
    anchor = torch.stack([weights[m] * policy[m].clips[:, 0] for m in policy]).sum(0)
    return torch.stack(parts).sum(0) + config.anchor * anchor, margins


def mixture(output: Velocity, reference: Velocity, config: PreferenceConfig) -> Velocity:
    """What `kind=nft` fits to the clips: the model's share in it is beta for winners and -beta for losers."""
    mixed = {}
    for m in MODALITIES:
        if (ours := getattr(output, m)) is not None:
            sign = torch.ones_like(ours[:, :1, :1], dtype=torch.float32)  # a model under autocast answers in half
            sign[1::2] = -1
            mixed[m] = torch.lerp(getattr(reference, m).float(), ours.float(), config.beta(m) * sign)
    return Velocity(**mixed)


@dataclass(frozen=True)
class Preference:
    """The objective of a run on pairs; see `avgen.train.step.FlowMatching` for that on clips."""

    config: PreferenceConfig
    flow: FlowConfig
    reference: Reference

    @property
    def notes(self) -> tuple[str, ...]:
        """What is logged besides the losses, as means over pairs (of drift over tokens)."""
        each = [f"preference/{m}/{what}" for m in MODALITIES for what in ("accuracy", "margin", "winner", "loser")]
        return "preference/loss", "preference/accuracy", *each, *(f"preference/{m}/drift" for m in MODALITIES)

    def __call__(self, model: nn.Module, drawn: Draw, whole: Whole) -> Learned:
        # the reference first: nothing of the model's own pass is held yet
        with torch.no_grad(), self.reference() as reference:
            expected: Velocity = reference(drawn.noisy)
        output: Velocity = model(drawn.noisy)
        found, policy = self.errors(output, drawn)
        _, against = self.errors(expected, drawn)
        mixed = self.errors(mixture(output, expected, self.config), drawn)[1] if self.config.kind == "nft" else None
        each, margins = preference_loss(policy, against, self.config, self.flow, mixed)
        with torch.no_grad():
            notes = self.noted(each, margins, policy, against)
            notes |= {f"preference/{m}/drift": self.drift(m, output, expected, drawn) for m in found}
        nothing = each.new_zeros(2)
        table = torch.stack([notes.get(name, nothing) for name in self.notes])
        return Learned(found, each.sum() * 2 / whole.clips, table)

    def errors(self, output: Velocity, drawn: Draw) -> tuple[dict[str, Loss], dict[str, Errors]]:
        found = losses(output, drawn.clean, drawn.noisy, drawn.noise, self.flow.predict)
        return found, {m: Errors.of(loss, getattr(drawn.clean, m).weight) for m, loss in found.items()}

    def noted(
        self, each: Tensor, margins: dict[str, Tensor], policy: dict[str, Errors], reference: dict[str, Errors]
    ) -> dict[str, Tensor]:
        """Sums and counts. `winner` and `loser`: how far their errors rose; that the winner's rises too is usual."""
        everyone = torch.ones_like(each, dtype=torch.bool)
        joint = torch.stack(list(margins.values())).sum(0)
        found = {"preference/loss": counted(each, everyone), "preference/accuracy": counted(right(joint), everyone)}
        for m, margin in margins.items():
            rose, known = policy[m].clips - reference[m].clips, policy[m].known
            found[f"preference/{m}/accuracy"] = counted(right(margin), known)
            found[f"preference/{m}/margin"] = counted(margin, known)
            found[f"preference/{m}/winner"] = counted(rose[:, 0], known)
            found[f"preference/{m}/loser"] = counted(rose[:, 1], known)
        return found

    def drift(self, m: str, output: Velocity, expected: Velocity, drawn: Draw) -> Tensor:
        """Squared distance of the two velocities over the supervised tokens: what KL is made of along the path."""
        noisy, weight = getattr(drawn.noisy, m), getattr(drawn.clean, m).weight
        ours, theirs = (as_velocity(getattr(v, m).float(), noisy, self.flow.predict) for v in (output, expected))
        apart = torch.where(weight[..., None] > 0, ours - theirs, 0.0).square().mean(-1)
        return torch.stack([(apart * weight).sum(), weight.sum()])


def right(margin: Tensor) -> Tensor:
    """1 where the model prefers the winner, 1/2 where it cannot tell."""
    return 0.5 * (1 + margin.sign())


def counted(values: Tensor, known: Tensor) -> Tensor:
    """(2,) sum and number of the known ones."""
    return torch.stack([torch.where(known, values, 0.0).sum(), known.sum().to(values.dtype)])
