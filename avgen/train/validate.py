"""Held-out loss per task, and how many held-out pairs are told apart: at fixed clips, noise and levels, so that steps
and runs can be compared."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor

from avgen.data.stream import Source
from avgen.flow import FlowConfig, LevelLaw
from avgen.models.compilation import uncompiled
from avgen.models.dit import AVTransformer
from avgen.tasks import NAMED, assign, fitting, shown
from avgen.train.config import TrainConfig
from avgen.train.metrics import LossTable, rounded
from avgen.train.optim import Average
from avgen.train.step import Draw, Whole, corrupt, step_losses, with_every_stream

if TYPE_CHECKING:
    from avgen.prefer.source import PairSource
    from avgen.train.run import Run

CLIPS_AT_ONCE = 16  # at most: more are no faster
LOOKS = 8  # levels at which every held-out pair is judged: at one, chance decides most of them
PAIRS_AT_MOST = 64
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
    for places, counts in shared(config.validation_clips, reader, readers, at_once(config, readers)):
        drawn = _drawn(held_out, config, task, places).to(model.device)
        with config.autocast(model.device):
            found = step_losses(model, drawn, config.flow)
        if counts:
            table.add(found, drawn)
    return table


def _drawn(held_out: Source, config: TrainConfig, task: str, places: range) -> Draw:
    """The clips at the task; those that lack a stream for it pass at t2av, which takes any, and don't count."""
    batch = with_every_stream(held_out.batch(list(places)), config.model)
    fits = fitting(task, batch)
    tasks = shown([task if fit else "t2av" for fit in fits.tolist()], batch)
    levels = levels_of(config.validation_clips)[places]
    drawn = corrupt(assign(batch, tasks), EVEN, levels.expand(3, -1), 0, 0, places, tasks)
    counted: dict[str, Any] = {m: replace(s, weight=s.weight * fits[:, None]) for m, s in drawn.clean.streams.items()}
    return replace(drawn, clean=replace(drawn.clean, **counted), tasks=(task,) * len(places))


def levels_of(clips: int) -> Tensor:
    """(clips,) even steps from data to noise, in the order of van der Corput: any few in a row cover all levels.

    In rising order the level would stand for the place: whatever clips lie first would be judged at low levels alone.
    """
    turned = torch.tensor([int(f"{place:032b}"[::-1], 2) for place in range(clips)])
    return (turned.argsort().argsort().double() + 0.5) / clips


@torch.no_grad()
def told_apart(run: Run, pairs: PairSource) -> dict[str, float]:
    """`held_out_pairs/...`: what training logs of its own pairs, of the averaged weights and pairs of other prompts.

    Pairs are learned by heart long before the last step; this tells whether anything else is learned.
    """
    model, objective, looks_in_all = run.model, run.objective, LOOKS * min(len(pairs.pairs), PAIRS_AT_MOST)
    sums = torch.zeros(len(objective.notes), 2, device=model.device)
    back = run.average.swapped(model)
    try:
        with uncompiled():
            pairs_at_once = at_once(run.config, run.processes.readers, rows=2)
            for looks, counts in shared(looks_in_all, run.processes.reader, run.processes.readers, pairs_at_once):
                drawn = _drawn_alike(pairs, run.config, looks).to(model.device)
                with run.config.autocast(model.device):
                    learned = objective(model, drawn, Whole({}, drawn.clean.size, {}))
                sums += counts * learned.notes
    finally:
        back()
    named = zip(objective.notes, run.accelerator.reduce(sums, "sum").cpu().tolist(), strict=True)
    means = {name: total / count for name, (total, count) in named if count > 0}
    return {name.replace("preference/", "held_out_pairs/"): rounded(mean) for name, mean in means.items()}


def _drawn_alike(pairs: PairSource, config: TrainConfig, looks: range) -> Draw:
    """Look i is at pair i // LOOKS, at one of LOOKS even steps through the levels that are trained."""
    asked = [look // LOOKS for look in looks for _ in range(2)]
    places = [look for look in looks for _ in range(2)]
    batch = pairs.batch([2 * pair + side for pair, side in zip(asked, (0, 1) * len(looks), strict=True)])
    levels = (torch.tensor(places, dtype=torch.float64) % LOOKS + 0.5) / LOOKS
    tasks = [NAMED[pairs.pairs[pair].task] for pair in asked]
    together = replace(config.flow, coupling="shared")
    return corrupt(batch, together, levels.expand(3, -1), config.seed, 0, places, tasks)


def at_once(config: TrainConfig, readers: int, rows: int = 1) -> int:
    """How many clips a process runs together, if each takes so many rows of a batch: what trains has shown to fit.

    They lie where they lie whoever is run beside them, so figures are the same but for rounding.
    """
    return max(1, min(CLIPS_AT_ONCE, config.batch // (readers * config.accumulate)) // rows)


def shared(clips: int, rank: int, ranks: int, at_most: int = CLIPS_AT_ONCE) -> list[tuple[range, bool]]:
    """A rank's places among the held-out clips, `at_most` together, and whether they count.

    All ranks run equally often, because a sharded model needs all of them; one that has nothing left runs a clip
    of another's, which doesn't count.
    """
    size = min(at_most, -(-clips // ranks))
    chunks = [range(first, min(first + size, clips)) for first in range(0, clips, size)]
    mine = [(places, True) for places in chunks[rank::ranks]]
    return mine + [(range(1), False)] * (-(-len(chunks) // ranks) - len(mine))
