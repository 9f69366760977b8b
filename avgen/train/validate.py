"""Held-out loss per task, at fixed clips, noise and levels: comparable across steps and runs."""

from __future__ import annotations

import torch

from avgen.data.stream import Source
from avgen.flow import FlowConfig, LevelLaw
from avgen.models.dit import AVTransformer
from avgen.tasks import NAMED, assign
from avgen.train.config import TrainConfig
from avgen.train.optim import Average
from avgen.train.step import corrupt, step_losses

CLIPS_AT_ONCE = 16
# every run is judged at the same levels, whatever it trains at
EVEN = FlowConfig(video=LevelLaw(kind="uniform"), audio=LevelLaw(kind="uniform"), coupling="shared")


@torch.no_grad()
def validate(model: AVTransformer, average: Average, held_out: Source, config: TrainConfig) -> dict[str, float]:
    """`held_out/<task>/<modality>` of the averaged weights."""
    back = average.swapped(model)
    try:
        # a compiled model runs as written here: other shapes, without gradients, are not worth a compilation
        with torch.compiler.set_stance("force_eager"):
            tasks = sorted(config.tasks)
            return {name: value for task in tasks for name, value in _one(model, held_out, config, task)}
    finally:
        back()


def _one(model: AVTransformer, held_out: Source, config: TrainConfig, task: str) -> list[tuple[str, float]]:
    sums: dict[str, list[float]] = {}
    for first in range(0, config.validation_clips, CLIPS_AT_ONCE):
        places = range(first, min(first + CLIPS_AT_ONCE, config.validation_clips))
        batch = assign(held_out.batch(list(places)), [NAMED[task]] * len(places))
        levels = (torch.tensor(list(places), dtype=torch.float64) + 0.5) / config.validation_clips
        drawn = corrupt(batch, EVEN, levels.expand(3, -1), 0, 0, places, [NAMED[task]] * len(places))
        drawn = drawn.to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            found = step_losses(model, drawn, config.flow)
        for m, loss in found.items():
            total = sums.setdefault(m, [0.0, 0.0])
            total[0] += float(loss.tokens.sum())
            total[1] += float(loss.weight)
    return [(f"held_out/{task}/{m}", round(error / weight, 6)) for m, (error, weight) in sums.items() if weight > 0]
