"""The sampler's loop: one for every task, because a task is only which tokens are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from avgen.models.dit import AVTransformer
from avgen.sample.cache import CacheConfig
from avgen.sample.guidance import Guidance, guided
from avgen.sample.solvers import SolverConfig, State
from avgen.types import Batch


@torch.no_grad()
def generate(
    model: AVTransformer,
    batch: Batch,
    noise: Mapping[str, Tensor],
    solver_config: SolverConfig,
    guidance: Guidance,
    predict: str = "velocity",
    cache: CacheConfig = CacheConfig(),  # noqa: B008  # frozen
    after_step: Callable[[int], None] = lambda _: None,
) -> State:
    """Per modality, (B, N, C) tokens as data: given ones (level 0) bit for bit, the others made from noise."""
    streams = batch.streams
    made = {m: (s.level > 0) & s.mask() for m, s in streams.items()}
    busy = [m for m in streams if bool(made[m].any())]
    grids = {m: solver_config.grid(m) for m in streams}
    solver = solver_config.solver(grids)
    blocks = cache.over(grids)

    def velocity(x: State, i: int) -> State:
        at: dict[str, Any] = {m: replace(s, x=x[m], levels=s.levels * grids[m][i]) for m, s in streams.items()}
        levels = {m: grids[m][i] for m in busy}
        v = guided(model, replace(batch, **at), guidance, levels, made, predict, partial(blocks.at, i))
        # given tokens stand still, also where a solver looks ahead within a step
        return {m: torch.where(made[m][..., None], v[m], 0.0) for m in v}

    x = {m: torch.where(made[m][..., None], noise[m], s.x) for m, s in streams.items()}
    for i in range(solver_config.steps):
        x = solver.step(velocity, x, i)
        after_step(i)
    return x
