"""Held-out loss per task, at fixed clips, noise and levels: comparable across steps and runs."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from avgen.data.stream import Source
from avgen.flow import FlowConfig, LevelLaw
from avgen.models.compilation import uncompiled
from avgen.models.dit import AVTransformer
from avgen.tasks import assign, in_training, possible, shown
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
        drawn, fits = _drawn(held_out, config, task, places)
        drawn = drawn.to(model.device)
        with config.autocast(model.device):
            found = step_losses(model, drawn, config.flow)
        if counts and fits:
            table.add(found, drawn)
    return table


def _drawn(held_out: Source, config: TrainConfig, task: str, places: range) -> tuple[Draw, bool]:
    """The clips at the task; where none of them has the streams for it at t2av, which takes any, and False."""
    batch = held_out.batch(list(places))
    fits = bool(possible(in_training(task, head_s=1.0), batch).any())
    tasks = shown([task if fits else "t2av"] * len(places), batch)
    levels = (torch.tensor(list(places), dtype=torch.float64) + 0.5) / config.validation_clips
    return corrupt(assign(batch, tasks), EVEN, levels.expand(3, -1), 0, 0, places, tasks), fits


def shared(clips: int, rank: int, ranks: int) -> list[tuple[range, bool]]:
    """A rank's places among the held-out clips, and whether they count.

    All ranks run equally often, because a sharded model needs all of them; one that has nothing left runs a clip
    of another's, which doesn't count.
    """
    size = min(CLIPS_AT_ONCE, -(-clips // ranks))
    chunks = [range(first, min(first + size, clips)) for first in range(0, clips, size)]
    mine = [(places, True) for places in chunks[rank::ranks]]
    return mine + [(range(1), False)] * (-(-len(chunks) // ranks) - len(mine))
