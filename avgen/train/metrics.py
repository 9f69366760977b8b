"""What a step was like, added up on the device: nothing here waits for it between two log lines.

Losses are kept as sums of error and of weight, so that ranks, micro-batches and steps add up to the mean over
supervised tokens whatever their shares.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from avgen.flow import Loss
from avgen.models.cost import BatchShape, step_cost
from avgen.rate import matmul_rate
from avgen.train.config import TrainConfig
from avgen.train.parallel import norm
from avgen.train.step import Draw, Learned
from avgen.types import MODALITIES

LEVELS = 4  # equal buckets of the noise level


class LossTable:
    """Error and weight by modality, task and bucket of the noise level."""

    def __init__(self, tasks: Iterable[str], device: torch.device) -> None:
        self.tasks = {name: i for i, name in enumerate(sorted(tasks))}
        # error and weight, modality, task, bucket
        self.sums = torch.zeros(2, len(MODALITIES), len(self.tasks), LEVELS, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, found: dict[str, Loss], drawn: Draw) -> None:
        device = self.sums.device
        rows = torch.tensor([self.tasks[name] for name in drawn.tasks]).to(device, non_blocking=True)
        buckets = torch.arange(LEVELS, device=device)
        for i, m in enumerate(MODALITIES):
            if m not in found:
                continue
            clean, noisy = getattr(drawn.clean, m), getattr(drawn.noisy, m)
            bucket = (noisy.level * LEVELS).long().clamp(max=LEVELS - 1)
            both = torch.stack([found[m].tokens.detach(), clean.weight])  # (2, B, N)
            # chosen, not multiplied: an infinite error must not reach the other buckets
            inside = torch.where(bucket[..., None] == buckets, both[..., None], 0.0).sum(2)  # (2, B, LEVELS)
            self.sums[:, i].index_add_(1, rows, inside.double())

    def clear(self) -> None:
        self.sums.zero_()

    def means(self, sums: Tensor) -> dict[str, float]:
        """From sums on the host: `video`, `video/<task>`, `video/level_<from>-<to>`, where there was anything."""
        named: dict[str, Tensor] = {}
        for i, m in enumerate(MODALITIES):
            named[m] = sums[:, i].sum((1, 2))
            named |= {f"{m}/{task}": sums[:, i, row].sum(1) for task, row in self.tasks.items()}
            named |= {f"{m}/{level_name(k)}": sums[:, i, :, k].sum(1) for k in range(LEVELS)}
        return {name: float(error / weight) for name, (error, weight) in named.items() if weight > 0}


def level_name(bucket: int) -> str:
    return f"level_{bucket / LEVELS:.2f}-{(bucket + 1) / LEVELS:.2f}"


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: a tower, the bridge or the captions' encoder."""
    words = name.split(".")
    if "bridge" in words or "bridge_levels" in words:
        return "bridge"
    return words[words.index("towers") + 1] if "towers" in words else "captions"


def gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """Norm of the gradient of each part that has one, and of `all`; over all ranks where it is sharded."""
    parts: dict[str, list[Tensor]] = {}
    for name, p in model.named_parameters():
        if p.grad is not None:
            parts.setdefault(part_of(name), []).append(p.grad)
    norms = {part: norm(grads) for part, grads in parts.items()}
    return norms | {"all": torch.linalg.vector_norm(torch.stack(list(norms.values())))}


@dataclass(frozen=True)
class Reading:
    """What happened since the last line, over all ranks, on the host."""

    line: dict[str, float]  # to be logged
    steps: tuple[int, ...]  # the optimiser steps it covers
    losses: dict[str, list[float]]  # per modality and step; nan where nothing was supervised
    norms: list[float]  # per step


@dataclass(frozen=True)
class Kept:
    """A meter's sums before a step."""

    sums: tuple[Tensor, Tensor, Tensor]
    clips: int
    flops: int
    shapes: Counter[BatchShape]


class Meter:
    """Everything that is logged about the steps since the last line."""

    def __init__(self, config: TrainConfig, device: torch.device, notes: tuple[str, ...] = ()) -> None:
        """`notes` are what the objective logs besides its losses."""
        self.config, self.device, self.notes = config, device, notes
        self.table = LossTable(config.task_names, device)
        # so that a rank's share of the machine's rate is known: measured by all ranks at once
        self.rate = matmul_rate(device, config.half or torch.float32)
        self.shapes: Counter[BatchShape] = Counter()  # this rank's micro-batches, by what they cost
        self.costs: dict[BatchShape, int] = {}
        self.clear()

    def clear(self) -> None:
        """Begin the next line; the clock starts here."""
        self.table.clear()
        self.counts = torch.zeros(3, dtype=torch.float64, device=self.device)  # video, audio tokens; idle clips
        self.noted = torch.zeros(len(self.notes), 2, dtype=torch.float64, device=self.device)  # sums and counts
        self.losses: list[Tensor] = []  # per step: this rank's share of the loss of either modality
        self.norms: list[dict[str, Tensor]] = []  # per step
        self.steps: list[int] = []
        self.clips, self.flops = 0, 0
        self.waited_s, self.paused_s, self.began_s = 0.0, 0.0, time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    @torch.no_grad()
    def micro_batch(self, learned: Learned, drawn: Draw) -> None:
        """One forward pass; `drawn` is on the device."""
        self.table.add(learned.found, drawn)
        self.noted += learned.notes
        streams = [drawn.clean.video, drawn.clean.audio]
        used = torch.stack([s.weight.sum(1) for s in streams if s is not None]).sum(0)
        tokens = [self.counts.new_zeros(()) if s is None else s.mask().sum().double() for s in streams]
        self.counts += torch.stack([*tokens, (used == 0).sum().double()])
        self.clips += drawn.clean.size
        shape = BatchShape.of(drawn.noisy)
        if shape not in self.costs:
            self.costs[shape] = step_cost(self.config.model, shape).model
        self.flops += self.costs[shape]
        self.shapes[shape] += 1

    def kept(self) -> Kept:
        """What the micro-batches so far have added up to."""
        sums = self.table.sums.clone(), self.noted.clone(), self.counts.clone()
        return Kept(sums, self.clips, self.flops, self.shapes.copy())

    def back_to(self, before: Kept | None) -> None:
        """As if what came since had not been run: it is run again."""
        assert before is not None
        for now, then in zip((self.table.sums, self.noted, self.counts), before.sums, strict=True):
            now.copy_(then)
        self.clips, self.flops, self.shapes = before.clips, before.flops, before.shapes.copy()

    def step(self, step: int, losses: dict[str, Tensor], norms: dict[str, Tensor]) -> None:
        """An optimiser step is over; a modality without supervised tokens is left out of `losses`."""
        missing = self.counts.new_full((), math.nan)
        self.losses.append(torch.stack([losses.get(m, missing).detach().double() for m in MODALITIES]))
        self.norms.append(norms)
        self.steps.append(step)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in which the step waits for data."""
        start = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that belongs to no step: validation, checkpoints."""
        start = time.perf_counter()
        yield
        self.paused_s += time.perf_counter() - start

    def read(self, accelerator: Accelerator) -> Reading:
        """Everything since `clear`, over all ranks; the one place where the host waits for the device."""
        steps = len(self.steps)
        shares = torch.stack(self.losses)  # (steps, 2)
        parts = sorted({part for norms in self.norms for part in norms})
        absent = self.counts.new_zeros(())
        norms = torch.stack([torch.stack([n.get(p, absent).double() for p in parts]) for n in self.norms])
        on_device = [self.table.sums, self.counts, shares, self.noted, norms]
        device_part = torch.cat([part.flatten() for part in on_device])
        read = device_part.cpu()
        seconds = time.perf_counter() - self.began_s - self.paused_s
        host_part = [self.clips, self.flops, self.rate, self.waited_s / seconds, peak_bytes(self.device)]
        mine = torch.cat([read, torch.tensor(host_part, dtype=torch.float64)])
        ranks = accelerator.gather(mine[None].to(self.device)).cpu() if accelerator.num_processes > 1 else mine[None]
        sizes = [*(part.numel() for part in on_device), 5]
        host = ranks[:, -sizes[-1] :]
        # processes that share clips have all seen the same
        sums, counts, losses, noted, norms, told = ranks[:: self.config.parallel.context].split(sizes, dim=1)
        clips, flops = told.sum(0)[:2].tolist()
        rate = float(host[:, 2].sum())
        norms = norms[0].view(steps, len(parts))  # of the same gradient on every rank
        pairs = self.config.preference is not None
        line = {f"loss/{name}": value for name, value in self.table.means(sums.sum(0).view_as(self.table.sums)).items()}
        means = noted.sum(0).view_as(self.noted)
        line |= {name: float(total / n) for name, (total, n) in zip(self.notes, means, strict=True) if n > 0}
        line |= {f"gradient_norm/{part}": float(norms[:, i].mean()) for i, part in enumerate(parts)}
        line |= {
            "gradient_norm/largest": float(norms[:, parts.index("all")].max()),
            "lr": self.config.optimizer.lr * self.config.optimizer.factor(self.steps[-1] - 1, self.config.steps),
            "seconds": seconds,
            "steps_per_s": steps / seconds,
            "clips_per_s": clips / seconds,
            "tokens_per_s": float(counts.sum(0)[:2].sum()) / seconds,
            # what is frozen has no weights' gradients, which the cost counts, and pairs are run by a reference as well,
            # which it does not: no figure is better than a wrong one
            **({"utilisation": flops / seconds / rate} if self.config.trains_all and not pairs else {}),
            "memory_gib": float(host[:, 4].max()) / 2**30,
            "waiting_share": float(host[:, 3].max()),
            "idle_clips": float(counts.sum(0)[2]) / clips,
        }
        by_step = losses.sum(0).view(steps, 2)
        return Reading(
            {name: rounded(value) for name, value in line.items()},
            tuple(self.steps),
            {m: by_step[:, i].tolist() for i, m in enumerate(MODALITIES)},
            norms[:, parts.index("all")].tolist(),
        )


def rounded(value: float) -> float:
    """Six significant digits: what is logged is read by people too."""
    return float(f"{value:.6g}")


def peak_bytes(device: torch.device) -> int:
    """The most memory held since the last line on a GPU; by the whole process, so far, on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


# the keys of a line that follow from the run alone, and not from the machine it runs on
TIMED = ("seconds", "steps_per_s", "clips_per_s", "tokens_per_s", "utilisation", "memory_gib", "waiting_share")


def reproducible(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name not in TIMED}
