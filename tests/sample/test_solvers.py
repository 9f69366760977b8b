"""Solvers against a flow whose velocity is known exactly: data that are a mixture of Gaussians."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from avgen.sample.guidance import NO_GUIDANCE, guided
from avgen.sample.solvers import SolverConfig
from avgen.types import Batch, Stream, Text, Velocity

MEANS = torch.tensor([[-1.5, 0.3], [0.2, 1.1], [1.4, -0.9]], dtype=torch.float64)
STD = 0.5


def velocity(x, t):
    """E[noise - data | x_t = x] of the mixture"""
    spread = (1 - t) ** 2 * STD**2 + t**2
    gap = x[..., None, :] - (1 - t) * MEANS
    share = torch.softmax(-gap.square().sum(-1) / (2 * spread), dim=-1)[..., None]
    data = MEANS + (1 - t) * STD**2 / spread * gap
    noise = t / spread * gap
    return (share * (noise - data)).sum(-2)


def solved(kind, steps, shift=1.0):
    config = SolverConfig(kind, steps, video_shift=shift, audio_shift=2 * shift)
    grids = {m: config.grid(m) for m in ("video", "audio")}
    solver = config.solver(grids)
    noise = torch.randn(2, 500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = dict(zip(("video", "audio"), noise, strict=True))
    for i in range(steps):
        x = solver.step(lambda x, i: {m: velocity(x[m], grids[m][i]) for m in x}, x, i)
    return x


def error(kind, steps, shift=1.0):
    truth, found = solved("heun", 800, shift), solved(kind, steps, shift)
    return {m: float((truth[m] - found[m]).square().mean().sqrt()) for m in truth}


@pytest.mark.parametrize("std", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("shift", [0.5, 1.0])  # of the picture; the sound's is twice that
def test_second_order_at_12_steps_is_closer_than_euler_at_30(shift, std, monkeypatch):
    monkeypatch.setattr("tests.sample.test_solvers.STD", std)
    euler, multistep = error("euler", 30, shift), error("multistep", 12, shift)
    for m in euler:
        assert multistep[m] < (0.5 if std > 0.3 else 1) * euler[m]


@pytest.mark.parametrize(("kind", "order"), [("euler", 1), ("heun", 2), ("multistep", 2)])
def test_order(kind, order):
    """Twice the steps, 2 ** order less error, asymptotically."""
    coarse, fine = error(kind, 64), error(kind, 128)
    for m in coarse:
        assert coarse[m] / fine[m] > 2 ** (order - 0.35)


@pytest.mark.parametrize("kind", ["euler", "heun", "multistep"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_single_point_of_data_is_reached_exactly(kind, steps):
    """v = (x - data) / t: the straight way, on which no solver errs."""
    config = SolverConfig(kind, steps, video_shift=3.0)
    grids = {"video": config.grid("video")}
    solver, x = config.solver(grids), {"video": torch.full((1, 1, 1), 2.0, dtype=torch.float64)}
    for i in range(steps):
        x = solver.step(lambda x, i: {"video": (x["video"] - 0.7) / grids["video"][i]}, x, i)
    assert float(x["video"]) == pytest.approx(0.7, abs=1e-12)


def test_grids_fall_from_1_to_0_and_a_shift_keeps_them_up():
    for shift in (0.5, 1.0, 7.0):
        grid = SolverConfig(steps=9, video_shift=shift).grid("video")
        assert (grid[0], grid[-1]) == (1.0, 0.0)
        assert all(a > b for a, b in pairwise(grid))
    high, low = (SolverConfig(steps=9, video_shift=s).grid("video")[5] for s in (3.0, 1.0))
    assert high > low


@pytest.mark.parametrize("steps", [5, 100, 400])
def test_a_predicted_point_of_data_is_reached_whatever_the_grid(steps):
    """The last step of a fine grid begins below the level under which training divides no further."""
    config = SolverConfig("euler", steps)
    grids = {"video": config.grid("video")}
    solver, x = config.solver(grids), {"video": torch.full((1, 1, 1), 2.0)}

    def model(batch, perturbation, run):
        return Velocity(torch.full_like(batch.video.x, 0.7), None)

    for i in range(steps):

        def velocity(x, i):
            levels = torch.full((1, 1), grids["video"][i])
            video = replace(Stream.of(x["video"], torch.tensor([[[0.0, 1.0]]])), levels=levels)
            text = Text.of(torch.zeros(1, 1, 4))
            made = {"video": torch.ones(1, 1, dtype=torch.bool)}
            return guided(model, Batch(video, None, text, text), NO_GUIDANCE, {"video": 0.5}, made, "data")

        x = solver.step(velocity, x, i)
    assert float(x["video"]) == pytest.approx(0.7, abs=1e-3)
