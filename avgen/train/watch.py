"""What stops a run that has gone wrong, before it costs the weights, a checkpoint or a week.

A gradient that is not finite must not reach the weights, and waiting for the device to say so would cost every step.
So the device itself decides whether an update counts, and the host reads at the next log point what it decided.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from avgen.models.text import captions_of
from avgen.train.config import GuardConfig, TrainConfig
from avgen.train.metrics import Reading
from avgen.train.parallel import local
from avgen.train.step import Draw, draw, step_losses
from avgen.types import MODALITIES, Batch


class Stopped(RuntimeError):
    """The run was stopped because it had gone wrong; its checkpoints are as they were."""


@dataclass(frozen=True)
class Fault:
    """What went wrong, and in which optimiser step (the first is 1)."""

    step: int
    what: str
    advice: str


class Guard:
    """Keeps bad updates from the weights, on the device; finds out which step was bad, on the host."""

    def __init__(self, config: GuardConfig, device: torch.device) -> None:
        self.config = config
        self.fine = torch.ones((), dtype=torch.bool, device=device)  # no step so far was bad
        self.seen = 0  # optimiser steps judged
        self.recent: dict[str, deque[float]] = {m: deque[float](maxlen=config.window) for m in MODALITIES}
        self.above: dict[str, int] = dict.fromkeys(MODALITIES, 0)  # steps in a row that diverge

    @contextmanager
    def over(self, optimizers: Sequence[Optimizer], norm: Tensor) -> Iterator[None]:
        """Updates inside change no weight once any step's gradient norm was not finite.

        The norm is that of the gradient that all ranks share, so all ranks decide alike.
        """
        self.fine = self.fine & norm.isfinite()
        kept = [held(part, self.fine) for part in optimizers]
        yield
        for part, values in zip(optimizers, kept, strict=True):
            released(part, values)

    @property
    def doubtful(self) -> bool:
        """The loss is diverging now: a checkpoint of these weights should wait."""
        return any(self.above.values())

    def judge(self, reading: Reading) -> Fault | None:
        """Whether anything went wrong in the steps that have not been judged yet."""
        for i, step in enumerate(reading.steps):
            if step <= self.seen:
                continue
            self.seen = step
            losses = {m: values[i] for m, values in reading.losses.items()}
            norm = reading.norms[i]
            if not math.isfinite(norm) or any(math.isinf(loss) for loss in losses.values()):
                found = [f"loss/{m} {loss:.4g}" for m, loss in losses.items()] + [f"gradient norm {norm:.4g}"]
                return Fault(
                    step,
                    f"a loss or gradient is not finite ({', '.join(found)})",
                    "The weights are those before that step. Look at the clips; if they are sound, lower optimizer.lr "
                    "or optimizer.muon_lr, or multiply in float32 (precision=fp32)",
                )
            for m, loss in losses.items():
                if not math.isnan(loss) and (fault := self._diverging(m, step, loss)):
                    return fault
        return None

    def _diverging(self, m: str, step: int, loss: float) -> Fault | None:
        recent, factor = self.recent[m], self.config.factor
        # the first steps of a run fall fast: there is no median to compare with yet
        if factor is None or len(recent) < self.config.steps or loss <= factor * median(recent):
            self.above[m] = 0
            recent.append(loss)
            return None
        self.above[m] += 1  # and the median stays what it was before
        if self.above[m] < self.config.steps:
            return None
        return Fault(
            step - self.config.steps + 1,
            f"loss/{m} has been more than guard.factor={factor:g} times the median {median(recent):.4g} of the steps "
            f"before it for guard.steps={self.config.steps} steps (now {loss:.4g})",
            "Go on from a checkpoint with a lower optimizer.lr or optimizer.muon_lr, or a larger guard.factor "
            "(null never stops)",
        )


def held(part: Optimizer, fine: Tensor) -> list[Any]:
    """Make an optimiser's next step change nothing unless `fine`; what `released` has to put back."""
    if part.defaults.get("fused"):
        # the fused kernels read this themselves: it is how a gradient scaler skips a step
        part.found_inf, part.grad_scale = (~fine).float(), None  # type: ignore[attr-defined]
        return []
    for group in part.param_groups:
        for p in group["params"]:
            # zero gradient and zero memory: an update of zero. Nothing goes on from this memory: the run stops.
            for value in (p.grad, *part.state[p].values()) if p.grad is not None else ():
                if isinstance(value, Tensor):
                    local(value).masked_fill_(~fine, 0)
    decays = [group["weight_decay"] for group in part.param_groups]
    for group, decay in zip(part.param_groups, decays, strict=True):
        group["weight_decay"] = decay * fine if decay else decay
    return decays


def released(part: Optimizer, decays: list[Any]) -> None:
    if part.defaults.get("fused"):
        del part.found_inf, part.grad_scale  # type: ignore[attr-defined]
    for group, decay in zip(part.param_groups, decays, strict=False):
        group["weight_decay"] = decay


@dataclass(frozen=True)
class Seen:
    """One clip of the step that went wrong."""

    place: int  # in the global batch
    task: str
    caption: str | None  # None where captions are features
    finite: bool  # all numbers of its latents
    level: dict[str, float]  # the highest of each stream
    loss: dict[str, float]  # mean over its supervised tokens, under the weights the run stopped with

    @property
    def suspect(self) -> bool:
        return not self.finite or not all(math.isfinite(loss) for loss in self.loss.values())


def write_fault(
    fault: Fault, config: TrainConfig, model: nn.Module, parts: Sequence[Batch], places: Sequence[range], rank: int
) -> Stopped:
    """Save what this rank saw at the step, clip by clip and whole, and say so.

    The step is drawn again: all of it follows from (seed, step, place), so nothing has to be kept for the event.
    Every rank must call it, because a sharded model needs all of them to run.
    """
    folder = config.out / f"stopped_at_{fault.step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [draw(part, config, fault.step - 1, at) for part, at in zip(parts, places, strict=True)]
    clips = [clip for part, at in zip(drawn, places, strict=True) for clip in seen(part, at, model, config)]
    about = {"step": fault.step, "seed": config.seed, "what": fault.what, "rank": rank}
    listed = json.dumps(about | {"clips": [asdict(clip) for clip in clips]}, indent=2)
    (folder / f"rank_{rank}.json").write_text(listed + "\n")
    torch.save(about | {"micro_batches": [plain(part) for part in drawn]}, folder / f"rank_{rank}.pt")
    suspects = [clip for clip in clips if clip.suspect]
    named = "".join(f"; clip {c.place} ({c.task}, {c.caption!r}) is not finite" for c in suspects[:3])
    return Stopped(f"stopped: at step {fault.step} {fault.what}{named}. Its batch is in {folder}. {fault.advice}.")


@torch.no_grad()
def seen(part: Draw, places: range, model: nn.Module, config: TrainConfig) -> list[Seen]:
    device = next(model.parameters()).device
    with config.autocast(device):
        found = step_losses(model, part.to(device), config.flow)
    streams = part.noisy.streams
    clean = {m: getattr(part.clean, m) for m in streams}
    errors = {m: loss.tokens.float().sum(1).cpu() for m, loss in found.items()}
    captions = captions_of(part.clean.video_text)
    clips = []
    for i, place in enumerate(places):
        weights = {m: float(clean[m].weight[i].sum()) for m in streams}
        clips.append(
            Seen(
                place,
                part.tasks[i],
                None if captions is None else captions[i],
                all(bool(clean[m].x[i].isfinite().all()) for m in streams),
                {m: round(float(s.level[i].max()), 4) for m, s in streams.items()},
                {m: float(errors[m][i]) / weight for m, weight in weights.items() if weight > 0},
            )
        )
    return clips


def plain(value: Any) -> Any:
    """Nested dataclasses and tuples of tensors as dicts, which `torch.load` reads without trusting the file."""
    if hasattr(value, "_asdict"):
        return {name: plain(inner) for name, inner in value._asdict().items()}
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    return list(value) if isinstance(value, tuple) else value
