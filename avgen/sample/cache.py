"""Feature caching: in most steps, what most blocks would add is foretold from the last times they ran.

Neighbouring steps differ little, so a block's work on one is nearly its work on the next. When a forward is due is
decided by the step alone, never by the numbers: a threshold on them would let a clip depend on what else is in its
batch, and make the host wait for the device. One `Cache` serves one call of `generate`, so nothing outlives a batch
or a window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from avgen.models.blocks import Block, Context, Streams
from avgen.models.dit import Perturbation, RunBlocks, run_blocks
from avgen.sample.solvers import Grids


@dataclass(frozen=True)
class CacheConfig:
    """Which forwards are made in full, and how the others are foretold."""

    every: int = 1  # points of the grid from one full forward to the next, counted from the last; 1 = no cache
    fresh: int = 1  # blocks at the front that run in every forward; what the others add is foretold
    order: int = 1  # of the polynomial in noise level through what they last added; 0 repeats it
    warmup: int = 2  # points at the start where every forward is made in full

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("fresh", 0), ("order", 0), ("warmup", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"cache.{name}={getattr(self, name)} must be at least {least}")

    def check(self, blocks: int) -> None:
        """Refuse a model too shallow to leave anything out."""
        if self.every > 1 and self.fresh >= blocks:
            raise ValueError(
                f"cache.fresh={self.fresh} leaves none of the model's {blocks} blocks to leave out;"
                f" try {blocks - 1} or less, or cache.every=1"
            )

    def over(self, grids: Grids) -> BlockRunner:
        """For one solution along these grids."""
        return NoCache() if self.every == 1 else Cache(self, grids)


class BlockRunner(Protocol):
    """How the blocks are run in the forwards of one solution."""

    def at(self, point: int, terms: Sequence[str]) -> RunBlocks:
        """point: of the grids; terms: guidance passes that stand in the batch behind the plain one"""
        ...


class NoCache:
    def at(self, point: int, terms: Sequence[str]) -> RunBlocks:
        return run_blocks


class Cache:
    """What the blocks behind the first `fresh` added at the last points where they ran, per modality."""

    def __init__(self, config: CacheConfig, grids: Grids) -> None:
        self.config, self.grids = config, grids
        self.last = min(len(grid) for grid in grids.values()) - 2  # the point the last step starts from
        self.terms: tuple[str, ...] = ()
        self.added: dict[int, Streams] = {}  # by point, oldest first

    def at(self, point: int, terms: Sequence[str]) -> RunBlocks:
        if tuple(terms) != self.terms:  # the batch has other rows now, or they mean something else
            self.terms, self.added = tuple(terms), {}
        return partial(self.run if self.due(point) else self.foretell, point)

    def due(self, point: int) -> bool:
        # counted from the end: nothing mends what is wrong in the last step
        return not self.added or point < self.config.warmup or (self.last - point) % self.config.every == 0

    def run(
        self, point: int, blocks: Sequence[Block], x: Streams, context: dict[str, Context], perturbation: Perturbation
    ) -> Streams:
        before = run_blocks(blocks[: self.config.fresh], x, context, perturbation)
        after = run_blocks(blocks[self.config.fresh :], before, context, perturbation)
        self.added.pop(point, None)  # heun comes to a point twice
        self.added[point] = {m: after[m].float() - before[m].float() for m in after}
        for old in list(self.added)[: -1 - self.config.order]:
            del self.added[old]
        return after

    def foretell(
        self, point: int, blocks: Sequence[Block], x: Streams, context: dict[str, Context], perturbation: Perturbation
    ) -> Streams:
        before = run_blocks(blocks[: self.config.fresh], x, context, perturbation)
        return {m: (before[m].float() + self.addition(m, point)).type_as(before[m]) for m in before}

    def addition(self, modality: str, point: int) -> Tensor:
        """Lagrange's polynomial in the modality's own level, through the points at hand, at another point."""
        level = self.grids[modality]
        return sum(
            math.prod((level[point] - level[o]) / (level[p] - level[o]) for o in self.added if o != p) * added[modality]
            for p, added in self.added.items()
        )  # type: ignore[return-value]
