"""Solvers of dx/dt = v(x, t) from noise (t = 1) to data (t = 0), both modalities side by side.

Each modality has a grid of levels of its own, with the same number of steps. A solver sees dicts of tensors by
modality and asks for velocities at points of the grids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from avgen.flow import shifted

State = dict[str, Tensor]  # by modality, (B, N, C)
VelocityAt = Callable[[State, int], State]  # at point i of the grids
Grids = Mapping[str, Sequence[float]]  # by modality, steps + 1 falling levels
SolverKind = Literal["euler", "heun", "multistep"]


@dataclass(frozen=True)
class SolverConfig:
    """How the way from noise to data is cut into steps."""

    kind: SolverKind = "multistep"  # euler, heun (two forwards a step) or multistep (second order, one forward a step)
    steps: int = 20  # of the solver
    video_shift: float = 2.0  # > 1 spends more of the steps at high noise: t -> shift t / (1 + (shift - 1) t)
    audio_shift: float = 2.0  # likewise; a grid of its own

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")
        for name in ("video_shift", "audio_shift"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive; 1 is no shift")

    def grid(self, modality: str) -> list[float]:
        """steps + 1 levels from 1 to 0."""
        even = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        return shifted(even, self.video_shift if modality == "video" else self.audio_shift).tolist()

    def solver(self, grids: Grids) -> Solver:
        kinds: dict[str, Callable[[Grids], Solver]] = {"euler": Euler, "heun": Heun, "multistep": Multistep}
        return kinds[self.kind](grids)


class Solver(Protocol):
    """One solution, from point 0 of the grids on."""

    def step(self, velocity: VelocityAt, x: State, i: int) -> State:
        """x at point i of the grids -> x at point i + 1"""
        ...


class Euler:
    def __init__(self, grids: Grids) -> None:
        self.grids = grids

    def step(self, velocity: VelocityAt, x: State, i: int) -> State:
        return self.moved(x, velocity(x, i), i)

    def moved(self, x: State, v: State, i: int) -> State:
        return {m: x[m] + (self.grids[m][i + 1] - self.grids[m][i]) * v[m] for m in x}


class Heun(Euler):
    """The mean of the velocities at both ends of a step; the last step ends where there is none, so it is Euler's."""

    def step(self, velocity: VelocityAt, x: State, i: int) -> State:
        here = velocity(x, i)
        there = self.moved(x, here, i)
        if min(grid[i + 1] for grid in self.grids.values()) <= 0:
            return there
        ahead = velocity(there, i + 1)
        return self.moved(x, {m: (here[m] + ahead[m]) / 2 for m in x}, i)


class Multistep(Euler):
    """Adams predictor and corrector of second order on the uneven grid, at one forward a step.

    The velocity found at the predicted point first mends the step that led there (trapezoid), then, with the one before
    it, leads on (Adams-Bashforth). Solvers that are linear in the logarithm of the signal-to-noise ratio, such as
    DPM-Solver++(2M), must fall back to first order where it is infinite, at both ends; a flow's v is smooth there.
    """

    def __init__(self, grids: Grids) -> None:
        super().__init__(grids)
        self.before: tuple[State, State] | None = None  # x and v one point back

    def step(self, velocity: VelocityAt, x: State, i: int) -> State:
        v = ahead = velocity(x, i)
        if self.before is not None:
            old_x, old_v = self.before
            x = self.moved(old_x, {m: (old_v[m] + v[m]) / 2 for m in x}, i - 1)
            ahead = {m: v[m] + self.ratio(m, i) / 2 * (v[m] - old_v[m]) for m in x}
        self.before = (x, v)
        return self.moved(x, ahead, i)

    def ratio(self, m: str, i: int) -> float:
        """Of this step's length to the last one's."""
        grid = self.grids[m]
        return (grid[i + 1] - grid[i]) / (grid[i] - grid[i - 1])
