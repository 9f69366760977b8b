"""Optimisers and their parameter groups."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from avgen.train.config import OptimizerConfig
from avgen.train.parallel import gathered, local


class Optimizers:
    """One or two torch optimisers stepped together; rates are set from the step, never counted inside."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        matrices = [name for name, p in self.named.items() if config.kind == "muon" and inside_block(name, p)]
        others = [p for name, p in self.named.items() if name not in matrices]
        # one fused kernel takes shards or whole tensors, not both
        groups = [[p for p in others if isinstance(p, DTensor) is cut] for cut in (False, True)]
        self.parts: list[Optimizer] = [
            torch.optim.AdamW(
                [{"params": group} for group in groups if group],
                lr=config.lr,
                betas=config.betas,
                eps=1e-8,
                weight_decay=config.weight_decay,
                fused=others[0].device.type in ("cpu", "cuda"),
            )
        ]
        if matrices:
            self.parts.append(Muon([self.named[name] for name in matrices], config.muon_lr, config.weight_decay))
        self.rates = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def step(self, factor: float) -> None:
        """One update at `factor` times the configured rates."""
        for part, rates in zip(self.parts, self.rates, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            part.step()
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
    """A weight matrix inside a block: what Muon orthogonalises."""
    return name.startswith("blocks.") and name.endswith(".weight") and parameter.ndim == 2


class Muon(Optimizer):
    """Momentum, orthogonalised: https://kellerjordan.github.io/posts/muon.

    torch's own, but for two things. A matrix that is cut into shards is gathered, because orthogonalisation mixes
    its rows. And on a CPU the iteration runs in float32: bfloat16 would turn rounding that differs with the number of
    processes into updates that do, and is slower there.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                kept = memory(self, p)["momentum_buffer"]
                kept.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalised(gathered(p.grad.lerp(kept, group["momentum"])))
                if isinstance(p, DTensor):
                    update = distribute_tensor(update, p.device_mesh, p.placements, src_data_rank=None)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.type_as(p), alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix with the same singular vectors and all singular values near 1, by five Newton-Schulz iterations."""
    x = matrix if matrix.device.type == "cpu" else matrix.bfloat16()
    x = x if x.shape[0] <= x.shape[1] else x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):  # a x + b (x x') x + c (x x')^2 x, with the steepest slope at zero
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


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
