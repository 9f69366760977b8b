"""Optimisers and their parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from avgen.train.config import OptimizerConfig, PartRates
from avgen.train.metrics import part_of
from avgen.train.parallel import gathered, local, scale_

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Optimizers:
    """Torch optimisers of the model's parts, stepped together; rates are set from the step, never counted inside."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.named:
            raise ValueError("optimizer.scale freezes every weight of the model: leave one part above 0")
        muon = [name for name, p in self.named.items() if config.kind == "muon" and inside_block(name, p)]
        adamw = [name for name in self.named if name not in set(muon)]
        fused = self.named[next(iter(self.named))].device.type in ("cpu", "cuda")
        about: dict[str, Any] = {"betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
        found: list[tuple[str, Optimizer]] = [
            (name, torch.optim.AdamW(groups, fused=fused, **about))
            for name, groups in self.groups(adamw, config.lr, config.scale).items()
        ]
        found += [
            (name, Muon(groups, config.weight_decay, PRECISIONS[config.muon_precision]))
            for name, groups in self.groups(muon, config.muon_lr, config.scale).items()
        ]
        self.moves, self.parts = [name for name, _ in found], [part for _, part in found]  # each moves one part
        self.rates = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def groups(self, names: list[str], lr: float, scale: PartRates) -> dict[str, list[dict[str, Any]]]:
        """By part of the model; and one fused kernel takes shards or whole tensors, not both."""
        found: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name in names:
            p = self.named[name]
            found.setdefault((part_of(name), isinstance(p, DTensor)), []).append(p)
        groups: dict[str, list[dict[str, Any]]] = {}
        for (part, _), alike in found.items():
            groups.setdefault(part, []).append({"params": alike, "lr": lr * scale.of(part)})
        return groups

    def step(self, factor: float, norms: Mapping[str, Tensor]) -> None:
        """One update at `factor` times the configured rates, of the parts whose gradient has a norm above 0.

        A tower that no clip of the step has gets gradients of zero. An optimiser takes those for news: Muon divides the
        size out of its momentum, so what is left of it would go on moving the weights at the full rate for hundreds of
        steps. The norms are those of all ranks and stay on the device.
        """
        for name, part, rates in zip(self.moves, self.parts, self.rates, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            if name in norms:  # else no weight of it has a gradient
                move(part, norms[name] > 0)
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """What the optimisers remember of each weight, by the weight's name: the tensors themselves.

        Rates and betas are not in it: they follow from the configuration.
        """
        names = {p: name for name, p in self.named.items()}
        return {
            names[p]: dict(memory(part, p))
            for part in self.parts
            for group in part.param_groups
            for p in group["params"]
        }


def move(part: Optimizer, learned: Tensor) -> None:
    """An optimiser's step, which leaves weights and memory as they are unless `learned`, a () bool on the device.

    torch's AdamW can do that in its fused kernels alone: elsewhere its momentum is left to fade, in about ten steps.
    """
    if isinstance(part, Muon):
        part.step(learned=learned)
    elif part.defaults["fused"]:
        # how a gradient scaler skips a step; the guard may have asked for it already
        guarded, idle = getattr(part, "found_inf", None), (~learned).float()
        part.found_inf = idle if guarded is None else torch.maximum(guarded, idle)  # type: ignore[attr-defined]
        part.grad_scale = None  # type: ignore[attr-defined]
        part.step()
        part.found_inf = guarded  # type: ignore[attr-defined]
    else:
        part.step()


def memory(part: Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """An optimiser's state of one parameter, made where no step has yet made it."""
    state = part.state[parameter]
    if not state and isinstance(part, Muon):
        state["momentum_buffer"] = torch.zeros_like(parameter)
    elif not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state


def inside_block(name: str, parameter: nn.Parameter) -> bool:
    """A weight matrix inside a block: what Muon orthogonalises. The factors of an adapter are none."""
    matrix = name.startswith("blocks.") and name.endswith(".weight") and parameter.ndim == 2
    return matrix and ".lora_" not in name


class Muon(Optimizer):
    """Momentum, orthogonalised: https://kellerjordan.github.io/posts/muon.

    torch's own, but for three things. A matrix that is cut into shards is gathered, because orthogonalisation mixes its
    rows. Small matrices of one shape are iterated together: one by one they keep no processor busy. And the precision
    is a choice, because bfloat16 turns rounding that differs with the number of processes into updates that do.
    """

    TOGETHER = 2**24  # numbers in matrices that are iterated at once: what that costs in memory stays small

    def __init__(
        self, groups: list[dict[str, Any]], weight_decay: float, dtype: torch.dtype, momentum: float = 0.95
    ) -> None:
        super().__init__(groups, {"weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None, learned: Tensor | None = None) -> None:  # type: ignore[override]
        """Nothing moves, and nothing is remembered, unless `learned`: a () bool, which the host does not wait for."""
        for group in self.param_groups:
            alike: dict[tuple[torch.Size, torch.device], list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault((p.shape, p.device), []).append(p)
            for (shape, _), parameters in alike.items():
                count = max(1, self.TOGETHER // shape.numel())
                for first in range(0, len(parameters), count):
                    rates = group["lr"], group["momentum"], group["weight_decay"]
                    self.move(parameters[first : first + count], *rates, learned)

    def move(
        self,
        parameters: list[nn.Parameter],
        lr: float,
        momentum: float,
        weight_decay: float | Tensor,
        learned: Tensor | None,
    ) -> None:
        """One update of matrices of one shape."""
        rows, columns = parameters[0].shape
        ahead = []
        for p in parameters:
            assert p.grad is not None
            kept = memory(self, p)["momentum_buffer"]
            # towards itself a momentum does not move; `where` takes no numbers here, for which it would wait
            news = local(p.grad) if learned is None else torch.where(learned, local(p.grad), local(kept))
            local(kept).lerp_(news, 1 - momentum)
            ahead.append(gathered(p.grad.lerp(kept, momentum)))
        updates = orthogonalised(torch.stack(ahead), self.dtype)
        if learned is not None:
            updates, weight_decay = updates.masked_fill(~learned, 0), weight_decay * learned
        for p, update in zip(parameters, updates.unbind(), strict=True):
            if isinstance(p, DTensor):
                update = distribute_tensor(update, p.device_mesh, p.placements, src_data_rank=None)
            p.mul_(1 - lr * weight_decay)
            p.add_(update.to(p.dtype), alpha=-lr * max(1.0, rows / columns) ** 0.5)


def orthogonalised(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(K, rows, columns) with the same singular vectors and all singular values near 1, by five Newton-Schulz
    iterations."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).to(dtype)
    for _ in range(5):  # a x + b (x x') x + c (x x')^2 x, with the steepest slope at zero
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


class Average:
    """Exponential moving average of the trained weights, in float32, beside the model: of shards where it is cut."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().float().clone() for name, p in trained(model)}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After step `step` (the first is 0); early averages are shorter, so that they forget the start."""
        decay = min(self.decay, (step + 1) / (step + 10))
        ours = [local(self.weights[name]) for name, _ in trained(model)]
        theirs = [local(p.detach()).float() for _, p in trained(model)]
        torch._foreach_lerp_(ours, theirs, 1 - decay)

    @torch.no_grad()
    def swapped(self, model: nn.Module) -> Callable[[], None]:
        """Put the average into the model; the returned function puts the weights back."""
        kept = {name: p.detach().clone() for name, p in trained(model)}
        for name, p in trained(model):
            p.copy_(self.weights[name])

        def back() -> None:
            with torch.no_grad():
                for name, p in trained(model):
                    p.copy_(kept[name])

        return back


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


class LossScale:
    """fp16 has few exponents: gradients are computed from a larger loss and divided again, in float32.

    A step whose gradients overflow is taken again at half the scale, with the same clips and noise: so a step stays
    an optimiser step, no clip is lost, and the schedule and the data of a run do not depend on where it overflowed.
    """

    GROWTH_STEPS = 2000

    def __init__(self, on: bool) -> None:
        self.on = on
        self.value = 2.0**16 if on else 1.0
        self.clean_steps = 0

    def undo(self, model: nn.Module) -> None:
        if self.on:
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            scale_(gradients, torch.tensor(1 / self.value, device=gradients[0].device))

    def overflowed(self, norm: Tensor) -> bool:
        """Whether to take the step again. The norm is that of all processes, so they decide alike.

        Below 1 the scale is not to blame, and whoever guards the run must hear of it.
        """
        if not self.on:
            return False
        if bool(norm.isfinite()):
            self.clean_steps += 1
            if self.clean_steps == self.GROWTH_STEPS:
                self.value, self.clean_steps = self.value * 2, 0
            return False
        self.value, self.clean_steps = self.value / 2, 0
        return self.value >= 1
