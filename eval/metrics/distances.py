"""Distances between the sets of made and real clips, for any embedding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eval.metric import Definition, Direction, Embedder, Needs, Result, SetMetric
from eval.metrics import sets

Over = Callable[[np.ndarray, np.ndarray, int], Result]


@dataclass(frozen=True)
class Distance:
    """A SetMetric of an embedder and a function of two sets."""

    definition: Definition
    embedder: Embedder
    of: Over

    def over(self, made: np.ndarray, reference: np.ndarray | None, seed: int) -> Result:
        if reference is None:
            raise ValueError(f"{self.definition.name} needs real clips")
        return self.of(made, reference, seed)


def frechet(made: np.ndarray, real: np.ndarray, seed: int) -> Result:
    found = sets.frechet(made, real, seed)
    return Result(found.plain, extras={"counts": found.counts, "features": found.features})


def frechet_extrapolated(made: np.ndarray, real: np.ndarray, seed: int) -> Result:
    found = sets.frechet(made, real, seed)
    return Result(found.extrapolated, extras={"counts": found.counts, "features": found.features})


def mmd(made: np.ndarray, real: np.ndarray, seed: int) -> Result:
    found = sets.discrepancy(made, real)
    return Result(found.value, interval=(found.low, found.high), extras={"bandwidth": found.bandwidth})


def precision(made: np.ndarray, real: np.ndarray, seed: int) -> Result:
    return Result(sets.manifolds(made, real).precision)


def recall(made: np.ndarray, real: np.ndarray, seed: int) -> Result:
    return Result(sets.manifolds(made, real).recall)


def diversity(made: np.ndarray, real: np.ndarray, seed: int) -> Result:
    found = sets.diversity(made, real)
    if not math.isfinite(found.of_reference):
        return Result.none("not_applicable", "the real clips' embeddings are all the same")
    return Result(found.of_reference)


MEASURES: tuple[tuple[str, str, Direction, Over], ...] = (
    ("frechet", "Frechet distance. Shrinks with the number of clips: compare only equal numbers", "lower", frechet),
    (
        "frechet_extrapolated",
        "Frechet distance at parts of both sets, extrapolated to endless ones; may lie a little below 0",
        "lower",
        frechet_extrapolated,
    ),
    ("mmd", "unbiased squared MMD, Gaussian kernel of the real clips' median distance; may lie below 0", "lower", mmd),
    ("precision", f"share of made clips within the {sets.NEAREST}-neighbour manifold of the real", "higher", precision),
    ("recall", f"share of real clips within the {sets.NEAREST}-neighbour manifold of the made", "higher", recall),
    ("diversity", "mean distance of two made clips over that of two real ones; 1 is as diverse", "none", diversity),
)


def set_metrics(embedder: Embedder, group: str, needs: Needs) -> tuple[SetMetric, ...]:
    """All of them. The embedding is part of what each is, so its hash is among the parameters."""
    said = {"embedding": embedder.definition.hash}
    return tuple(
        Distance(
            Definition(f"{group}.{name}", f"Of {embedder.definition.says} {says}.", "", direction, 1, needs, said),
            embedder,
            of,
        )
        for name, says, direction, of in MEASURES
    )
