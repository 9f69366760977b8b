"""Two modalities' losses on one scale, so that neither drowns the other in the gradient they share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from avgen.types import MODALITIES


class Balance:
    """Running means of the two losses; each loss is divided by its own and multiplied by the mean of both.

    The means are geometric: the product of the two factors is 1, so the learning rate keeps its meaning. They live on
    the device, are the same on all ranks and are saved with the run.
    """

    def __init__(self, decay: float | None, device: torch.device) -> None:
        self.decay = decay
        # sums of weighted log losses, and of their weights
        self.state = {name: torch.zeros(len(MODALITIES), device=device) for name in ("logs", "weights")}

    def factors(self) -> dict[str, Tensor]:
        """What each loss is multiplied by in the next step; nothing while either modality is unknown."""
        if self.decay is None:
            return {}
        logs, weights = self.state["logs"], self.state["weights"]
        means = logs / weights.clamp(min=1e-12)
        factors = torch.where((weights > 0).all(), (means.mean() - means).exp(), 1.0)
        return dict(zip(MODALITIES, factors, strict=True))

    @torch.no_grad()
    def update(self, losses: dict[str, Tensor], summed: Callable[[Tensor], Tensor]) -> None:
        """After a step: each rank's share of either loss, and how to sum over ranks."""
        if self.decay is None:
            return
        missing = self.state["logs"].new_zeros(())
        whole = summed(torch.stack([losses.get(m, missing).detach().float() for m in MODALITIES]))
        # a modality that the step did not supervise, or that is perfect, says nothing about its scale
        known = whole > 0
        for name, value in (("logs", whole.clamp(min=1e-12).log()), ("weights", torch.ones_like(whole))):
            self.state[name].copy_(
                torch.where(known, torch.lerp(value, self.state[name], self.decay), self.state[name])
            )
