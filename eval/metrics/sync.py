"""Whether picture and sound happen together, without weights and without knowing what happens.

Of impacts, flashes and steps these figures say much; of swells, drones and speech far from the camera little: they
abstain where picture or sound gives nothing to time, and each stands beside the value that a shifted sound gets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import signal

from eval.metric import Definition, Measure, Metric, Needs, NotApplicable, Result, Setup, Take
from eval.metrics import compat
from eval.metrics.curves import PARAMETERS, STEP_S, Curve, centre, drawn, happening, matched, onsets, sounding, swells

BOTH = Needs(picture=True, sound=True)
REACH_S = 1.0  # offsets looked at
LEAST_HEIGHT = 0.3  # correlation below which nothing is aligned
LEAST_LEAD = 0.08  # how far the best offset must lie above the next best peak
NEIGHBOUR_S = 0.12  # peaks nearer than this to the best are the best's own slope
TOLERANCES_MS = (50, 100, 200)


def metrics(setup: Setup) -> Sequence[Metric]:
    aligned = {**PARAMETERS, "reach_s": REACH_S, "height": LEAST_HEIGHT, "lead": LEAST_LEAD, "apart": NEIGHBOUR_S}
    found = (
        "Lag of the highest normalised cross-correlation, at the centre of its peak, between onset strength of the"
        " sound (log spectral flux) and suddenness of the picture (brightening plus motion that stops or turns);"
        " positive: the sound comes late. Abstains where either is empty, the correlation is low or another lag does"
        " nearly as well."
    )
    return (
        Measure(
            Definition("sync.offset_s", found, "s", "zero", needs=BOTH, parameters=aligned, ceiling=True),
            lambda take: offset(take, signed=True),
        ),
        Measure(
            Definition(
                "sync.offset_size_s",
                "Size of sync.offset_s, which signs cannot cancel.",
                "s",
                "lower",
                needs=BOTH,
                parameters=aligned,
                nulls=("shifted",),
                ceiling=True,
            ),
            lambda take: offset(take, signed=False),
        ),
        Measure(
            Definition(
                "sync.correlation",
                "Normalised correlation at lag 0 of the two curves of sync.offset_s.",
                "",
                "higher",
                needs=BOTH,
                parameters=PARAMETERS,
                nulls=("shifted",),
                ceiling=True,
            ),
            correlation,
        ),
        *(
            Measure(
                Definition(
                    f"sync.onset_f1_{ms}ms",
                    "Onsets of picture and sound (peaks of the two curves whose prominence is a set share of the"
                    f" highest) matched one to one within {ms} ms: 2 * pairs / (seen + heard).",
                    "",
                    "higher",
                    needs=BOTH,
                    parameters={**PARAMETERS, "tolerance_ms": ms},
                    nulls=("shifted",),
                    ceiling=True,
                ),
                onset_f1(ms / 1000),
            )
            for ms in TOLERANCES_MS
        ),
        Measure(
            Definition(
                "sync.av_align",
                "Those onsets matched one to one within one frame: pairs / (seen + heard - pairs).",
                "",
                "higher",
                needs=BOTH,
                parameters=PARAMETERS,
                nulls=("shifted",),
                ceiling=True,
            ),
            av_align,
        ),
        compat.METRIC,
    )


@dataclass(frozen=True)
class Alignment:
    """The best lag, and how much better it is than the others."""

    offset_s: float
    height: float  # of the correlation there
    lead: float  # over the highest other peak
    at_zero: float


def curves(take: Take) -> tuple[Curve, Curve]:
    """Of picture and sound; where one says nothing there is nothing to time."""
    seen, heard = take.picture.once(happening), take.sound.once(sounding)
    for curve in (seen, heard):
        if curve.empty:
            raise NotApplicable(curve.empty)
    if swells(heard):
        raise NotApplicable("the sound swells: nothing in it begins")
    return seen, heard


def alignment(take: Take) -> Alignment:
    seen, heard = curves(take)
    values = correlations(seen.values, heard.values)
    zero = len(values) // 2
    best = int(values.argmax())
    tops, _ = signal.find_peaks(np.concatenate([[-1.0], values, [-1.0]]))
    others = [float(values[top - 1]) for top in tops if abs(top - 1 - best) * STEP_S > NEIGHBOUR_S]
    height = float(values[best])
    return Alignment((centre(values, best) - zero) * STEP_S, height, height - max([0.0, *others]), float(values[zero]))


def correlations(seen: np.ndarray, heard: np.ndarray) -> np.ndarray:
    """Normalised, for lags of the sound from -REACH_S to REACH_S."""
    count = max(len(seen), len(heard))
    a, b = (np.pad(v, (0, count - len(v))) for v in (heard, seen))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    whole = signal.correlate(a, b, "full", method="fft") / max(size, 1e-12)
    lags = np.arange(-(count - 1), count)
    reach = min(round(REACH_S / STEP_S), count - 1)
    return np.asarray(whole[np.abs(lags) <= reach])


def offset(take: Take, signed: bool) -> Result:
    found = take.once(alignment)
    said = f"correlation {found.height:.2f}, {found.lead:.2f} above the next lag"
    if found.height < LEAST_HEIGHT or found.lead < LEAST_LEAD:
        return Result.none("not_applicable", f"picture and sound do not tell their offset: {said}")
    seen, heard = curves(take)
    extras = {"seen": drawn(seen), "heard": drawn(heard), "every_s": 0.02} if signed else {}
    confidence = min(1.0, found.height) * min(1.0, found.lead / (found.height / 2))
    value = found.offset_s if signed else abs(found.offset_s)
    return Result(value, confidence=round(confidence, 3), extras=extras)


def correlation(take: Take) -> float:
    return take.once(alignment).at_zero


def instants(take: Take) -> tuple[np.ndarray, np.ndarray]:
    """(seen, heard) seconds."""
    seen, heard = curves(take)
    found = onsets(seen), onsets(heard)
    if not len(found[0]) and not len(found[1]):
        raise NotApplicable("nothing begins in picture or sound")
    return found


def onset_f1(tolerance_s: float) -> Callable[[Take], Result]:
    def f1(take: Take) -> Result:
        seen, heard = take.once(instants)
        total = len(seen) + len(heard)
        extras = {"seen_s": seen, "heard_s": heard} if tolerance_s == 0.1 else {}
        return Result(2 * matched(seen, heard, tolerance_s) / total, weight=total, extras=extras)

    return f1


def av_align(take: Take) -> Result:
    seen, heard = take.once(instants)
    pairs = matched(seen, heard, 1 / take.picture.fps)
    union = len(seen) + len(heard) - pairs
    return Result(pairs / union, weight=union)
