"""Held-out loss per task, at fixed clips, noise and levels: comparable across steps and runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from avgen.data.stream import Source
from avgen.flow import FlowConfig, LevelLaw
from avgen.models.compilation import uncompiled
from avgen.models.dit import AVTransformer
from avgen.tasks import assign, fitting, shown
from avgen.train.config import TrainConfig
from avgen.train.metrics import LossTable, rounded
from avgen.train.optim import Average
from avgen.train.step import Draw, corrupt, step_losses

CLIPS_AT_ONCE = 16
# every run is judged at the same levels, whatever it trains at
EVEN = FlowConfig(video=LevelLaw(kind="uniform"), audio=LevelLaw(kind="uniform"), coupling="shared")


@torch.no_grad()
def validate(
    model: AVTransformer, average: Average, held_out: Source, config: TrainConfig, accelerator: Accelerator
) -> dict[str, float]:
    """`held_out/<task>/<modality>` of the averaged weights, and the same by noise level; ranks share the clips."""
    back = average.swapped(model)
    try:
        with uncompiled():
            tables = {task: _table(model, held_out, config, task, accelerator) for task in config.task_names}
    finally:
        back()
    sums = accelerator.reduce(torch.stack([table.sums for table in tables.values()]), "sum").cpu()
    found: dict[str, float] = {}
    for (task, table), total in zip(tables.items(), sums, strict=True):
        means = table.means(total)
        found |= {f"held_out/{task}/{name}": rounded(mean) for name, mean in means.items() if f"/{task}" not in name}
    return found


def _table(
    model: AVTransformer, held_out: Source, config: TrainConfig, task: str, accelerator: Accelerator
) -> LossTable:
    """This rank's share of one task."""
    table, context = LossTable([task], model.device), config.parallel.context
    reader, readers = accelerator.process_index // context, accelerator.num_processes // context
    for places, counts in shared(config.validation_clips, reader, readers):
        drawn = _drawn(held_out, config, task, places).to(model.device)
        with config.autocast(model.device):
            found = step_losses(model, drawn, config.flow)
        if counts:
            table.add(found, drawn)
    return table


def _drawn(held_out: Source, config: TrainConfig, task: str, places: range) -> Draw:
    """The clips at the task; those that lack a stream for it pass at t2av, which takes any, and don't count."""
    batch = held_out.batch(list(places))
    fits = fitting(task, batch)
    tasks = shown([task if fit else "t2av" for fit in fits.tolist()], batch)
    levels = (torch.tensor(list(places), dtype=torch.float64) + 0.5) / config.validation_clips
    drawn = corrupt(assign(batch, tasks), EVEN, levels.expand(3, -1), 0, 0, places, tasks)
    counted: dict[str, Any] = {m: replace(s, weight=s.weight * fits[:, None]) for m, s in drawn.clean.streams.items()}
    return replace(drawn, clean=replace(drawn.clean, **counted), tasks=(task,) * len(places))


def shared(clips: int, rank: int, ranks: int) -> list[tuple[range, bool]]:
    """A rank's places among the held-out clips, and whether they count.

    All ranks run equally often, because a sharded model needs all of them; one that has nothing left runs a clip
    of another's, which doesn't count.
    """
    size = min(CLIPS_AT_ONCE, -(-clips // ranks))
    chunks = [range(first, min(first + size, clips)) for first in range(0, clips, size)]
    mine = [(places, True) for places in chunks[rank::ranks]]
    return mine + [(range(1), False)] * (-(-len(chunks) // ranks) - len(mine))
