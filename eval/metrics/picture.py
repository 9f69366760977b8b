"""What a picture looks like without knowing what it shows: sharpness, blocks, flicker, motion, frames that stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from eval.metric import Definition, Direction, Measure, Metric, Needs, NotApplicable, Setup, Take
from eval.take import Picture

PICTURE = Needs(picture=True)
BLACK, DETAIL = 16.0, 2.0  # of 255: mean luma of a black frame, and the spread it has at most
SAME = 0.25  # of 255: mean change of two frames that are one, decoded twice
FREEZE_S = 0.25  # how long a picture must stand to be frozen rather than at rest for a frame
CUT, CUT_RATIO = 25.0, 4.0  # of 255: mean change at a cut, and how many times that of its neighbours


@dataclass(frozen=True)
class Looks:
    """Per frame, or per pair of frames, what the figures are made of. Luma runs from 0 to 255."""

    mean: np.ndarray  # (T,) luma
    spread: np.ndarray  # (T,) standard deviation of luma
    laplace: np.ndarray  # (T,) mean squared Laplacian
    at_edge: np.ndarray  # (T,) mean step across the borders of 8 x 8 blocks
    inside: np.ndarray  # (T,) mean step elsewhere
    change: np.ndarray  # (T - 1,) mean |difference| to the next frame


def metrics(setup: Setup) -> Sequence[Metric]:
    def one(
        name: str, says: str, unit: str, direction: Direction, of: Callable[[Take], float], **parameters: float
    ) -> Measure:
        return Measure(Definition(f"picture.{name}", says, unit, direction, needs=PICTURE, parameters=parameters), of)

    return (
        one(
            "sharpness",
            "Root mean square of luma's Laplacian over its standard deviation, median over frames: falls with blur,"
            " rises with noise.",
            "",
            "none",
            sharpness,
        ),
        one(
            "blockiness",
            "Mean step of luma across the borders of 8 x 8 blocks over the mean step elsewhere: 1 without blocks.",
            "",
            "lower",
            blockiness,
        ),
        one(
            "contrast",
            "Standard deviation of luma (of 255), mean over frames.",
            "",
            "none",
            lambda t: mean(looks_of(t).spread),
        ),
        one(
            "flicker",
            "Mean |second difference| of the frames' mean luma (of 255): brightness that goes to and fro. A frozen"
            " picture has none.",
            "",
            "lower",
            flicker,
        ),
        one(
            "motion_per_s",
            "Mean |difference| of luma (of 255) between neighbouring frames, times frames per second.",
            "1/s",
            "none",
            motion,
        ),
        one(
            "frozen_share",
            "Share of the duration in which the picture stands (frames differ by less than 0.25 of 255) for 0.25 s or"
            " more.",
            "",
            "lower",
            frozen,
            same=SAME,
            least_s=FREEZE_S,
        ),
        one(
            "repeated_share",
            "Share of frames equal to the one before in a picture that otherwise moves: frames made by repetition.",
            "",
            "lower",
            repeated,
            same=SAME,
        ),
        one("black_share", "Share of frames that are black and even.", "", "lower", black, luma=BLACK, spread=DETAIL),
        one(
            "cuts_per_s",
            "Changes of the whole picture that stand alone, per second.",
            "Hz",
            "none",
            cuts,
            least=CUT,
            ratio=CUT_RATIO,
        ),
    )


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def looks_of(take: Take) -> Looks:
    return take.picture.once(looks)


def looks(picture: Picture) -> Looks:
    """In one pass, a frame at a time: a long clip's luma as floats would not fit beside its frames."""
    rows: list[tuple[float, ...]] = []
    change: list[float] = []
    before: np.ndarray | None = None
    for luma in lumas(picture.frames):
        across, down = np.abs(np.diff(luma, axis=1)), np.abs(np.diff(luma, axis=0))
        edge = (across[:, 7::8].sum() + down[7::8].sum(), across[:, 7::8].size + down[7::8].size)
        every = (across.sum() + down.sum(), across.size + down.size)
        # the middle row and column of a 3 x 3 Laplacian
        laplace = luma[1:-1, :-2] + luma[1:-1, 2:] + luma[:-2, 1:-1] + luma[2:, 1:-1] - 4 * luma[1:-1, 1:-1]
        rows.append(
            (
                float(luma.mean()),
                float(luma.std()),
                float(np.square(laplace).mean()) if laplace.size else 0.0,
                float(edge[0] / max(1, edge[1])),
                float((every[0] - edge[0]) / max(1, every[1] - edge[1])),
            )
        )
        if before is not None:
            change.append(float(np.abs(luma - before).mean()))
        before = luma
    per_frame = np.array(rows).T
    return Looks(per_frame[0], per_frame[1], per_frame[2], per_frame[3], per_frame[4], np.array(change))


def lumas(frames: np.ndarray) -> Iterator[np.ndarray]:
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return (frame.astype(np.float32) @ weights for frame in frames)


def sharpness(take: Take) -> float:
    found = looks_of(take)
    even = found.spread < 1
    if even.all():
        raise NotApplicable("the picture shows nothing")
    return float(np.median(np.sqrt(found.laplace[~even]) / found.spread[~even]))


def blockiness(take: Take) -> float:
    if min(take.picture.frames.shape[1:3]) < 16:
        raise NotApplicable("the picture is smaller than two blocks")
    found = looks_of(take)
    if found.inside.mean() < 0.05:
        raise NotApplicable("the picture shows nothing")
    return float(found.at_edge.mean() / found.inside.mean())


def flicker(take: Take) -> float:
    found = looks_of(take)
    if len(found.mean) < 3:
        raise NotApplicable("fewer than three frames")
    return mean(np.abs(np.diff(found.mean, 2)))


def changes(take: Take) -> np.ndarray:
    found = looks_of(take).change
    if not len(found):
        raise NotApplicable("a single frame")
    return found


def motion(take: Take) -> float:
    return mean(changes(take)) * take.picture.fps


def frozen(take: Take) -> float:
    same = changes(take) < SAME
    least = max(1, round(FREEZE_S * take.picture.fps))
    return sum(length for length in runs(same) if length >= least) / len(same)


def runs(flags: np.ndarray) -> list[int]:
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return [int(n) for n in edges[1::2] - edges[::2]]


def repeated(take: Take) -> float:
    """Single repeats only: what stands longer is frozen, or at rest."""
    same = changes(take) < SAME
    moving = 1 - sum(length for length in runs(same) if length > 2) / len(same)
    if moving < 0.2:
        raise NotApplicable("the picture hardly moves")
    return sum(length for length in runs(same) if length <= 2) / len(same)


def black(take: Take) -> float:
    found = looks_of(take)
    return mean((found.mean < BLACK + DETAIL) & (found.spread < DETAIL))


def cuts(take: Take) -> float:
    found = changes(take)
    padded = np.concatenate([[0.0], found, [0.0]])
    around = np.maximum(padded[:-2], padded[2:])
    alone = (found > CUT) & (found > CUT_RATIO * np.maximum(around, 1e-6))
    return float(alone.sum()) / take.picture.duration_s
