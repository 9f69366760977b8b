"""A set metric of the plainest kind, whose embedder fails for one prompt: what tests give the runner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.metric import Definition, Measure, Metric, Needs, Result, Setup, Take


class Shade:
    definition = Definition("shades.mean", "mean red, green and blue")

    def embed(self, take: Take) -> np.ndarray:
        if take.prompt.text == "fails":
            raise ArithmeticError("no shade")
        return take.picture.frames.mean((0, 1, 2))


class Gap:
    definition = Definition("shades.gap", "distance of the means", needs=Needs(picture=True, reference=True))
    embedder = Shade()

    def over(self, made: np.ndarray, reference: np.ndarray | None, seed: int) -> Result:
        assert reference is not None
        return Result(float(np.linalg.norm(made.mean(0) - reference.mean(0))), interval=(0.0, 1.0))


def metrics(setup: Setup) -> Sequence[Metric]:
    closed = Definition("shades.closed", "a constant that nobody may sell", needs=Needs(licence="NC", commercial=False))
    return (Gap(), Measure(closed, lambda take: 1.0))
