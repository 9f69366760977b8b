"""Optimisers and their parameter groups."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from avgen.train.config import OptimizerConfig


class Optimizers:
    """One or two torch optimisers stepped together; rates are set from the step, never counted inside."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        matrices, others = split(model) if config.kind == "muon" else ([], list(model.parameters()))
        fused = next(model.parameters()).device.type in ("cpu", "cuda")
        self.parts: list[Optimizer] = [
            torch.optim.AdamW(
                others, lr=config.lr, betas=config.betas, eps=1e-8, weight_decay=config.weight_decay, fused=fused
            )
        ]
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay))
        self.rates = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def step(self, factor: float) -> None:
        """One update at `factor` times the configured rates."""
        for part, rates in zip(self.parts, self.rates, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weight matrices inside blocks, which Muon orthogonalises, and everything else."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = name.startswith("blocks.") and name.endswith(".weight") and parameter.ndim == 2
        (matrices if inside else others).append(parameter)
    return matrices, others


class Average:
    """Exponential moving average of the weights, in float32, beside the model."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().float().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After step `step` (the first is 0); early averages are shorter, so that they forget the start."""
        decay = min(self.decay, (step + 1) / (step + 10))
        ours = [self.weights[name] for name, _ in model.named_parameters()]
        theirs = [p.detach().float() for p in model.parameters()]
        torch._foreach_lerp_(ours, theirs, 1 - decay)

    @torch.no_grad()
    def swapped(self, model: nn.Module) -> Callable[[], None]:
        """Put the average into the model; the returned function puts the weights back."""
        kept = {name: p.detach().clone() for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            p.copy_(self.weights[name])

        def back() -> None:
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(kept[name])

        return back
